"""Schedules of the KL coefficient beta: functions of the update count, as in optax."""

import math

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float


def dynamic_kl(
    kl_min: float, kl_max: float, total_steps: int, exploration_fraction: float = 0.3
) -> optax.Schedule:
    """The KL coefficient of GRPO-D (Eq. 3 of OThink-MR1).

    With w = exploration_fraction * total_steps, beta falls linearly from the middle of `kl_min` and
    `kl_max` to `kl_min` at step w, then rises linearly to `kl_max` at `total_steps`, where it
    stays. w need not be an integer.

    Returns:
      schedule(count), elementwise: counts of updates made (integers >= 0) to float32.

    Raises:
      ValueError: not 0 <= kl_min <= kl_max < inf, total_steps < 1, or exploration_fraction
        outside (0, 1), where the equation divides by zero.
    """
    if not 0 <= kl_min < math.inf:
        raise ValueError(f"kl_min must be >= 0 and finite, got {kl_min}")
    if not kl_min <= kl_max < math.inf:
        raise ValueError(f"kl_max must be at least kl_min={kl_min} and finite, got {kl_max}")
    if not total_steps >= 1:
        raise ValueError(f"total_steps must be >= 1, got {total_steps}")
    if not 0 < exploration_fraction < 1:
        raise ValueError(f"exploration_fraction must be in (0, 1), got {exploration_fraction}")
    kl_mid = (kl_min + kl_max) / 2
    w = exploration_fraction * total_steps

    def schedule(count: ArrayLike) -> Float[Array, "..."]:
        step = jnp.minimum(jnp.asarray(count, jnp.float32), total_steps)
        falling = kl_mid - (kl_mid - kl_min) * step / w
        rising = kl_min + (kl_max - kl_min) * (step - w) / (total_steps - w)
        return jnp.where(step <= w, falling, rising)

    return schedule


def constant_kl(value: float) -> optax.Schedule:
    """The constant KL coefficient of plain GRPO.

    Returns:
      schedule(count), elementwise: counts of updates made to float32, always `value`.

    Raises:
      ValueError: `value` is negative or not finite.
    """
    if not 0 <= value < math.inf:
        raise ValueError(f"value must be >= 0 and finite, got {value}")

    def schedule(count: ArrayLike) -> Float[Array, "..."]:
        return jnp.full(jnp.shape(count), value, jnp.float32)

    return schedule


def cyclic_kl(low: float, high: float, total_steps: int, cycles: float = 4.0) -> optax.Schedule:
    """A KL coefficient that repeatedly rises linearly from `low` to `high`.

    As the cyclical annealing of beta in variational autoencoders (arXiv 1903.10145), except that
    the whole cycle is spent rising.

    Args:
      low, high: coefficient at the start of a cycle, and just before its end.
      total_steps: updates of the run.
      cycles: number of cycles in the run.

    Returns:
      schedule(count), elementwise: counts of updates made to float32.

    Raises:
      ValueError: not 0 <= low <= high < inf, or total_steps or cycles not positive.
    """
    if not 0 <= low <= high < math.inf:
        raise ValueError(f"low must be >= 0 and at most high, both finite, got {low} and {high}")
    if not (total_steps >= 1 and 0 < cycles < math.inf):
        raise ValueError(f"total_steps and cycles must be > 0, got {total_steps} and {cycles}")

    def schedule(count: ArrayLike) -> Float[Array, "..."]:
        # Exact at the start of a cycle: the fraction of count * (cycles / total_steps) rounds to
        # just below one there, and would give `high`.
        into_cycle = jnp.mod(jnp.asarray(count, jnp.float32) * cycles, total_steps) / total_steps
        return low + (high - low) * into_cycle

    return schedule
