"""Off-policy corrections of rollouts, and masks that select what to learn from.

Importance weights are functions of log weights [*n, T] in nats, at one level of the ratio:

    log_weights = token_log_ratio(trainer_logp, sampler_logp, mask)        # a weight for each token
    log_weights = trajectory_log_ratio(trainer_logp, sampler_logp, mask)   # one for each sequence
    values = ppo(...) * truncated_weights(log_weights, mask, cap=2.0)

`trainer_logp` holds the tokens' log-probabilities under the trainer's model at the time of
sampling, the objective's old_logp. `sampler_logp` holds those that the sampler's engine reports.
Weights and masks are constants: no gradient flows through them.
"""

import math
from collections.abc import Callable, Mapping

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from othink_jax.rl.checks import require, require_positive
from othink_jax.rl.ratios import (
    Mask,
    Values,
    sequence_log_ratio,
    to_ratio,
    token_log_ratio,
    trajectory_log_ratio,
)

# (logp, old_logp, sampler_logp, advantages, mask), all [*n, T] -> weights [*n, T] of an objective's
# values; old_logp is from the trainer's model, sampler_logp from the sampler
Correction = Callable[..., Array]


def truncated_weights(
    log_weights: Float[Array, "*n T"], mask: Bool[Array, "*n T"], *, cap: float
) -> Float[Array, "*n T"]:
    """min(w, cap), zero outside `mask`: truncated importance sampling.

    The same as in TRL (`token_truncate`, `sequence_truncate`, cap 3) and verl (threshold 2).

    Raises:
      ValueError: `cap` is not > 0 and finite.
    """
    require_positive(cap=cap)
    return jnp.where(mask, jnp.minimum(_weights(log_weights, mask), cap), 0.0)


def masked_weights(
    log_weights: Float[Array, "*n T"], mask: Bool[Array, "*n T"], *, low: float, high: float
) -> Float[Array, "*n T"]:
    """w where low <= w <= high, else zero; zero outside `mask`: masked importance sampling.

    The same as in TRL (`token_mask`, `sequence_mask`) and verl (its IcePop threshold).

    Raises:
      ValueError: not 0 <= low < high < inf.
    """
    require(0 <= low < high < math.inf, f"0 <= low < high < inf must hold, got {low} and {high}")
    weights = _weights(log_weights, mask)
    # Tested for lying outside, so that a weight that is nan stays nan and shows in the loss.
    outside = (weights < low) | (weights > high)
    return jnp.where(mask & ~outside, weights, 0.0)


def off_policy_sequence_mask(
    logp: Float[Array, "*n T"],
    old_logp: Float[Array, "*n T"],
    advantages: Float[Array, "*n"],
    mask: Bool[Array, "*n T"],
    *,
    delta: float,
) -> Bool[Array, "*n"]:
    """False for sequences to leave out: A < 0, and far from the policy (DeepSeek-V3.2, Eq. 9).

    A sequence is far if the mean of log pi_old - log pi over its real tokens exceeds delta, nats
    per token (arXiv 2512.02556). Empty sequences are kept.

    Args:
      old_logp: nats, under the policy that sampled; the sampler's own values if they are known.
      delta: threshold of the mean; TRL names 0.5.

    Raises:
      ValueError: `delta` is not > 0 and finite.
    """
    require_positive(delta=delta)
    chex.assert_shape(advantages, mask.shape[:-1])
    # Each real token holds the sequence's mean; padding holds 0, which never exceeds delta.
    distance = -sequence_log_ratio(jax.lax.stop_gradient(logp), old_logp, mask)
    return ~((advantages < 0) & (distance > delta).any(axis=-1))


def top_entropy_mask(
    entropy: Float[Array, "*n T"], mask: Bool[Array, "*n T"], *, share: float = 0.2
) -> Bool[Array, "*n T"]:
    """True for the real tokens whose entropy is among the highest `share` of all of them.

    "Beyond the 80/20 rule" (arXiv 2506.01939) trains on these alone. The threshold is the quantile
    1 - share over the whole array, interpolated as in TRL; tokens at the threshold are kept. Pass
    the whole batch, not a micro-batch.

    Args:
      entropy: nats, of the policy's distribution at each token; any value outside `mask`.

    Raises:
      ValueError: `share` is outside (0, 1].
    """
    require(0 < share <= 1, f"share must be in (0, 1], got {share}")
    chex.assert_equal_shape([entropy, mask])
    entropy = jax.lax.stop_gradient(entropy)
    threshold = jnp.nanquantile(jnp.where(mask, entropy, jnp.nan), 1.0 - share)
    return mask & ~(entropy < threshold)


def token_truncate(
    logp: Values,
    old_logp: Values,
    sampler_logp: Values,
    advantages: Values,
    mask: Mask,
    *,
    cap: float = 2.0,
) -> Values:
    """Truncated importance weights, one per token."""
    del logp, advantages
    return truncated_weights(token_log_ratio(old_logp, sampler_logp, mask), mask, cap=cap)


def sequence_truncate(
    logp: Values,
    old_logp: Values,
    sampler_logp: Values,
    advantages: Values,
    mask: Mask,
    *,
    cap: float = 2.0,
) -> Values:
    """Truncated importance weights, one per sequence."""
    del logp, advantages
    return truncated_weights(trajectory_log_ratio(old_logp, sampler_logp, mask), mask, cap=cap)


def token_mask(
    logp: Values,
    old_logp: Values,
    sampler_logp: Values,
    advantages: Values,
    mask: Mask,
    *,
    low: float = 0.0,
    high: float = 2.0,
) -> Values:
    """Importance weights, one per token; tokens whose weight is out of bounds are left out."""
    del logp, advantages
    log_weights = token_log_ratio(old_logp, sampler_logp, mask)
    return masked_weights(log_weights, mask, low=low, high=high)


def sequence_mask(
    logp: Values,
    old_logp: Values,
    sampler_logp: Values,
    advantages: Values,
    mask: Mask,
    *,
    low: float = 0.0,
    high: float = 2.0,
) -> Values:
    """Importance weights, one per sequence; leaves out sequences whose weight is out of bounds."""
    del logp, advantages
    log_weights = trajectory_log_ratio(old_logp, sampler_logp, mask)
    return masked_weights(log_weights, mask, low=low, high=high)


def off_policy_sequences(
    logp: Values,
    old_logp: Values,
    sampler_logp: Values,
    advantages: Values,
    mask: Mask,
    *,
    delta: float = 0.5,
) -> Values:
    """Leaves out sequences with A < 0 that are far from the policy (DeepSeek-V3.2, Eq. 9)."""
    del old_logp
    # The first token's: padding is on the right, and an empty sequence has nothing to leave out.
    of_sequence = advantages[..., 0]
    kept = off_policy_sequence_mask(logp, sampler_logp, of_sequence, mask, delta=delta)
    return jnp.where(mask & kept[..., None], 1.0, 0.0)


CORRECTIONS: Mapping[str, Correction] = {
    "token_truncate": token_truncate,
    "sequence_truncate": sequence_truncate,
    "token_mask": token_mask,
    "sequence_mask": sequence_mask,
    "off_policy_sequences": off_policy_sequences,
}


def _weights(log_weights: Float[Array, "*n T"], mask: Bool[Array, "*n T"]) -> Array:
    chex.assert_equal_shape([log_weights, mask])
    return jax.lax.stop_gradient(to_ratio(jnp.where(mask, log_weights, 0.0)))
