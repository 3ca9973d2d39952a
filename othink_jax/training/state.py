"""The training state, carried from update to update and stored in checkpoints."""

import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from othink_jax.types import pytree


@pytree
class TrainState:
    """Parameters and optimizer state. Copied to D devices by `pmap`, every leaf is [D, ...]."""

    step: Int[Array, ""]  # int32; number of updates
    params: PyTree  # nested dict of arrays
    opt_state: optax.OptState  # also holds the KL coefficient, see `rl.carry_kl_coef`

    @classmethod
    def create(cls, params: PyTree, tx: optax.GradientTransformation) -> "TrainState":
        """The state before the first update."""
        return cls(step=jnp.zeros((), jnp.int32), params=params, opt_state=tx.init(params))
