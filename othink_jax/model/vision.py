"""The vision tower: patches in, one vector per merge window out.

`VisionConfig` selects the parts of a model. Qwen2.5-VL (arXiv 2502.13923, section 2.1.1) uses
RMSNorm, a gated MLP, and attention inside square windows in all but a few layers. Qwen3-VL (arXiv
2511.21631) has learned positions. It also merges the states of some layers, each for one of the
first layers of the language model (DeepStack, arXiv 2406.04334).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from othink_jax.config import ComputeConfig
from othink_jax.model.attention import SelfMask, attention
from othink_jax.model.collectives import enter, local_heads
from othink_jax.model.config import Norm, VisionConfig, VisionMLP
from othink_jax.model.linear import Linear
from othink_jax.model.precision import dtypes_of
from othink_jax.model.rope import rotate, vision_angles
from othink_jax.model.stack import make_stack, run_stack, run_stack_keeping
from othink_jax.types import Array

# Not the fast variance E[x^2] - E[x]^2: it cancels if the mean of a state exceeds its spread. At a
# factor of a hundred it is off by 1e-3.
_NORMS: dict[Norm, Callable[..., nnx.Module]] = {
    "layer": functools.partial(nnx.LayerNorm, epsilon=1e-6, use_fast_variance=False),
    "rms": functools.partial(nnx.RMSNorm, epsilon=1e-6),
}
_MOST_WINDOWS = 2**15  # maximum number of windows along a side of an image


def quick_gelu(x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """x * sigmoid(1.702 x), the approximation that CLIP's towers use."""
    return x * jax.nn.sigmoid(1.702 * x)


_ACTIVATIONS: dict[VisionMLP, Callable[[Array], Array]] = {
    "quick_gelu": quick_gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


class VisionBlock(nnx.Module):
    """Pre-norm transformer layer over the patches of an image."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, compute: ComputeConfig) -> None:
        width, hidden = config.embed_dim, config.intermediate_size
        dtypes = dtypes_of(compute)
        linear: Callable[..., Linear] = functools.partial(Linear, rngs=rngs, **dtypes)
        self.compute = compute
        self.heads = config.num_heads
        self.norm1, self.norm2 = (_NORMS[config.norm](width, rngs=rngs, **dtypes) for _ in range(2))
        self.qkv = linear(width, 3 * width, cut="heads", heads=self.heads, parts=3)
        self.proj = linear(width, width, cut="inputs")
        self.mlp = config.mlp
        if self.mlp == "swiglu":
            self.gate = linear(width, hidden)
            self.up = linear(width, hidden)
            self.down = linear(hidden, width, cut="inputs")
        else:
            self.fc1 = linear(width, hidden)
            self.fc2 = linear(hidden, width, cut="inputs")

    def __call__(
        self,
        x: Float[Array, "N K D"],
        angles: Float[Array, "N K half"],
        mask: SelfMask,
    ) -> Float[Array, "N K D"]:
        qkv = self.qkv(enter(self.norm1(x))).reshape(*x.shape[:2], 3, local_heads(self.heads), -1)
        query, key, value = (qkv[:, :, i] for i in range(3))
        query, key = rotate(query, angles), rotate(key, angles)
        mixed = attention(query[:, :, :, None], key, value, mask, self.compute)
        x = x + self.proj(mixed.reshape(*x.shape[:2], -1))
        return x + self._mlp(enter(self.norm2(x)))

    def _mlp(self, x: Float[Array, "N K D"]) -> Float[Array, "N K D"]:
        if self.mlp == "swiglu":
            return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
        return self.fc2(_ACTIVATIONS[self.mlp](self.fc1(x)))


class Merger(nnx.Module):
    """Merges each window of patches into one token, for the states of an intermediate layer."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, compute: ComputeConfig) -> None:
        window = config.embed_dim * config.spatial_merge_size**2
        self.merger_norm = _NORMS[config.norm](window, rngs=rngs, **dtypes_of(compute))
        self.merger_fc1, self.merger_fc2 = _merger_layers(config, rngs=rngs, compute=compute)

    def __call__(self, x: Float[Array, "N K E"]) -> Float[Array, "N M D"]:
        width = self.merger_fc1.in_features
        x = self.merger_norm(x.reshape(len(x), -1, width))
        return _merged(x, self.merger_fc1, self.merger_fc2)


def _merger_layers(
    config: VisionConfig, *, rngs: nnx.Rngs, compute: ComputeConfig
) -> tuple[Linear, Linear]:
    window, dtypes = config.embed_dim * config.spatial_merge_size**2, dtypes_of(compute)
    first = Linear(window, window, rngs=rngs, **dtypes)
    return first, Linear(window, config.hidden_size, cut="inputs", rngs=rngs, **dtypes)


def _merged(x: Float[Array, "N M W"], first: Linear, second: Linear) -> Float[Array, "N M D"]:
    return second(jax.nn.gelu(first(enter(x)), approximate=False))


class VisionTower(nnx.Module):
    """Patch embedding, blocks, and the merger that turns each window of patches into one token."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        rngs: nnx.Rngs,
        compute: ComputeConfig,
    ) -> None:
        dtypes = dtypes_of(compute)
        self.config = config
        self.compute = compute
        self.patch_embed = Linear(
            config.patch_dim,
            config.embed_dim,
            use_bias=config.patch_bias,
            cut="nothing",
            rngs=rngs,
            **dtypes,
        )
        if config.position_grid is not None:
            shape = (config.position_grid**2, config.embed_dim)
            init = nnx.initializers.normal(0.02)
            self.position_table = nnx.Param(init(rngs.params(), shape, dtypes["param_dtype"]))
        self.layers = make_stack(
            lambda rngs: VisionBlock(config, rngs=rngs, compute=compute),
            config.depth,
            rngs,
            compute,
        )
        self.merger_norm = _NORMS[config.norm](config.embed_dim, rngs=rngs, **dtypes)
        self.merger_fc1, self.merger_fc2 = _merger_layers(config, rngs=rngs, compute=compute)
        if config.deepstack:
            self.deepstack = nnx.List(
                [Merger(config, rngs=rngs, compute=compute) for _ in config.deepstack]
            )

    def __call__(
        self,
        patches: Float[Array, "N K C"],
        positions: Int[Array, "N K 2"],
        mask: Bool[Array, "N K"],
    ) -> Float[Array, "N M F"]:
        """Features of the K / merge^2 windows of each image, in the order of the patches.

        F is D for the last layer's states, plus D for each layer of `config.deepstack`.
        """
        config = self.config
        # Padding may hold anything, even nan, and nan times zero is nan: keep it out of all sums.
        x = self.patch_embed(jnp.where(mask[..., None], patches, 0.0))
        if config.position_grid is not None:
            table = self.position_table[...]
            x += interpolated(table, config.position_grid, positions, mask).astype(x.dtype)
        angles = vision_angles(positions, config.embed_dim // config.num_heads)
        windows = config.windows
        if windows is None:
            inside, sees_all = None, None
        else:
            inside = _window_numbers(positions, windows.window_size // config.patch_size)
            sees_all = tuple(number in windows.full_layers for number in range(config.depth))

        def layer(block: VisionBlock, x: Array, sees_all: Any) -> tuple[Array, None]:
            own = None if inside is None else jnp.where(sees_all, 0, inside)
            return block(x, angles, SelfMask(real=mask, windows=own)), None

        remat = self.compute.remat
        if not config.deepstack:
            x, _ = run_stack(self.layers, x, layer, sees_all, remat=remat)
            return self._merge(x)
        x, states = run_stack_keeping(
            self.layers, x, layer, sees_all, layers=config.deepstack, remat=remat
        )
        merged = [merger(state) for merger, state in zip(self.deepstack, states, strict=True)]
        return jnp.concatenate([self._merge(x), *merged], axis=-1)

    def _merge(self, x: Float[Array, "N K E"]) -> Float[Array, "N M D"]:
        x = self.merger_norm(x)
        x = x.reshape(x.shape[0], -1, self.merger_fc1.in_features)
        return _merged(x, self.merger_fc1, self.merger_fc2)


def interpolated(
    table: Float[Array, "S E"],
    side: int,
    positions: Int[Array, "N K 2"],
    mask: Bool[Array, "N K"],
) -> Float[Array, "N K E"]:
    """Learned positions of patches, in f32: the table resized bilinearly to each image.

    The corners of the table align with the corners of the image, whatever its size.

    Args:
      table: embeddings of a square grid of positions, row by row; S = side^2.
      side: side of the grid.
      positions: row and column of each patch.
      mask: true where a patch is real.
    """
    real = mask[..., None]
    last = jnp.where(real, positions, 0).max(axis=1, keepdims=True)  # row, column of last patch
    at = jnp.where(real, positions, 0) * (side - 1) / jnp.maximum(last, 1)  # f32
    low = jnp.clip(jnp.floor(at).astype(jnp.int32), 0, side - 1)
    high = jnp.minimum(low + 1, side - 1)
    share = at - low  # weight of the higher neighbour
    rows, columns = ((low[..., axis], high[..., axis]) for axis in (0, 1))
    weights = [(1 - share[..., axis], share[..., axis]) for axis in (0, 1)]
    total = jnp.zeros((*mask.shape, table.shape[-1]), jnp.float32)
    for row, row_weight in zip(rows, weights[0], strict=True):
        for column, column_weight in zip(columns, weights[1], strict=True):
            corner = table[row * side + column].astype(jnp.float32)
            total += corner * (row_weight * column_weight)[..., None]
    return total


def _window_numbers(positions: Int[Array, "N K 2"], side: int) -> Int[Array, "N K"]:
    """Index of the window that holds each patch; windows are `side` by `side` patches."""
    window = positions // side
    return window[..., 0] * _MOST_WINDOWS + window[..., 1]
