"""The vision tower of Qwen2-VL: patches in, one vector a merge window out."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Bool, Float, Int

from othink_jax.model.attention import attention
from othink_jax.model.config import VisionConfig
from othink_jax.model.linear import Linear
from othink_jax.model.rope import rotate, vision_angles
from othink_jax.model.stack import Remat, make_stack, run_stack
from othink_jax.types import Array

# Not the fast variance, E[x^2] - E[x]^2: it cancels where a state's mean outweighs its spread, and
# is off by 1e-3 at a hundred times.
_layer_norm = functools.partial(nnx.LayerNorm, epsilon=1e-6, use_fast_variance=False)


def quick_gelu(x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """x * sigmoid(1.702 x), the approximation that CLIP's towers use."""
    return x * jax.nn.sigmoid(1.702 * x)


class VisionBlock(nnx.Module):
    """Pre-norm transformer layer; every patch sees all patches of its image."""

    def __init__(self, config: VisionConfig, *, rngs: nnx.Rngs, **dtypes: Any) -> None:
        width, hidden = config.embed_dim, config.embed_dim * config.mlp_ratio
        linear: Callable[..., Linear] = functools.partial(Linear, rngs=rngs, **dtypes)
        self.heads = config.num_heads
        self.norm1 = _layer_norm(width, rngs=rngs, **dtypes)
        self.norm2 = _layer_norm(width, rngs=rngs, **dtypes)
        self.qkv = linear(width, 3 * width)
        self.proj = linear(width, width)
        self.fc1 = linear(width, hidden)
        self.fc2 = linear(hidden, width)

    def __call__(
        self, x: Float[Array, "N K D"], angles: Float[Array, "N K half"], mask: Bool[Array, "N K"]
    ) -> Float[Array, "N K D"]:
        qkv = self.qkv(self.norm1(x)).reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = (qkv[:, :, i] for i in range(3))
        query, key = rotate(query, angles), rotate(key, angles)
        mixed = attention(query[:, :, :, None], key, value, mask[:, None])
        x = x + self.proj(mixed.reshape(x.shape))
        return x + self.fc2(quick_gelu(self.fc1(self.norm2(x))))


class VisionTower(nnx.Module):
    """Patch embedding, blocks, and the merger that joins each 2x2 window into one token."""

    def __init__(
        self,
        config: VisionConfig,
        *,
        rngs: nnx.Rngs,
        scan_layers: bool,
        remat: Remat,
        **dtypes: Any,
    ) -> None:
        window = config.embed_dim * config.spatial_merge_size**2
        linear: Callable[..., Linear] = functools.partial(Linear, rngs=rngs, **dtypes)
        self.config = config
        self.remat: Remat = remat
        self.patch_embed = linear(config.patch_dim, config.embed_dim, use_bias=False)
        self.layers = make_stack(
            lambda rngs: VisionBlock(config, rngs=rngs, **dtypes), config.depth, rngs, scan_layers
        )
        self.merger_norm = _layer_norm(config.embed_dim, rngs=rngs, **dtypes)
        self.merger_fc1 = linear(window, window)
        self.merger_fc2 = linear(window, config.hidden_size)

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

        def layer(block: VisionBlock, x: Array, _: None) -> tuple[Array, None]:
            return block(x, angles, mask), None

        x, _ = run_stack(self.layers, x, layer, remat=self.remat)
        x = self.merger_norm(x)
        x = x.reshape(x.shape[0], -1, config.embed_dim * config.spatial_merge_size**2)
        return self.merger_fc2(jax.nn.gelu(self.merger_fc1(x), approximate=False))
