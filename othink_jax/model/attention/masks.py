"""Which keys a query sees, as a structure that each kernel turns into what it needs."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int

from othink_jax.types import Array, pytree


@pytree
class SelfMask:
    """Of tokens that attend to each other, such as a prompt's or an image's.

    A query sees the real keys of its own window and, if causal, none that come after it. A query at
    padding sees what a real one in its place would; nobody uses what it gets.
    """

    real: Bool[Array, "b t"]  # no padding
    windows: Int[Array, "b t"] | None = None  # number of a token's window, >= 0; None: all in one
    causal: bool = dataclasses.field(default=False, metadata={"static": True})

    def dense(
        self, first: Int[Array, ""] | int = 0, count: int | None = None
    ) -> Bool[Array, "b #s t"]:
        """True where a query may look, of the `count` queries from `first` on; all by default."""
        length = self.real.shape[1]
        count = length if count is None else count
        mask = self.real[:, None]
        if self.windows is not None:
            own = jax.lax.dynamic_slice_in_dim(self.windows, first, count, axis=1)
            mask &= own[:, :, None] == self.windows[:, None]
        return mask & sees_past(first, count, length) if self.causal else mask


def sees_past(first: Int[Array, ""] | int, count: int, keys: int) -> Bool[Array, "s t"]:
    """Causal: query `first + i` sees the keys up to number `first + i`."""
    return jnp.arange(keys) <= first + jnp.arange(count)[:, None]
