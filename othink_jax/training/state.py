"""What training carries from update to update, and what a checkpoint stores."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from othink_jax.types import pytree


@pytree
class TrainState:
    """Parameters and the state of their optimizer. Copied to D devices, every leaf leads with D."""

    step: Int[Array, ""]  # int32; updates made
    params: PyTree  # nested dict of arrays
    opt_state: optax.OptState  # holds the KL weight too, see `rl.carry_kl_coef`

    @classmethod
    def create(cls, params: PyTree, tx: optax.GradientTransformation) -> "TrainState":
        """The state before the first update."""
        return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))
