"""Concatenation of prompt and completion keys, for kernels without a shared prefix."""

import jax.numpy as jnp
from jaxtyping import Float

from othink_jax.model.precision import at_least_f32
from othink_jax.types import Array


def join_prefix(
    prefix: Float[Array, "B P KV H"], own: Float[Array, "B G S KV H"]
) -> Float[Array, "B G P+S KV H"]:
    """Keys (or values) of each completion: those of its prompt, then its own."""
    # Repeated in at least f32, in which the gradients of the G completions are then summed.
    wide = prefix.astype(at_least_f32(prefix.dtype))[:, None]
    repeated = jnp.broadcast_to(wide, (*own.shape[:2], *prefix.shape[1:])).astype(own.dtype)
    return jnp.concatenate([repeated, own], axis=2)
