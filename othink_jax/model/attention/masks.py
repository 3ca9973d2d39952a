"""Attention masks in a common form that each kernel converts to its own."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from othink_jax.types import Array, pytree


@pytree
class SelfMask:
    """Mask of self-attention, such as over a prompt or an image.

    A query sees the real keys of its own window and, if causal, none that come after it. A padding
    query sees what a real query in its place would; nobody uses its output.
    """

    real: Bool[Array, "b t"]  # false at padding
    windows: Int[Array, "b t"] | None = None  # index of a token's window, >= 0; None: one window
    causal: bool = dataclasses.field(default=False, metadata={"static": True})

    def dense(
        self, first: Int[Array, ""] | int = 0, count: int | None = None
    ) -> Bool[Array, "b #s t"]:
        """Dense mask of `count` queries from `first` on (default: all); true at keys they see."""
        length = self.real.shape[1]
        count = length if count is None else count
        mask = self.real[:, None]
        if self.windows is not None:
            own = jax.lax.dynamic_slice_in_dim(self.windows, first, count, axis=1)
            mask &= own[:, :, None] == self.windows[:, None]
        return mask & sees_past(first, count, length) if self.causal else mask


def sees_past(first: Int[Array, ""] | int, count: int, keys: int) -> Bool[Array, "s t"]:
    """Causal mask: query `first + i` sees keys 0 to `first + i`."""
    return jnp.arange(keys) <= first + jnp.arange(count)[:, None]
