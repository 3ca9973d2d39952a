"""The KL weight as a part of the optimizer state."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree


class KLCoefState(NamedTuple):
    """State of `carry_kl_coef`. Whatever controls beta keeps it here, and `kl_coef` finds it."""

    kl_step: Int[Array, ""]  # int32; updates made
    kl_coef: Float[Array, ""]  # float32, whatever the parameters are; beta of the update to come


def carry_kl_coef(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Carry the KL weight beta in the optimizer state; gradients pass through unchanged.

    After s updates the state holds schedule(s), the weight for update number s (counted from 0).
    The loss reads it with `kl_coef(opt_state)` inside the compiled step, so one compilation serves
    the whole schedule (a Python float in a closure would be frozen into the program), and a
    restored optimizer state goes on where the schedule stood.
    """

    def at(step: Int[Array, ""]) -> KLCoefState:
        return KLCoefState(kl_step=step, kl_coef=jnp.asarray(schedule(step), jnp.float32))

    def init(params: PyTree) -> KLCoefState:
        del params
        return at(jnp.zeros((), jnp.int32))

    def update(
        updates: PyTree, state: KLCoefState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, KLCoefState]:
        del params, extra_args
        return updates, at(optax.safe_increment(state.kl_step))

    return optax.GradientTransformationExtraArgs(init, update)


def adapt_kl_coef(
    initial: float, target: float, *, gain: float = 0.1, limit: float = 0.2
) -> optax.GradientTransformationExtraArgs:
    """A KL weight that reacts to the measured KL, in the state of `carry_kl_coef`.

    After each update, beta is multiplied by 1 + gain * e, where e = KL / target - 1, cut to
    [-limit, limit] (Ziegler et al. 2019, arXiv 1909.08593, section 2.2): above the target it rises,
    below it falls. `grpo_update` hands the measured KL to the optimizer as the extra argument `kl`.

    Args:
        initial: beta of the first update.
        target: of the measured KL, nats per token.
        gain: of the controller.
        limit: of the relative error.

    Raises:
        ValueError: a number is not positive.
    """
    given = {"initial": initial, "target": target, "gain": gain, "limit": limit}
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be > 0 and finite, got {value}")

    def init(params: PyTree) -> KLCoefState:
        del params
        return KLCoefState(jnp.zeros((), jnp.int32), jnp.float32(initial))

    def update(
        updates: PyTree, state: KLCoefState, params: PyTree = None, *, kl: Array, **extra_args: Any
    ) -> tuple[PyTree, KLCoefState]:
        del params, extra_args
        error = jnp.clip(kl / target - 1.0, -limit, limit)
        coef = (state.kl_coef * (1.0 + gain * error)).astype(jnp.float32)
        return updates, KLCoefState(optax.safe_increment(state.kl_step), coef)

    return optax.GradientTransformationExtraArgs(init, update)


def kl_coef(opt_state: optax.OptState) -> Float[Array, ""]:
    """The KL weight beta that an optimizer state holds, float32.

    Raises:
        ValueError: the state holds none, or more than one.
    """
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, KLCoefState))
    found = [node for node in nodes if isinstance(node, KLCoefState)]
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state must hold one KLCoefState, found {len(found)}: put"
            " carry_kl_coef(schedule) into the optimizer's chain, once"
        )
    return found[0].kl_coef
