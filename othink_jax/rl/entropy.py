"""An entropy bonus, and its coefficient as a part of the optimizer state.

The bonus lowers the loss by the coefficient times the mean entropy of the policy's next-token
distributions, so that the policy keeps exploring.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PyTree

from othink_jax.rl.averages import Average, mean_over_tokens
from othink_jax.rl.checks import require, require_positive
from othink_jax.rl.states import states_of


def entropy_loss(
    entropy: Float[Array, "*n T"],
    mask: Bool[Array, "*n T"],
    kept: Bool[Array, "*n"] | None = None,
    *,
    coef: Float[Array, ""] | float,
) -> Average:
    """-coef times the mean entropy of all real tokens, a term of the loss (TRL: `entropy_coef`).

    The mean is over tokens, whatever the reduction of the loss, so that a coefficient means the
    same for all. Values outside `mask` are ignored, nan included.

    Args:
      entropy: entropy of the policy being trained, nats; the gradient flows through this.
      mask, kept: as for `mean_over_tokens`.
      coef: weight of the bonus.
    """
    mean = mean_over_tokens(entropy, mask, kept)
    return mean._replace(total=-coef * mean.total)


class EntropyCoefState(NamedTuple):
    """Coefficient of the bonus, for any controller; `entropy_coef` reads it."""

    entropy_coef: Float[Array, ""]  # float32; coefficient of the next update


def carry_entropy_coef(coef: float) -> optax.GradientTransformationExtraArgs:
    """Carry a constant coefficient in the optimizer state; gradients pass through unchanged.

    Raises:
      ValueError: the coefficient is negative or not finite.
    """
    require(0 <= coef < math.inf, f"the coefficient must be >= 0 and finite, got {coef}")

    def init(params: PyTree) -> EntropyCoefState:
        del params
        return EntropyCoefState(jnp.float32(coef))

    def update(
        updates: PyTree, state: EntropyCoefState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, EntropyCoefState]:
        del params, extra_args
        return updates, state

    return optax.GradientTransformationExtraArgs(init, update)


class AdaptiveEntropyState(NamedTuple):
    """State of `adapt_entropy_coef`."""

    coef: EntropyCoefState  # zero while the entropy is above its target
    level: Float[Array, ""]  # float32; the coefficient at or below the target


def adapt_entropy_coef(
    initial: float,
    target: float,
    *,
    delta: float = 0.005,
    low: float = 0.0,
    high: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
    """A coefficient that holds the entropy at or above a target (Skywork-OR1, arXiv 2505.22312).

    After each update the level rises by `delta` if the measured entropy is at or below the target,
    else it falls by `delta`; it is clipped to [low, high]. The next coefficient is the level if the
    entropy was at or below the target, else zero. It is zero for the first update, before which
    nothing is measured. TRL: `use_adaptive_entropy`. `grpo_update` passes the measured entropy to
    the optimizer as the extra argument `entropy`. A value that is not finite changes nothing.

    Args:
      initial: first level.
      target: target of the mean entropy, nats per token.
      delta: step of the level.
      low, high: bounds of the level.

    Raises:
      ValueError: the target or the step is not positive, or the bounds are out of order or do not
        hold `initial`.
    """
    require_positive(target=target, delta=delta)
    require(0 <= low < high < math.inf, f"0 <= low < high must hold, got {low} and {high}")
    require(low <= initial <= high, f"initial must be in [{low}, {high}], got {initial}")

    def init(params: PyTree) -> AdaptiveEntropyState:
        del params
        return AdaptiveEntropyState(EntropyCoefState(jnp.float32(0)), jnp.float32(initial))

    def update(
        updates: PyTree,
        state: AdaptiveEntropyState,
        params: PyTree = None,
        *,
        entropy: Array,
        **extra_args: Any,
    ) -> tuple[PyTree, AdaptiveEntropyState]:
        del params, extra_args
        short = entropy <= target
        level = jnp.clip(state.level + jnp.where(short, delta, -delta), low, high)
        level = level.astype(jnp.float32)
        moved = AdaptiveEntropyState(EntropyCoefState(jnp.where(short, level, 0.0)), level)
        return updates, jax.tree.map(
            lambda new, old: jnp.where(jnp.isfinite(entropy), new, old), moved, state
        )

    return optax.GradientTransformationExtraArgs(init, update)


def entropy_coef(opt_state: optax.OptState) -> Float[Array, ""] | None:
    """The coefficient that an optimizer state holds, float32; None if it holds none.

    Raises:
      ValueError: the state holds more than one.
    """
    found = states_of(opt_state, EntropyCoefState)
    require(len(found) <= 1, f"the optimizer state holds {len(found)} entropy coefficients")
    return found[0].entropy_coef if found else None
