"""Reference attention, one block of queries at a time: only one block's scores exist at once.

Plain XLA, for every platform. The backward pass recomputes the scores of a block.
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

_SCORES = 2**20  # scores of a block: 4 MiB in float32, about the cache of a CPU
_FEWEST = 64  # fewest queries of a block, so that its products stay efficient


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
    """Apply `of_row` to each row in turn; a row keeps a leading axis of size 1."""
    if jax.tree.leaves(rows)[0].shape[0] == 1:
        return of_row(*rows)

    def alone(row: tuple[Array | None, ...]) -> Array:
        return of_row(*jax.tree.map(lambda leaf: leaf[None], row))[0]

    return jax.lax.map(alone, rows)


def _by_blocks(
    of_block: Callable[..., Array], query: Array, keys: tuple[Array, ...], *, axis: int
) -> Array:
    """Apply of_block(queries, index of the first query, *keys) to each block of queries."""
    count = query.shape[axis]
    size = _block_size(query, sum(each.shape[-3] for each in keys) // 2, axis)
    blocks = -(-count // size)
    padding = [(0, 0)] * query.ndim
    padding[axis] = (0, blocks * size - count)
    cut = jnp.pad(query, padding)
    cut = cut.reshape(*cut.shape[:axis], blocks, size, *cut.shape[axis + 1 :])
    # At least f32, so that the sum of the blocks' gradients is rounded once, as in the reference.
    wide = tuple(each.astype(at_least_f32(each.dtype)) for each in keys)

    @jax.checkpoint
    def run(block: Array, number: Array) -> Array:
        return of_block(block, number * size, *wide)

    made = jax.lax.map(lambda each: run(*each), (jnp.moveaxis(cut, axis, 0), jnp.arange(blocks)))
    made = jnp.moveaxis(made, 0, axis).reshape(*query.shape[:axis], -1, *query.shape[axis + 1 :])
    return jax.lax.slice_in_dim(made, 0, count, axis=axis)


def _block_size(query: Array, keys: int, axis: int) -> int:
    """Number of queries along `axis` whose scores fit into `_SCORES`: a power of two."""
    scores = keys * query.size // (query.shape[axis] * query.shape[-1])  # of one query
    fitting = max(_SCORES // scores, _FEWEST)
    return min(2 ** int(math.log2(fitting)), query.shape[axis])
