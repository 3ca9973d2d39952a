"""A moving reference policy, carried in the optimizer state (TR-DPO)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from othink_jax.rl.checks import require
from othink_jax.rl.states import states_of


class ReferenceState(NamedTuple):
    """State of `moving_reference`."""

    updates: Int[Array, ""]  # int32; number of updates so far
    params: PyTree  # parameters of the reference, in the dtype of the policy's


def moving_reference(every: int = 1, mix: float = 1.0) -> optax.GradientTransformationExtraArgs:
    """Carry a reference in the optimizer state; gradients pass through unchanged.

    After every `every` updates it becomes mix * policy + (1 - mix) * reference: a copy of the
    policy with `mix` = 1, else a moving average (TR-DPO, arXiv 2404.09656, Eq. 5 and 6). It must be
    the last of an optimizer's chain, where the updates are final.

    Args:
      every: number of updates between two moves.
      mix: share of the policy in a move.

    Raises:
      ValueError: `every` is below 1, or `mix` not in (0, 1].
    """
    require(every >= 1, f"every must be >= 1, got {every}")
    require(0 < mix <= 1, f"mix must be in (0, 1], got {mix}")

    def init(params: PyTree) -> ReferenceState:
        return ReferenceState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(
        updates: PyTree, state: ReferenceState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, ReferenceState]:
        del extra_args
        if params is None:
            raise ValueError("a moving reference needs the parameters: tx.update(..., params)")
        made = optax.safe_increment(state.updates)
        share = jnp.where(made % every == 0, mix, 0.0)
        policy = optax.apply_updates(params, updates)
        # Exact in every bit: a share of 0 keeps the reference, a share of 1 copies the policy.
        moved = jax.tree.map(
            lambda old, new: jnp.where(
                share == 1, new, jnp.where(share == 0, old, old + share * (new - old))
            ).astype(old.dtype),
            state.params,
            policy,
        )
        return updates, ReferenceState(made, moved)

    return optax.GradientTransformationExtraArgs(init, update)


def reference_params(opt_state: optax.OptState) -> PyTree:
    """The parameters of the reference that an optimizer state carries.

    Raises:
      ValueError: the state carries none, or more than one.
    """
    found = states_of(opt_state, ReferenceState)
    require(len(found) == 1, f"the optimizer state must carry one reference, found {len(found)}")
    return found[0].params
