"""Importance ratios pi / pi_old at several levels, as log ratios in nats.

Each is a function of (logp, old_logp, mask), all [*n, T], to [*n, T]. The gradient flows through
`logp` alone. Inputs where `mask` is false are ignored, nan and infinities included: the log ratio
is 0 there and its gradient is zero, so that `to_ratio` of it is safe to differentiate. A sequence
without a real token has log ratio 0, so ratio 1.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from othink_jax.rl.kl import MAX_LOG_RATIO

Values = Float[Array, "*n T"]
Mask = Bool[Array, "*n T"]
RatioLevel = Callable[[Array, Array, Array], Array]  # (logp, old_logp, mask) -> log ratio


def to_ratio(log_ratio: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """exp(log ratio), with the log ratio clipped at `MAX_LOG_RATIO`; no gradient beyond it."""
    return jnp.exp(jnp.minimum(log_ratio, MAX_LOG_RATIO))


def token_log_ratio(logp: Values, old_logp: Values, mask: Mask) -> Values:
    """log pi - log pi_old of each token (PPO, arXiv 1707.06347; GRPO)."""
    chex.assert_equal_shape([logp, old_logp, mask])
    # Mask before any exp: masking after it leaves nan gradients, since 0 * inf is nan.
    logp, old_logp = jnp.where(mask, logp, 0.0), jnp.where(mask, old_logp, 0.0)
    return logp - jax.lax.stop_gradient(old_logp)


def sequence_log_ratio(logp: Values, old_logp: Values, mask: Mask) -> Values:
    """Mean of the token log ratios of a sequence, at each of its tokens (GSPO, Eq. 7).

    The ratio is the geometric mean of the tokens' ratios, (pi(o) / pi_old(o))^(1/|o|)
    (arXiv 2507.18071). Nats per token.
    """
    total = token_log_ratio(logp, old_logp, mask).sum(axis=-1, keepdims=True)
    return jnp.where(mask, total / jnp.maximum(mask.sum(axis=-1, keepdims=True), 1), 0.0)


def gspo_token_log_ratio(logp: Values, old_logp: Values, mask: Mask) -> Values:
    """Value of `sequence_log_ratio`, gradient of `token_log_ratio` (GSPO-token, Eq. 14).

    sg(log s) + log pi - sg(log pi), with s the ratio of the sequence. Advantages may thus differ
    between tokens (arXiv 2507.18071, section 4.3).
    """
    per_token = token_log_ratio(logp, old_logp, mask)
    value = sequence_log_ratio(logp, old_logp, mask)
    return jax.lax.stop_gradient(value) + (per_token - jax.lax.stop_gradient(per_token))


def trajectory_log_ratio(logp: Values, old_logp: Values, mask: Mask) -> Values:
    """Sum of the token log ratios of a sequence, at each of its tokens: log pi(o) / pi_old(o).

    As an importance weight it is unbiased, but its variance grows with length. TRL and verl call it
    the sequence level of a correction for rollouts. Nats per sequence.
    """
    total = token_log_ratio(logp, old_logp, mask).sum(axis=-1, keepdims=True)
    return jnp.where(mask, total, 0.0)
