"""Attention: inside an image, inside a prompt, and of completions over prompt and own past.

Scores and softmax are f32. Masks are boolean, true where a query may look. A query whose mask is
all false (padding) gets the mean of the values: finite, with finite gradients, and never used.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from othink_jax.model.precision import wide_einsum
from othink_jax.types import Array

# Finite, so that a row of padding does not become inf - inf.
_MASKED = -1e30


def attention(
    query: Float[Array, "b s KV R H"],
    key: Float[Array, "b t KV H"],
    value: Float[Array, "b t KV H"],
    mask: Bool[Array, "#b #s t"],
) -> Float[Array, "b s KV R H"]:
    """Grouped-query attention; R query heads share each of KV key heads, which are not repeated."""
    scale = query.shape[-1] ** -0.5
    scores = wide_einsum("bskrh,btkh->bkrst", query * scale, key)
    scores = jnp.where(mask[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    return jnp.einsum("bkrst,btkh->bskrh", weights, value)


def shared_prefix_attention(
    query: Float[Array, "B G T KV R H"],
    prefix_key: Float[Array, "B P KV H"],
    prefix_value: Float[Array, "B P KV H"],
    prefix_mask: Bool[Array, "B P"],
    key: Float[Array, "B G S KV H"],
    value: Float[Array, "B G S KV H"],
    mask: Bool[Array, "T S"],
) -> Float[Array, "B G T KV R H"]:
    """Attention of G completions over their one prompt and each over itself, in one softmax.

    The prompt's keys and values are read by all G completions and never repeated. One maximum and
    one denominator serve both parts, so the result is that of attention over their concatenation.
    """
    query = query * query.shape[-1] ** -0.5
    to_prefix = wide_einsum("bgtkrh,bpkh->bkgtrp", query, prefix_key)
    to_own = wide_einsum("bgtkrh,bgskh->bkgtrs", query, key)
    to_prefix = jnp.where(prefix_mask[:, None, None, None, None], to_prefix, _MASKED)
    to_own = jnp.where(mask[:, None], to_own, _MASKED)
    # The maximum cancels in the quotient, so it needs no gradient.
    top = jax.lax.stop_gradient(
        jnp.maximum(to_prefix.max(axis=-1, keepdims=True), to_own.max(axis=-1, keepdims=True))
    )
    to_prefix, to_own = jnp.exp(to_prefix - top), jnp.exp(to_own - top)
    total = to_prefix.sum(axis=-1) + to_own.sum(axis=-1)
    dtype = value.dtype
    # Wide, so that the two parts together are rounded once, as one product would be.
    mixed = wide_einsum("bkgtrp,bpkh->bgtkrh", to_prefix.astype(dtype), prefix_value)
    mixed += wide_einsum("bkgtrs,bgskh->bgtkrh", to_own.astype(dtype), value)
    return (mixed / jnp.moveaxis(total, 1, 3)[..., None]).astype(dtype)
