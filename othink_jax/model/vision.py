"""The vision towers of Qwen2-VL and Qwen2.5-VL: patches in, one vector a merge window out.

Qwen2.5-VL (arXiv 2502.13923, section 2.1.1) norms without mean, gates its MLP, and lets all but a
few layers attend inside square windows of the image only.
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
from othink_jax.model.config import VisionConfig
from othink_jax.model.linear import Linear
from othink_jax.model.precision import dtypes_of
from othink_jax.model.rope import rotate, vision_angles
from othink_jax.model.stack import make_stack, run_stack
from othink_jax.types import Array

# Not the fast variance, E[x^2] - E[x]^2: it cancels where a state's mean outweighs its spread, and
# is off by 1e-3 at a hundred times.
_layer_norm = functools.partial(nnx.LayerNorm, epsilon=1e-6, use_fast_variance=False)
_rms_norm = functools.partial(nnx.RMSNorm, epsilon=1e-6)


_MOST_WINDOWS = 2**15  # along a side of an image


def quick_gelu(x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """x * sigmoid(1.702 x), the approximation that CLIP's towers use."""
    return x * jax.nn.sigmoid(1.702 * x)


def _norm(config: VisionConfig) -> Callable[..., nnx.Module]:
    return _layer_norm if config.windows is None else _rms_norm


class VisionBlock(nnx.Module):
    """Pre-norm transformer layer over the patches of an image."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, compute: ComputeConfig) -> None:
        width, hidden = config.embed_dim, config.intermediate_size
        dtypes = dtypes_of(compute)
        linear: Callable[..., Linear] = functools.partial(Linear, rngs=rngs, **dtypes)
        self.compute = compute
        self.heads = config.num_heads
        self.norm1 = _norm(config)(width, rngs=rngs, **dtypes)
        self.norm2 = _norm(config)(width, rngs=rngs, **dtypes)
        self.qkv = linear(width, 3 * width, cut="heads", heads=self.heads, parts=3)
        self.proj = linear(width, width, cut="inputs")
        self.gated = config.windows is not None
        if self.gated:
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
        if self.gated:
            return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
        return self.fc2(quick_gelu(self.fc1(x)))


class VisionTower(nnx.Module):
    """Patch embedding, blocks, and the merger that joins each 2x2 window into one token."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        rngs: nnx.Rngs,
        compute: ComputeConfig,
    ) -> None:
        window = config.embed_dim * config.spatial_merge_size**2
        dtypes = dtypes_of(compute)
        linear: Callable[..., Linear] = functools.partial(Linear, rngs=rngs, **dtypes)
        self.config = config
        self.compute = compute
        self.patch_embed = linear(config.patch_dim, config.embed_dim, use_bias=False, cut="nothing")
        self.layers = make_stack(
            lambda rngs: VisionBlock(config, rngs=rngs, compute=compute),
            config.depth,
            rngs,
            compute,
        )
        self.merger_norm = _norm(config)(config.embed_dim, rngs=rngs, **dtypes)
        self.merger_fc1 = linear(window, window)
        self.merger_fc2 = linear(window, config.hidden_size, cut="inputs")

    def __call__(
        self,
        patches: Float[Array, "N K C"],
        positions: Int[Array, "N K 2"],
        mask: Bool[Array, "N K"],
    ) -> Float[Array, "N M D"]:
        """Features of the K / merge^2 windows of each image, in the order of the patches."""
        config = self.config
        # Padding may hold anything, even nan; nothing of it may enter a sum, not even times zero.
        x = self.patch_embed(jnp.where(mask[..., None], patches, 0.0))
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

        x, _ = run_stack(self.layers, x, layer, sees_all, remat=self.compute.remat)
        x = self.merger_norm(x)
        x = x.reshape(x.shape[0], -1, config.embed_dim * config.spatial_merge_size**2)
        return self.merger_fc2(jax.nn.gelu(self.merger_fc1(enter(x)), approximate=False))


def _window_numbers(positions: Int[Array, "N K 2"], side: int) -> Int[Array, "N K"]:
    """Number of the window of `side` patches a side that each patch stands in, from the corner."""
    window = positions // side
    return window[..., 0] * _MOST_WINDOWS + window[..., 1]
