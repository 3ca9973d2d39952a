"""Pre-train the embedded Qwen2-VL from scratch.

Claim: a Qwen2-VL of 1.5 M parameters learns, in minutes on a CPU, to describe, count, locate and
    compare what it sees and to read small diagrams, well enough to be an instruct model that
    reinforcement learning can improve.
Command: python -m experiments.pretrain_tiny --out runs/tiny
Cost, base accuracies and how the headroom for reinforcement learning is made: experiments/README.md
"""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from experiments.pretraining_corpus import DEFAULT, CorpusConfig, corpus_texts, sample
from experiments.tiny_tokenizer import (
    IMAGE_PAD,
    VIDEO_PAD,
    VISION_END,
    VISION_START,
    train_tokenizer,
    write_processor,
)
from othink_jax import compilation_cache
from othink_jax.checkpoint import hf
from othink_jax.data.processing import PadTo, Processor
from othink_jax.model.config import Qwen2VLConfig, TextConfig, VisionConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.qwen2_vl import Qwen2VL, merge, split
from othink_jax.types import Prompts

PAD = PadTo(prompt_tokens=64, image_slots=1, patches=64)
MAX_RESPONSE = 36  # tokens, the end-of-turn token included


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of the pre-training; the defaults made the embedded model."""

    out: Path  # directory of the finished model
    steps: int = 6000  # updates
    batch_size: int = 32  # samples an update
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    decay_fraction: float = 0.3  # share of the updates in which the rate falls linearly to 0
    seed: int = 0
    save_every: int = 1000  # steps between intermediate saves (`out` beside `-step-N`)
    corpus: CorpusConfig = DEFAULT


def tiny_config(vocab_size: int, token_id: Any) -> Qwen2VLConfig:
    """Two heads of 64 in both towers: few wide heads are the fastest on a CPU."""
    return Qwen2VLConfig(
        text=TextConfig(
            vocab_size=vocab_size,
            hidden_size=128,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            rope_theta=10_000.0,
            mrope_section=(8, 12, 12),
            rms_norm_eps=1e-6,
        ),
        vision=VisionConfig(depth=3, embed_dim=128, num_heads=2, mlp_ratio=3, hidden_size=128),
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


def batches(config: PretrainConfig, processor: Processor) -> Iterator[Any]:
    """Batches in order, the next ones made while the current one is learned."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = [pool.submit(make_batch, config, processor, step) for step in range(2)]
        for step in range(config.steps):
            yield ahead.pop(0).result()
            ahead.append(pool.submit(make_batch, config, processor, step + 2))


def make_optimizer(config: PretrainConfig) -> optax.GradientTransformation:
    """Adam with warm-up, a long constant rate and a linear decay to 0."""
    decay = round(config.steps * config.decay_fraction)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps),
            optax.constant_schedule(config.learning_rate),
            optax.linear_schedule(config.learning_rate, 0.0, decay),
        ],
        [config.warmup_steps, config.steps - decay],
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))


def pretrain(config: PretrainConfig) -> Path:
    """Train tokenizer and model, write the model directory, return it."""
    compilation_cache.enable()
    config.out.mkdir(parents=True)
    tokenizer = train_tokenizer(corpus_texts(20_000, config.seed))
    write_processor(config.out, tokenizer)
    processor = Processor.from_pretrained(config.out)
    model_config = tiny_config(tokenizer.get_vocab_size(), tokenizer.token_to_id)
    graphdef, params = split(Qwen2VL(model_config, rngs=nnx.Rngs(config.seed)))
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    print(f"{count / 1e6:.2f} M parameters, {tokenizer.get_vocab_size()} tokens", flush=True)
    tx = make_optimizer(config)

    def loss_fn(
        params: Any, prompts: Prompts, completions: Int[Array, "B T"], mask: Bool[Array, "B T"]
    ) -> Float[Array, ""]:
        logp = completion_logp(
            merge(graphdef, params), prompts, completions[:, None], chunk=completions.size
        )
        return -jnp.sum(logp[:, 0] * mask) / jnp.sum(mask)

    @jax.jit(donate_argnums=(0, 1))
    def train_step(params: Any, opt_state: Any, *batch: Any) -> tuple[Any, Any, Array]:
        loss, gradient = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses, start = tx.init(params), [], time.perf_counter()
    for step, batch in enumerate(batches(config, processor), start=1):
        params, opt_state, loss = train_step(params, opt_state, *batch)
        losses.append(loss)
        if step % 100 == 0:
            seconds = time.perf_counter() - start
            recent = float(jnp.mean(jnp.stack(losses[-100:])))
            rate = step * config.batch_size / seconds
            print(f"step {step}  loss {recent:.4f}  {rate:.0f} samples/s", flush=True)
        if step % config.save_every == 0 and step < config.steps:
            hf.save(config.out.with_name(f"{config.out.name}-step-{step}"), model_config, params)
    hf.save(config.out, model_config, params)
    record = dataclasses.asdict(config) | {"seconds": time.perf_counter() - start}
    (config.out / "pretraining.json").write_text(json.dumps(record, indent=2, default=str) + "\n")
    return config.out


def main(arguments: Sequence[str] | None = None) -> None:
    print(pretrain(tyro.cli(PretrainConfig, args=arguments, description=__doc__)))


if __name__ == "__main__":
    main()
