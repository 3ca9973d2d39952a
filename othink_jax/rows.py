"""Splitting a batch into micro-batches, and joining them again."""

from typing import TypeVar

import jax
import jax.numpy as jnp

from othink_jax.types import Array

_T = TypeVar("_T")


def split_rows(batch: _T, pieces: int) -> _T:
    """Reshape leaves [B, ...] to [pieces, B / pieces, ...], for a scan over the pieces.

    Piece i takes rows i, i + pieces, i + 2 * pieces, ...
    """

    def cut(leaf: Array) -> Array:
        # Explicit sizes: -1 cannot be inferred for the patches of a batch without images.
        rows = leaf.reshape(leaf.shape[0] // pieces, pieces, *leaf.shape[1:])
        return jnp.swapaxes(rows, 0, 1)

    return jax.tree.map(cut, batch)


def concat_rows(by_piece: _T) -> _T:
    """The inverse of `split_rows`."""

    def join(leaf: Array) -> Array:
        rows = jnp.swapaxes(leaf, 0, 1)
        return rows.reshape(rows.shape[0] * rows.shape[1], *rows.shape[2:])

    return jax.tree.map(join, by_piece)
