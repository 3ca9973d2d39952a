"""Reductions of per-token values to one number, exact for a batch in micro-batches or shards.

The mean of the means of micro-batches is that of the whole batch only if all have the same weight.
So a reduction returns numerator and denominator separately. Both are summed over micro-batches,
devices and processes, then divided once.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


class Average(NamedTuple):
    """A mean as its numerator and denominator."""

    total: Float[Array, ""]
    # Divisor of the total. It depends on masks alone, not on what a policy computes
    divisor: Float[Array, ""] | float

    @property
    def value(self) -> Float[Array, ""]:
        """The mean; zero if there is nothing to count, since the total is zero then."""
        if isinstance(self.divisor, int | float):
            return self.total / (self.divisor or 1)
        return self.total / jnp.where(self.divisor == 0, 1, self.divisor)


# (values [*n, T], mask [*n, T], kept [*n] or None) -> average over the sequences that are kept
Reduction = Callable[..., Average]


def mean_over_sequences(
    values: Float[Array, "*n T"], mask: Bool[Array, "*n T"], kept: Bool[Array, "*n"] | None = None
) -> Average:
    """Mean over the real tokens of each sequence, then over sequences: 1/n sum 1/|o| sum (Eq. 4).

    An empty sequence (no true in its row) contributes zero and counts: the divisor stays n. A
    sequence that is not kept does not count. Values outside `mask` are ignored, nan included; their
    gradient is zero.
    """
    mask = _of_kept(mask, kept)
    lengths = jnp.maximum(mask.sum(axis=-1), 1)
    means = jnp.where(mask, values, 0.0).sum(axis=-1) / lengths
    return Average(means.sum(), _sequences(mask, kept))


def mean_over_tokens(
    values: Float[Array, "*n T"], mask: Bool[Array, "*n T"], kept: Bool[Array, "*n"] | None = None
) -> Average:
    """Mean over all real tokens, so that long sequences weigh more (DAPO, arXiv 2503.14476, Eq. 8).

    Without a real token it is zero. Values outside `mask` are ignored, nan included.
    """
    mask = _of_kept(mask, kept)
    return Average(jnp.where(mask, values, 0.0).sum(), mask.sum())


def mean_over_length(
    values: Float[Array, "*n T"],
    mask: Bool[Array, "*n T"],
    kept: Bool[Array, "*n"] | None = None,
    *,
    length: int,
) -> Average:
    """Sum over the real tokens of a sequence, divided by a constant; then mean over sequences.

    The gradient of a sequence is thus not scaled by its length (Dr. GRPO, arXiv 2503.20783,
    section 3.2).

    Args:
      values, mask, kept: as for the other reductions.
      length: the constant, such as the length limit of a completion, tokens.
    """
    total, sequences = sum_over_tokens(values, mask, kept)
    return Average(total, sequences * length)


def sum_over_tokens(
    values: Float[Array, "*n T"], mask: Bool[Array, "*n T"], kept: Bool[Array, "*n"] | None = None
) -> Average:
    """Sum over the real tokens of a sequence, then mean over sequences.

    Token terms add up as in the log-probability of a sequence, which REINFORCE takes (RLOO, arXiv
    2402.14740).
    """
    mask = _of_kept(mask, kept)
    return Average(jnp.where(mask, values, 0.0).sum(), _sequences(mask, kept))


def _of_kept(mask: Bool[Array, "*n T"], kept: Bool[Array, "*n"] | None) -> Bool[Array, "*n T"]:
    return mask if kept is None else mask & kept[..., None]


def _sequences(mask: Bool[Array, "*n T"], kept: Bool[Array, "*n"] | None) -> Array | int:
    return mask[..., 0].size if kept is None else kept.sum()


REDUCTIONS: Mapping[str, Callable[..., Average]] = {
    "sequence": mean_over_sequences,
    "token": mean_over_tokens,
    "length": mean_over_length,
    "sum": sum_over_tokens,
}
