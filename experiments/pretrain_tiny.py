"""Pre-train an embedded model from scratch.

Claim: a model of 1.6 M parameters learns, in minutes on a CPU, to describe, count, locate and
    compare what it sees and to read small diagrams, well enough to be an instruct model that
    reinforcement learning can improve.
Command: python -m experiments.pretrain_tiny --out runs/tiny
    python -m experiments.pretrain_tiny --out runs/tiny-qwen3 --family qwen3_vl
Cost, base accuracies and how the headroom for reinforcement learning is made: experiments/README.md
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from experiments.pretraining_corpus import DEFAULT, CorpusConfig, corpus_texts, sample
from experiments.pretraining_loop import fit
from experiments.tiny_tokenizer import (
    IMAGE_PAD,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    train_tokenizer,
    write_processor,
)
from experiments.vision_pretraining import pretrain_vision
from othink_jax import compilation_cache
from othink_jax.checkpoint import hf
from othink_jax.checkpoint.tensors import in_memory
from othink_jax.data.processing import PadTo, Processor
from othink_jax.families import FAMILIES
from othink_jax.model.config import TextConfig, VisionConfig, VLMConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import VLM, merge, split
from othink_jax.types import Prompts

PAD = PadTo(prompt_tokens=64, image_slots=1, patches=64)
MAX_RESPONSE = 36  # tokens, the end-of-turn token included


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of the pre-training; the defaults made the embedded model."""

    out: Path  # directory of the finished model
    vision_steps: int = 3500  # updates of the first phase, see `vision_pretraining`
    vision_batch_size: int = 64  # images an update
    vision_learning_rate: float = 3e-3
    steps: int = 5000  # updates of the second phase, which trains the whole model
    batch_size: int = 32  # samples an update
    learning_rate: float = 1.5e-3
    seed: int = 0
    family: Literal["qwen2_vl", "qwen3_vl"] = "qwen2_vl"
    corpus: CorpusConfig = DEFAULT


def tiny_config(vocab_size: int, token_id: Any, family: str = "qwen2_vl") -> VLMConfig:
    """Two heads of 64 in both towers: few wide heads are the fastest on a CPU."""
    own: dict[str, Any] = {}
    width = 128
    # Of Qwen2-VL: an image has four rows and four columns, so both need frequencies that turn far
    # in four steps; the columns get the low ones too, for words that are far apart.
    section = (2, 3, 27)
    if family == "qwen3_vl":
        own = {"position_grid": 8, "deepstack": (1,)}
        section = (12, 10, 10)
        width = 112  # there is a second merger: so it is about as large
    return VLMConfig(
        model_type=family,
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=64,
            rope_theta=10_000.0,
            mrope_section=section,
            rms_norm_eps=1e-6,
            **FAMILIES[family].text,
        ),
        vision=VisionConfig(
            depth=3,
            embed_dim=width,
            num_heads=2,
            intermediate_size=384,
            hidden_size=128,
            **{**FAMILIES[family].vision, **own},
        ),
        tie_word_embeddings=True,
        image_token_id=token_id(IMAGE_PAD),
        video_token_id=token_id(VIDEO_PAD),
        vision_start_token_id=token_id(VISION_START),
        vision_end_token_id=token_id(VISION_END),
    )


def make_batch(
    config: PretrainConfig, processor: Processor, step: int
) -> tuple[Prompts, Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """The batch of one step, a function of the seed and the step alone."""
    encoded, responses = [], []
    for row in range(config.batch_size):
        rng = np.random.default_rng([config.seed, step, row])
        item = sample(rng, config=config.corpus, progress=step / config.steps)
        encoded.append(processor.encode(item.question, item.images))
        tokens = processor.tokenizer.encode(item.response, add_special_tokens=False)
        responses.append([*tokens, processor.tokenizer.eos_token_id])
    completions = np.full((len(responses), MAX_RESPONSE), processor.pad_token_id, np.int32)
    mask = np.zeros(completions.shape, bool)
    for row, tokens in enumerate(responses):
        completions[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = True
    return processor.batch(encoded, pad=PAD), completions, mask


def pretrain_language(
    graphdef: Any, params: dict[str, Any], processor: Processor, config: PretrainConfig
) -> dict[str, Any]:
    """`params` after the second phase, which trains the whole model on the corpus' responses."""

    def loss_fn(
        params: Any, prompts: Prompts, completions: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> Float[Array, ""]:
        logp = completion_logp(
            merge(graphdef, params), prompts, completions[:, None], chunk=completions.size
        )
        return -jnp.sum(logp[:, 0] * mask) / jnp.sum(mask)

    return fit(
        "language",
        params,
        loss_fn,
        lambda step: make_batch(config, processor, step),
        steps=config.steps,
        learning_rate=config.learning_rate,
    )


def pretrain(config: PretrainConfig) -> Path:
    """Train tokenizer, vision tower and model, write the model directory, return it."""
    compilation_cache.enable()
    config.out.mkdir(parents=True)
    start = time.perf_counter()
    tokenizer = train_tokenizer(corpus_texts(20_000, config.seed))
    write_processor(config.out, tokenizer)
    processor = Processor.from_pretrained(config.out)
    model_config = tiny_config(tokenizer.get_vocab_size(), tokenizer.token_to_id, config.family)
    graphdef, params = split(VLM(model_config, rngs=nnx.Rngs(config.seed)))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{count / 1e6:.2f} M parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
    params = pretrain_vision(
        graphdef,
        params,
        processor.image_settings,
        seed=config.seed,
        steps=config.vision_steps,
        batch_size=config.vision_batch_size,
        learning_rate=config.vision_learning_rate,
    )
    params = pretrain_language(graphdef, params, processor, config)
    hf.save(config.out, model_config, in_memory(model_config, params))
    record = dataclasses.asdict(config) | {"seconds": round(time.perf_counter() - start)}
    del record["out"]
    (config.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    return config.out


def main(arguments: Sequence[str] | None = None) -> None:
    print(pretrain(tyro.cli(PretrainConfig, args=arguments, description=__doc__)))


if __name__ == "__main__":
    main()
