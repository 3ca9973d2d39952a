"""Attention that holds all scores: what the other kernels are measured by."""

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from othink_jax.model.attention.masks import SelfMask, sees_past
from othink_jax.model.precision import wide_einsum
from othink_jax.types import Array

# Finite, so that a row of padding does not become inf - inf.
_MASKED = -1e30


def attention(
    query: Float[Array, "b s KV R H"],
    key: Float[Array, "b t KV H"],
    value: Float[Array, "b t KV H"],
    mask: SelfMask,
    *,
    first: Int[Array, ""] | int = 0,
) -> Float[Array, "b s KV R H"]:
    """Grouped-query attention; R query heads share each of KV key heads, which are not repeated.

    Args:
      query, key, value: projected and rotated.
      mask: of the t tokens.
      first: number of the first query among them.
    """
    scale = query.shape[-1] ** -0.5
    scores = wide_einsum("bskrh,btkh->bkrst", query * scale, key)
    seen = mask.dense(first, query.shape[1])
    scores = jnp.where(seen[:, None, None], scores, _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(query.dtype)
    return wide_einsum("bkrst,btkh->bskrh", weights, value).astype(query.dtype)


def shared_prefix_attention(
    query: Float[Array, "B G T KV R H"],
    prefix_key: Float[Array, "B P KV H"],
    prefix_value: Float[Array, "B P KV H"],
    prefix_real: Bool[Array, "B P"],
    key: Float[Array, "B G S KV H"],
    value: Float[Array, "B G S KV H"],
    *,
    first: Int[Array, ""] | int = 0,
) -> Float[Array, "B G T KV R H"]:
    """Attention of G completions over their one prompt and each over itself, in one softmax.

    The prompt's keys and values are read by all G completions and never repeated. One maximum and
    one denominator serve both parts, so the result is that of attention over their concatenation.

    Args:
      query, key, value: of the completions, projected and rotated.
      prefix_key, prefix_value: of the prompts.
      prefix_real: which of their tokens are no padding.
      first: number of the first query among the S tokens; each sees those up to itself.
    """
    query = query * query.shape[-1] ** -0.5
    to_prefix = wide_einsum("bgtkrh,bpkh->bkgtrp", query, prefix_key)
    to_own = wide_einsum("bgtkrh,bgskh->bkgtrs", query, key)
    own_seen = sees_past(first, query.shape[2], key.shape[2])
    to_prefix = jnp.where(prefix_real[:, None, None, None, None], to_prefix, _MASKED)
    to_own = jnp.where(own_seen[:, None], to_own, _MASKED)
    # The maximum cancels in the quotient, so it needs no gradient.
    top = jax.lax.stop_gradient(
        jnp.maximum(to_prefix.max(axis=-1, keepdims=True), to_own.max(axis=-1, keepdims=True))
    )
    to_prefix, to_own = jnp.exp(to_prefix - top), jnp.exp(to_own - top)
    total = to_prefix.sum(axis=-1) + to_own.sum(axis=-1)
    dtype = query.dtype
    # Wide, so that the two parts together are rounded once, as one product would be.
    mixed = wide_einsum("bkgtrp,bpkh->bgtkrh", to_prefix.astype(dtype), prefix_value)
    mixed += wide_einsum("bkgtrs,bgskh->bgtkrh", to_own.astype(dtype), value)
    return (mixed / jnp.moveaxis(total, 1, 3)[..., None]).astype(dtype)
