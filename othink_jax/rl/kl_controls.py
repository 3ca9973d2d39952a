"""Schedules and controllers of the KL coefficient over a run, by name.

Each is a function of the number of updates of the run and of hyperparameters. It returns a gradient
transformation whose state holds the coefficient (`KLCoefState`): a schedule, or a controller that
gets the measured KL as the extra argument `kl`. All are chained into an optimizer in the same way.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import optax

from othink_jax.rl.checks import require, require_not_negative
from othink_jax.rl.kl_coef import adapt_kl_coef, carry_kl_coef, dual_kl_coef, pid_kl_coef
from othink_jax.rl.schedules import constant_kl, cyclic_kl, dynamic_kl

Control: TypeAlias = optax.GradientTransformationExtraArgs


def constant(updates: int, *, kl_value: float = 0.04) -> Control:
    """Constant coefficient, as in plain GRPO."""
    del updates
    return carry_kl_coef(constant_kl(kl_value))


def dynamic(
    updates: int,
    *,
    kl_min: float = 0.04,
    kl_max: float = 0.10,
    exploration_fraction: float = 0.3,
) -> Control:
    """Eq. 3 of OThink-MR1: down to `kl_min`, then up to `kl_max`."""
    return carry_kl_coef(dynamic_kl(kl_min, kl_max, updates, exploration_fraction))


def linear(updates: int, *, start: float = 0.1, end: float = 0.0) -> Control:
    """Linear from `start` to `end`."""
    require_not_negative(start=start, end=end)
    return carry_kl_coef(optax.linear_schedule(start, end, updates))


def cosine(updates: int, *, start: float = 0.1, end: float = 0.0) -> Control:
    """Half a cosine from `start` to `end`."""
    require_not_negative(start=start, end=end)
    decay = optax.cosine_decay_schedule(1.0, updates)
    return carry_kl_coef(lambda count: end + (start - end) * decay(count))


def cyclic(updates: int, *, low: float = 0.0, high: float = 0.1, cycles: float = 4.0) -> Control:
    """Repeated linear rise from `low` to `high` (arXiv 1903.10145)."""
    return carry_kl_coef(cyclic_kl(low, high, updates, cycles))


def step(updates: int, *, start: float = 0.1, factor: float = 0.5, steps: int = 4) -> Control:
    """Step decay from `start`: multiplied by `factor` between `steps` equal parts of the run."""
    require_not_negative(start=start, factor=factor)
    require(steps >= 1, f"steps must be >= 1, got {steps}")
    scales: dict[int, float] = {}
    for part in range(1, steps):
        first = -(-updates * part // steps)  # first update of the part; short parts coincide
        scales[first] = scales.get(first, 1.0) * factor
    return carry_kl_coef(optax.piecewise_constant_schedule(start, scales))


def ziegler(
    updates: int,
    *,
    kl_target: float,
    kl_value: float = 0.04,
    gain: float = 0.1,
    limit: float = 0.2,
    low: float = 1e-4,
    high: float = 10.0,
) -> Control:
    """Proportional controller of the measured KL (arXiv 1909.08593, section 2.2)."""
    del updates
    _require_first(kl_value, low, high)
    return adapt_kl_coef(kl_value, kl_target, gain=gain, limit=limit, low=low, high=high)


def pid(
    updates: int,
    *,
    kl_target: float,
    kl_value: float = 0.04,
    proportional: float = 0.2,
    integral: float = 0.05,
    derivative: float = 0.0,
    low: float = 1e-4,
    high: float = 10.0,
) -> Control:
    """A PID controller of log beta (arXiv 2007.03964)."""
    del updates
    _require_first(kl_value, low, high)
    return pid_kl_coef(
        kl_value,
        kl_target,
        proportional=proportional,
        integral=integral,
        derivative=derivative,
        low=low,
        high=high,
    )


def dual(
    updates: int,
    *,
    kl_target: float,
    kl_value: float = 0.04,
    rate: float = 0.05,
    momentum: float = 0.0,
    low: float = 1e-4,
    high: float = 10.0,
) -> Control:
    """Dual ascent on a KL budget, as the multipliers of MPO (arXiv 1806.06920)."""
    del updates
    _require_first(kl_value, low, high)
    require(
        0 < rate < math.inf and 0 <= momentum < 1,
        f"rate must be > 0 and finite, momentum in [0, 1), got {rate} and {momentum}",
    )
    ascent = optax.sgd(rate, momentum=momentum or None)
    return dual_kl_coef(kl_value, kl_target, optimizer=ascent, low=low, high=high)


def _require_first(kl_value: float, low: float, high: float) -> None:
    require(
        low <= kl_value <= high,
        f"kl_value must be in [low, high] = [{low:g}, {high:g}], got {kl_value:g}",
    )


KL_CONTROLS: Mapping[str, Callable[..., Control]] = {
    "constant": constant,
    "dynamic": dynamic,
    "linear": linear,
    "cosine": cosine,
    "cyclic": cyclic,
    "step": step,
    "ziegler": ziegler,
    "pid": pid,
    "dual": dual,
}
