"""Shapes of the benchmarks: a model with random weights, a batch of prompts, and its FLOPs."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx

import othink_jax
from othink_jax.config import ComputeConfig, Remat, ScanLayers
from othink_jax.families import from_hf
from othink_jax.model.config import TextConfig, VisionConfig, VLMConfig
from othink_jax.model.vlm import VLM, split
from othink_jax.types import GRPOBatch, Prompts

_TINY = Path(othink_jax.__file__).parent / "assets" / "tiny" / "config.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Shapes of one update: one image per prompt, every completion of full length."""

    model: VLMConfig
    prompts: int  # B
    group: int  # G completions per prompt
    prompt_tokens: int  # P
    image: tuple[int, int]  # rows and columns of merge windows, each one prompt token
    length: int  # T tokens of a completion
    dtype: Literal["float32", "bfloat16"]  # of the computation and of the reference
    mu_dtype: Literal["float32", "bfloat16"] = "float32"  # of Adam's mean
    chunk: int = 1024  # tokens whose logits exist at the same time
    micro_batches: int = 1
    remat: Remat = "none"
    scan_layers: ScanLayers = "off"

    def record(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def presets() -> dict[str, Shapes]:
    """Presets of the command line, by name.

    `cpu`: the embedded model; the image takes as large a part of the prompt as in real ones.
    `gpu_2b`: Qwen2-VL-2B. `gpu_smoke`: the embedded model on the same path, to see that it runs.
    """
    tiny = from_hf(json.loads(_TINY.read_text()))
    gpu_2b = Shapes(
        model=qwen2_vl_2b(),
        prompts=8,
        group=8,
        prompt_tokens=600,
        image=(20, 25),
        length=256,
        dtype="bfloat16",
        mu_dtype="bfloat16",
        # In one batch the naive mode does not fit: 64 images of 2000 patches, 16 heads of scores.
        micro_batches=4,
        remat="layer",
        scan_layers="on",
    )
    return {
        "cpu": Shapes(
            model=tiny,
            prompts=4,
            group=8,
            prompt_tokens=150,
            image=(8, 16),
            length=64,
            dtype="float32",
        ),
        "gpu_2b": gpu_2b,
        "gpu_smoke": dataclasses.replace(
            gpu_2b, model=tiny, prompt_tokens=40, image=(4, 5), length=16
        ),
    }


def qwen2_vl_2b() -> VLMConfig:
    """Configuration of Qwen/Qwen2-VL-2B-Instruct."""
    return VLMConfig(
        model_type="qwen2_vl",
        text=TextConfig(
            vocab_size=151_936,
            hidden_size=1536,
            intermediate_size=8960,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            head_dim=128,
            rope_theta=1_000_000.0,
            mrope_section=(16, 24, 24),
            rms_norm_eps=1e-6,
        ),
        vision=VisionConfig(
            depth=32, embed_dim=1280, intermediate_size=5120, num_heads=16, hidden_size=1536
        ),
        tie_word_embeddings=True,
        image_token_id=151_655,
        video_token_id=151_656,
        vision_start_token_id=151_652,
        vision_end_token_id=151_653,
    )


def make_model(shapes: Shapes) -> tuple[Any, dict[str, Any]]:
    """Graphdef and random float32 parameters, made on the device."""

    def make() -> VLM:
        return VLM(
            shapes.model,
            rngs=nnx.Rngs(0),
            compute=ComputeConfig(
                dtype=shapes.dtype,
                param_dtype="float32",
                scan_layers=shapes.scan_layers,
                remat=shapes.remat,
            ),
        )

    graphdef, _ = split(nnx.eval_shape(make))
    return graphdef, jax.jit(lambda: split(make())[1])()


def make_batch(shapes: Shapes) -> GRPOBatch:
    """Random tokens, pixels and advantages; `ref_logp` is zero, to be replaced."""
    rng = np.random.default_rng(0)
    B, P, config = shapes.prompts, shapes.prompt_tokens, shapes.model
    (rows, columns), merge = shapes.image, config.vision.spatial_merge_size
    windows = rows * columns
    image_index = np.full(P, -1, np.int32)
    image_index[1 : 1 + windows] = np.arange(windows)
    row, column = np.divmod(np.arange(windows), columns)
    after = P - windows - 1
    start = 1 + max(rows, columns)  # first position after the image, see `Prompts.next_position`
    positions = np.concatenate(
        [
            np.zeros((3, 1)),
            1 + np.stack([0 * row, row, column]),
            np.tile(start + np.arange(after), (3, 1)),
        ],
        axis=1,
    )
    inside = np.stack(np.divmod(np.arange(merge**2), merge), axis=-1)
    corner = merge * np.stack([row, column], axis=-1)
    patch_positions = (corner[:, None] + inside).reshape(-1, 2)
    completions = (B, shapes.group, shapes.length)

    def same(array: np.ndarray, *lead: int) -> np.ndarray:
        return np.tile(array.astype(np.int32), (*lead, *[1] * array.ndim))

    ordinary = np.setdiff1d(np.arange(config.text.vocab_size), special_tokens(config))
    tokens = rng.choice(ordinary, (B, P))
    tokens[:, 1 : 1 + windows] = config.image_token_id
    return GRPOBatch(
        prompts=Prompts(
            tokens=tokens.astype(np.int32),
            mask=np.ones((B, P), bool),
            positions=same(positions, B),
            image_index=same(image_index, B),
            patches=rng.normal(size=(B, 1, windows * merge**2, config.vision.patch_dim)).astype(
                np.float32
            ),
            patch_positions=same(patch_positions, B, 1),
            patch_mask=np.ones((B, 1, windows * merge**2), bool),
        ),
        completions=rng.choice(ordinary, completions).astype(np.int32),
        mask=np.ones(completions, bool),
        advantages=rng.normal(size=completions[:2]).astype(np.float32),
        ref_logp=np.zeros(completions, np.float32),
    )


def special_tokens(config: VLMConfig) -> tuple[int, ...]:
    """Tokens that delimit an image or stand for one: no text has them."""
    return (
        config.image_token_id,
        config.video_token_id,
        config.vision_start_token_id,
        config.vision_end_token_id,
    )


def unique_flops(shapes: Shapes) -> float:
    """FLOPs of the matrix products in reference and update, each computed once.

    Extra work through repeated prompts, remat or masked scores of causal attention is not counted.
    Reference and policy make one forward pass each, and a backward pass costs two.
    """
    text, vision = shapes.model.text, shapes.model.vision
    B, G, P, T = shapes.prompts, shapes.group, shapes.prompt_tokens, shapes.length
    width, kv_width = text.hidden_size, text.num_key_value_heads * text.head_dim
    weights = 2 * width * (width + kv_width) + 3 * width * text.intermediate_size
    tokens = B * (P + G * (T - 1))
    pairs = B * (P * (P + 1) / 2 + G * (T - 1) * (P + T / 2))
    flops = text.num_hidden_layers * (2 * weights * tokens + 4 * width * pairs)
    flops += 2 * width * text.vocab_size * B * G * T

    area = vision.spatial_merge_size**2
    windows = shapes.image[0] * shapes.image[1]
    patches, window = windows * area, vision.embed_dim * area
    weights = (4 * vision.embed_dim + 2 * vision.intermediate_size) * vision.embed_dim
    flops += B * vision.depth * (2 * weights * patches + 4 * vision.embed_dim * patches**2)
    flops += B * 2 * vision.patch_dim * vision.embed_dim * patches
    flops += B * 2 * (window**2 + window * vision.hidden_size) * windows
    return 4 * flops
