"""NVIDIA's cuDNN attention through JAX, for 16-bit floats: scores stay on the chip.

Prompt and completion share one call. Two calls joined by their log-sum-exps would have wrong
gradients, since JAX's cuDNN attention has no gradient for the log-sum-exp.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from othink_jax.model.attention.masks import SelfMask, sees_past
from othink_jax.model.attention.prefix import join_prefix
from othink_jax.types import Array


def attention(
    query: Float[Array, "b s KV R H"],
    key: Float[Array, "b s KV H"],
    value: Float[Array, "b s KV H"],
    mask: SelfMask,
) -> Float[Array, "b s KV R H"]:
    """As `reference.attention`. Padding must be on the right."""
    windowed = mask.windows is not None
    mixed = jax.nn.dot_product_attention(
        query.reshape(*query.shape[:2], -1, query.shape[-1]),
        key,
        value,
        mask=mask.dense()[:, None] if windowed else None,
        is_causal=mask.causal and not windowed,
        # At least one, so that an image that is all padding gets a finite output.
        key_value_seq_lengths=None if windowed else jnp.maximum(mask.real.sum(axis=1), 1),
        implementation="cudnn",
    )
    return mixed.reshape(query.shape)


def shared_prefix_attention(
    query: Float[Array, "B G T KV R H"],
    prefix_key: Float[Array, "B P KV H"],
    prefix_value: Float[Array, "B P KV H"],
    prefix_real: Bool[Array, "B P"],
    key: Float[Array, "B G T KV H"],
    value: Float[Array, "B G T KV H"],
) -> Float[Array, "B G T KV R H"]:
    """As `reference.shared_prefix_attention`.

    The completions of a prompt are laid out as heads, since they share one mask [T, P + T].
    """
    batch, group, length, kv_heads, shared, size = query.shape
    # With a mask, cuDNN needs even numbers of queries and keys.
    query, key, value = (_even(x, axis=2) for x in (query, key, value))
    prefix_key, prefix_value, prefix_real = (
        _even(x, axis=1) for x in (prefix_key, prefix_value, prefix_real)
    )
    count, keys = query.shape[2], prefix_real.shape[1]
    prefix = jnp.broadcast_to(prefix_real[:, None], (batch, count, keys))
    own = jnp.broadcast_to(sees_past(0, count, count), (batch, count, count))

    def as_heads(x: Array) -> Float[Array, "B t GN H"]:
        return jnp.moveaxis(x, 1, 2).reshape(batch, x.shape[2], -1, size)

    mixed = jax.nn.dot_product_attention(
        as_heads(query),
        as_heads(join_prefix(prefix_key, key)),
        as_heads(join_prefix(prefix_value, value)),
        mask=jnp.concatenate([prefix, own], axis=2)[:, None],
        implementation="cudnn",
    )
    mixed = mixed[:, :length].reshape(batch, length, group, kv_heads, shared, size)
    return jnp.moveaxis(mixed, 2, 1)


def _even(x: Array, *, axis: int) -> Array:
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, x.shape[axis] % 2)
    return jnp.pad(x, padding)
