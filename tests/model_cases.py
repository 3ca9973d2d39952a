"""Small shapes of every family, random weights and random prompts for the tests of the model."""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.load import abstract_model
from othink_jax.checkpoint.tensors import cast, in_memory, read_params
from othink_jax.config import ComputeConfig, ScanLayers
from othink_jax.data.images import patch_positions
from othink_jax.data.positions import mrope_positions
from othink_jax.families import FAMILIES
from othink_jax.model.config import TextConfig, VisionConfig, VLMConfig
from othink_jax.model.vlm import merge
from othink_jax.types import Prompts

VOCAB, IMAGE, VIDEO, VISION_START, VISION_END = 100, 90, 91, 92, 93

Grid = tuple[int, int]  # rows and columns of merge windows


def make_config(
    *,
    heads: int = 4,
    kv_heads: int = 2,
    section: tuple[int, int, int] = (2, 3, 3),
    depth: int = 2,
    vision_depth: int = 2,
    tied: bool = True,
    text: dict[str, float] | None = None,
    vision: dict[str, Any] | None = None,
    family: str = "qwen2_vl",
) -> VLMConfig:
    """A small shape of a family; the width follows from the heads and the sections."""
    width = heads * 2 * sum(section)
    parts = FAMILIES[family]
    text_config = TextConfig(
        vocab_size=VOCAB,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=2 * sum(section),
        rope_theta=10_000.0,
        mrope_section=section,
        rms_norm_eps=1e-6,
        **parts.text,
    )
    vision_config = VisionConfig(
        depth=vision_depth,
        embed_dim=32,
        num_heads=2,
        intermediate_size=64,
        hidden_size=width,
        patch_size=4,
        **parts.vision,
    )
    own: dict[str, Any] = {"position_grid": 3, "deepstack": (0,)} if family == "qwen3_vl" else {}
    return VLMConfig(
        model_type=family,
        text=dataclasses.replace(text_config, **(text or {})),
        vision=dataclasses.replace(vision_config, **own | (vision or {})),
        tie_word_embeddings=tied,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tokens_per_second=2 if family == "qwen2_5_vl" else None,
    )


# The same for all seeds; tracing it is most of what drawing small weights costs.
_abstract = functools.cache(abstract_model)


def random_params(config: VLMConfig, *, scan_layers: ScanLayers = "off", seed: int = 0):
    """Static part and weights of order 1 / sqrt(inputs), none of them zero or one."""
    graphdef, abstract = _abstract(config, ComputeConfig(scan_layers=scan_layers))
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = rng.normal(size=leaf.shape)
        if path[-1].key == "kernel":
            noise /= np.sqrt(leaf.shape[-2])
        elif path[-1].key == "embedding":
            noise /= np.sqrt(leaf.shape[-1])
        else:
            noise = 0.3 * noise + (path[-1].key == "scale")
        return jnp.asarray(noise, jnp.float32)

    return graphdef, jax.tree.map_with_path(draw, abstract)


def save_hub(directory, config: VLMConfig, params, **options) -> None:
    """Write parameters in the hub's layout."""
    hf.save(directory, config, in_memory(config, params), **options)


def load_hub(directory, config: VLMConfig, dtype="float32"):
    """Read parameters in the hub's layout."""
    return read_params(cast(hf.stored_tensors(directory, config), dtype))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One prompt, not padded."""

    tokens: np.ndarray
    grids: tuple[Grid, ...]
    pixels: tuple[np.ndarray, ...]  # patches of each image, in merge-window order


def random_case(
    rng: np.random.Generator, config: VLMConfig, grids: Sequence[Grid], words: int = 3
) -> Case:
    """Some words before, between and after the images."""
    tokens = list(rng.integers(0, 80, words))
    pixels = []
    for rows, columns in grids:
        tokens += [VISION_START, *[IMAGE] * (rows * columns), VISION_END]
        tokens += list(rng.integers(0, 80, int(rng.integers(0, 3))))
        patches = rows * columns * config.vision.spatial_merge_size**2
        pixels.append(rng.normal(size=(patches, config.vision.patch_dim)).astype(np.float32))
    tokens += list(rng.integers(0, 80, words))
    return Case(tokens=np.asarray(tokens, np.int32), grids=tuple(grids), pixels=tuple(pixels))


def to_prompts(
    config: VLMConfig,
    cases: Sequence[Case],
    *,
    tokens: int | None = None,
    slots: int | None = None,
    patches: int | None = None,
) -> Prompts:
    """Pad to the largest, or to what is asked for; all of the padding holds garbage."""
    merge = config.vision.spatial_merge_size
    B = len(cases)
    P = tokens or max(len(case.tokens) for case in cases)
    slot_count = max(len(case.grids) for case in cases) if slots is None else slots
    sizes = [len(image) for case in cases for image in case.pixels]
    K = patches or max(sizes, default=0)
    made = Prompts(
        tokens=np.full((B, P), 7, np.int32),
        mask=np.zeros((B, P), bool),
        positions=np.full((B, 3, P), 77, np.int32),
        image_index=np.full((B, P), -1, np.int32),
        patches=np.full((B, slot_count, K, config.vision.patch_dim), np.nan, np.float32),
        patch_positions=np.full((B, slot_count, K, 2), 5, np.int32),
        patch_mask=np.zeros((B, slot_count, K), bool),
    )
    for row, case in enumerate(cases):
        count = len(case.tokens)
        shown = case.tokens == config.image_token_id
        made.tokens[row, :count] = case.tokens
        made.mask[row, :count] = True
        made.positions[row, :, :count] = mrope_positions(shown, [(1, *grid) for grid in case.grids])
        index = [
            slot * K // merge**2 + np.arange(rows * columns)
            for slot, (rows, columns) in enumerate(case.grids)
        ]
        made.image_index[row, :count][shown] = np.concatenate([*index, []])
        for slot, (pixels, (rows, columns)) in enumerate(zip(case.pixels, case.grids, strict=True)):
            made.patches[row, slot, : len(pixels)] = pixels
            made.patch_mask[row, slot, : len(pixels)] = True
            made.patch_positions[row, slot, : len(pixels)] = patch_positions(
                rows * merge, columns * merge, merge
            )
    return jax.tree.map(jnp.asarray, made)


def close(actual, expected, tolerance, message=""):
    """Equal within `tolerance`; nan equals nothing."""
    np.testing.assert_allclose(
        np.asarray(actual),
        np.asarray(expected),
        rtol=0,
        atol=tolerance,
        equal_nan=False,
        err_msg=message,
    )


def layers_and_logits(
    graphdef: Any, params: Any, prompts: Prompts
) -> tuple[dict[str, list[jax.Array]], jax.Array]:
    """State after each layer (unrolled) of both towers, and the logits of every token.

    Each layer is compiled by itself: as one program, XLA on a CPU holds all bf16 weights in f32.
    """
    states: dict[str, list[jax.Array]] = {"vision": [], "text": []}

    def run(tower, stack, x, apply, extras=None, *, remat):
        layer_of = nnx.split(stack[0])[0]
        step = jax.jit(lambda weights, x, extra: apply(nnx.merge(layer_of, weights), x, extra))
        outputs = []
        for layer, extra in zip(stack, extras or [None] * len(stack), strict=True):
            x, output = step(nnx.split(layer)[1], x, extra)
            states[tower].append(x)
            outputs.append(output)
        return x, tuple(outputs)

    with contextlib.ExitStack() as patches:
        for tower in states:
            name = f"othink_jax.model.{tower}.run_stack"
            patches.enter_context(mock.patch(name, functools.partial(run, tower)))
        model = merge(graphdef, params)
        logits = model.logits(model.prefill(prompts)[0])
    return states, logits
