"""Reference attention, which materialises all scores; the other kernels are compared with it."""

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
    """Grouped-query attention: R query heads share each of the KV heads, without repeating it.

    Args:
      query, key, value: projections; queries and keys are rotated.
      mask: mask of the t tokens.
      first: index of the first query among the t tokens.
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
    """Attention of G completions to their shared prompt and each to itself, in one softmax.

    All G completions read the prompt's keys and values, which are never repeated. Both parts share
    one maximum and one denominator, so the result equals attention over their concatenation.

    Args:
      query, key, value: projections of the completions; queries and keys are rotated.
      prefix_key, prefix_value: the same of the prompts.
      prefix_real: false at padding of the prompts.
      first: index of the first query among the S tokens; each query sees the tokens up to itself.
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
    # At least f32, so that the sum of both parts is rounded once, as one product would be.
    mixed = wide_einsum("bkgtrp,bpkh->bgtkrh", to_prefix.astype(dtype), prefix_value)
    mixed += wide_einsum("bkgtrs,bgskh->bgtkrh", to_own.astype(dtype), value)
    return (mixed / jnp.moveaxis(total, 1, 3)[..., None]).astype(dtype)
