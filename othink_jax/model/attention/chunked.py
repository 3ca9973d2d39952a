"""The reference, a block of queries at a time: no more scores exist than those of a block.

Plain XLA, for every platform. The backward pass computes a block's scores again.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from othink_jax.model.attention import reference
from othink_jax.model.attention.masks import SelfMask
from othink_jax.model.precision import at_least_f32
from othink_jax.types import Array

_SCORES = 2**20  # numbers of a block: 4 MiB in float32, as a CPU has cache
_FEWEST = 64  # queries of a block, so that its products stay efficient


def attention(
    query: Float[Array, "b s KV R H"],
    key: Float[Array, "b t KV H"],
    value: Float[Array, "b t KV H"],
    mask: SelfMask,
) -> Float[Array, "b s KV R H"]:
    """As `reference.attention`."""

    def of_row(
        query: Array, key: Array, value: Array, real: Array, windows: Array | None
    ) -> Float[Array, "1 s KV R H"]:
        row = SelfMask(real=real, windows=windows, causal=mask.causal)

        def of_block(block: Array, first: Array, key: Array, value: Array) -> Array:
            return reference.attention(block, key, value, row, first=first)

        return _by_blocks(of_block, query, (key, value), axis=1)

    return _by_rows(of_row, query, key, value, mask.real, mask.windows)


def shared_prefix_attention(
    query: Float[Array, "B G T KV R H"],
    prefix_key: Float[Array, "B P KV H"],
    prefix_value: Float[Array, "B P KV H"],
    prefix_real: Bool[Array, "B P"],
    key: Float[Array, "B G S KV H"],
    value: Float[Array, "B G S KV H"],
) -> Float[Array, "B G T KV R H"]:
    """As `reference.shared_prefix_attention`."""

    def of_row(query: Array, real: Array, *keys: Array) -> Float[Array, "1 G T KV R H"]:
        def of_block(
            block: Array,
            first: Array,
            prefix_key: Array,
            prefix_value: Array,
            key: Array,
            value: Array,
        ) -> Array:
            return reference.shared_prefix_attention(
                block, prefix_key, prefix_value, real, key, value, first=first
            )

        return _by_blocks(of_block, query, keys, axis=2)

    return _by_rows(of_row, query, prefix_real, prefix_key, prefix_value, key, value)


def _by_rows(of_row: Callable[..., Array], *rows: Array | None) -> Array:
    """`of_row` of each row, one after the other; a row keeps a leading axis of one."""
    if jax.tree.leaves(rows)[0].shape[0] == 1:
        return of_row(*rows)

    def alone(row: tuple[Array | None, ...]) -> Array:
        return of_row(*jax.tree.map(lambda leaf: leaf[None], row))[0]

    return jax.lax.map(alone, rows)


def _by_blocks(
    of_block: Callable[..., Array], query: Array, keys: tuple[Array, ...], *, axis: int
) -> Array:
    """of_block(queries, number of the first, *keys) of each block of queries along an axis."""
    count = query.shape[axis]
    size = _block_size(query, sum(each.shape[-3] for each in keys) // 2, axis)
    blocks = -(-count // size)
    padding = [(0, 0)] * query.ndim
    padding[axis] = (0, blocks * size - count)
    cut = jnp.pad(query, padding)
    cut = cut.reshape(*cut.shape[:axis], blocks, size, *cut.shape[axis + 1 :])
    # Wide, so that the sum of the blocks' gradients is rounded once, as the reference's is.
    wide = tuple(each.astype(at_least_f32(each.dtype)) for each in keys)

    @jax.checkpoint
    def run(block: Array, number: Array) -> Array:
        return of_block(block, number * size, *wide)

    made = jax.lax.map(lambda each: run(*each), (jnp.moveaxis(cut, axis, 0), jnp.arange(blocks)))
    made = jnp.moveaxis(made, 0, axis).reshape(*query.shape[:axis], -1, *query.shape[axis + 1 :])
    return jax.lax.slice_in_dim(made, 0, count, axis=axis)


def _block_size(query: Array, keys: int, axis: int) -> int:
    """Queries along `axis` whose scores fit into `_SCORES`: a power of two."""
    scores = keys * query.size // (query.shape[axis] * query.shape[-1])  # of one query
    fitting = max(_SCORES // scores, _FEWEST)
    return min(2 ** int(math.log2(fitting)), query.shape[axis])
