"""The KL coefficient beta as a part of the optimizer state."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree

from othink_jax.rl.checks import require, require_not_negative, require_positive
from othink_jax.rl.states import states_of


class KLCoefState(NamedTuple):
    """State of `carry_kl_coef`. Every controller keeps beta here; `kl_coef` reads it."""

    kl_step: Int[Array, ""]  # int32; updates made
    kl_coef: Float[Array, ""]  # float32, for any parameter dtype; beta of the next update


def carry_kl_coef(schedule: optax.Schedule) -> optax.GradientTransformationExtraArgs:
    """Carry the KL coefficient beta in the optimizer state; gradients pass through unchanged.

    After s updates the state holds schedule(s), the coefficient of update s (counted from 0). The
    loss reads it with `kl_coef(opt_state)` inside the compiled step, so one compilation serves the
    whole schedule; a Python float in a closure would be frozen into the program. A restored
    optimizer state continues the schedule.
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
    initial: float,
    target: float,
    *,
    gain: float = 0.1,
    limit: float = 0.2,
    low: float = 0.0,
    high: float = math.inf,
) -> optax.GradientTransformationExtraArgs:
    """A KL coefficient that reacts to the measured KL, in the state of `carry_kl_coef`.

    After each update, beta is multiplied by 1 + gain * e, where e = KL / target - 1, clipped to
    [-limit, limit] (Ziegler et al. 2019, arXiv 1909.08593, section 2.2): above the target it rises,
    below it falls. `grpo_update` passes the measured KL to the optimizer as the extra argument
    `kl`. A KL that is not finite changes nothing.

    Args:
      initial: beta of the first update.
      target: target of the measured KL, nats per token.
      gain: gain of the controller.
      limit: bound of the relative error e.
      low, high: bounds of beta. The paper has none. Without them, a KL that stays on one side of
        its target for thousands of updates takes beta to 0 or to inf, which it never leaves.

    Raises:
      ValueError: a number is not positive, or `initial` is out of bounds.
    """
    require_positive(initial=initial, target=target, gain=gain, limit=limit)
    _require_between(initial, low, high)

    def init(params: PyTree) -> KLCoefState:
        del params
        return _begin(initial)

    def update(
        updates: PyTree, state: KLCoefState, params: PyTree = None, *, kl: Array, **extra_args: Any
    ) -> tuple[PyTree, KLCoefState]:
        del params, extra_args
        error = jnp.clip(kl / target - 1.0, -limit, limit)
        coef = jnp.clip(state.kl_coef * (1.0 + gain * error), low, high)
        return updates, _advance(state, coef, kl)

    return optax.GradientTransformationExtraArgs(init, update)


class PIDState(NamedTuple):
    """State of `pid_kl_coef`."""

    coef: KLCoefState
    integral: Float[Array, ""]  # float32; sum of the errors
    error: Float[Array, ""]  # float32; last error, nan before the first finite KL


def pid_kl_coef(
    initial: float,
    target: float,
    *,
    proportional: float = 0.2,
    integral: float = 0.05,
    derivative: float = 0.0,
    low: float = 1e-4,
    high: float = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """A KL coefficient set by a PID controller, as in PID Lagrangians (arXiv 2007.03964).

    log beta = log initial + P e + I sum(e) + D (e - last e), with e = KL / target - 1, clipped to
    [-1, 1]. The first e has none before it, so no D. beta is clipped to [low, high], and the sum to
    the range that leads there (anti-windup). A measured KL that is not finite changes nothing.

    Args:
      initial: beta of the first update.
      target: target of the measured KL, nats per token.
      proportional, integral, derivative: P, I and D.
      low, high: bounds of beta.

    Raises:
      ValueError: a gain is negative, or all of them are zero, or another number is not positive,
        or `initial` is out of bounds.
    """
    require_positive(initial=initial, target=target, low=low, high=high)
    _require_between(initial, low, high)
    require_not_negative(proportional=proportional, integral=integral, derivative=derivative)
    gains = proportional + integral + derivative
    require(gains > 0, "one of proportional, integral and derivative must be > 0")

    def init(params: PyTree) -> PIDState:
        del params
        return PIDState(_begin(initial), jnp.float32(0), jnp.float32(jnp.nan))

    def update(
        updates: PyTree, state: PIDState, params: PyTree = None, *, kl: Array, **extra_args: Any
    ) -> tuple[PyTree, PIDState]:
        del params, extra_args
        error = _error(kl, target, otherwise=state.error)
        change = jnp.where(jnp.isnan(state.error), 0.0, error - state.error)
        known = jnp.where(jnp.isnan(error), 0.0, error)
        log_coef = math.log(initial) + proportional * known + derivative * change
        summed = jnp.where(jnp.isfinite(kl), state.integral + error, state.integral)
        if integral > 0:
            ends = ((math.log(end) - log_coef) / integral for end in (low, high))
            summed = jnp.clip(summed, *ends)
        coef = jnp.clip(jnp.exp(log_coef + integral * summed), low, high)
        return updates, PIDState(_advance(state.coef, coef, kl), summed, error)

    return optax.GradientTransformationExtraArgs(init, update)


class DualState(NamedTuple):
    """State of `dual_kl_coef`."""

    coef: KLCoefState
    log_coef: Float[Array, ""]  # float32
    optimizer: optax.OptState  # state of the optimizer of log_coef


def dual_kl_coef(
    initial: float,
    target: float,
    *,
    optimizer: optax.GradientTransformation | None = None,
    low: float = 1e-4,
    high: float = 10.0,
) -> optax.GradientTransformationExtraArgs:
    """A KL coefficient that is the multiplier of the constraint KL <= target, by dual ascent.

    log beta ascends the error KL / target - 1, clipped to [-1, 1], by its own optimizer, as the
    multipliers of MPO (arXiv 1806.06920; rlax's `LagrangePenalty`) do. beta is clipped to
    [low, high]. Clipping resets the optimizer, whose momentum would otherwise keep pushing against
    the bound after the error has changed sign. A measured KL that is not finite changes nothing.

    Args:
      initial: beta of the first update.
      target: target of the measured KL, nats per token.
      optimizer: optimizer of log beta; `optax.sgd(0.05)` if not given.
      low, high: bounds of beta.

    Raises:
      ValueError: a number is not positive, or `initial` is out of bounds.
    """
    require_positive(initial=initial, target=target, low=low, high=high)
    _require_between(initial, low, high)
    ascent = optax.sgd(0.05) if optimizer is None else optimizer

    def init(params: PyTree) -> DualState:
        del params
        log_coef = jnp.log(jnp.float32(initial))
        return DualState(_begin(initial), log_coef, ascent.init(log_coef))

    def update(
        updates: PyTree, state: DualState, params: PyTree = None, *, kl: Array, **extra_args: Any
    ) -> tuple[PyTree, DualState]:
        del params, extra_args
        error = _error(kl, target, otherwise=jnp.float32(0))
        step, optimizer = ascent.update(-error, state.optimizer, state.log_coef)
        moved = jnp.clip(state.log_coef + step, math.log(low), math.log(high))
        is_cut = moved != state.log_coef + step
        optimizer = _choose(is_cut, ascent.init(moved), optimizer)
        old = state.log_coef, state.optimizer
        moved, optimizer = _choose(jnp.isfinite(kl), (moved, optimizer), old)
        return updates, DualState(_advance(state.coef, jnp.exp(moved), kl), moved, optimizer)

    return optax.GradientTransformationExtraArgs(init, update)


def _begin(initial: float) -> KLCoefState:
    return KLCoefState(jnp.zeros((), jnp.int32), jnp.float32(initial))


def _advance(state: KLCoefState, coef: Array, kl: Array) -> KLCoefState:
    coef = jnp.where(jnp.isfinite(kl), coef, state.kl_coef).astype(jnp.float32)
    return KLCoefState(optax.safe_increment(state.kl_step), coef)


def _error(kl: Array, target: float, *, otherwise: Array) -> Float[Array, ""]:
    """Relative error KL / target - 1, clipped to [-1, 1]; `otherwise` if the KL is not finite."""
    error = jnp.clip(kl / target - 1.0, -1.0, 1.0).astype(jnp.float32)
    return jnp.where(jnp.isfinite(kl), error, otherwise)


def _choose(condition: Bool[Array, ""], one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), one, other)


def _require_between(initial: float, low: float, high: float) -> None:
    require(low <= initial <= high, f"initial must be in [{low}, {high}], got {initial}")


def kl_coef(opt_state: optax.OptState) -> Float[Array, ""]:
    """The KL coefficient beta that an optimizer state holds, float32.

    Raises:
      ValueError: the state holds none, or more than one.
    """
    found = states_of(opt_state, KLCoefState)
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state must hold one KLCoefState, found {len(found)}: put"
            " carry_kl_coef(schedule) into the optimizer's chain, once"
        )
    return found[0].kl_coef
