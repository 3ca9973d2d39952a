"""Objectives of a policy gradient, to be minimised."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from othink_jax.rl.kl import MAX_LOG_RATIO

# (logp, old_logp, advantages, mask) -> values [*n, T] to be minimised, zero outside the mask
Objective = Callable[[Array, Array, Array, Array], Array]


def clipped_surrogate(
    logp: Float[Array, "*d"],
    old_logp: Float[Array, "*d"],
    advantages: Float[Array, "*#d"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "*d"]:
    """-min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A), rho = pi / pi_old (part of Eq. 4).

    Elementwise and to be minimised. log rho is cut off at `MAX_LOG_RATIO`: the clip bounds the
    ratio only where A > 0, and a huge one with A < 0 would overflow.

    Args:
        logp: nats, under the policy that is trained; the gradient flows through this.
        old_logp: nats, under the policy that sampled.
        advantages: broadcast against the others; a trailing axis of 1 gives all tokens of a
            completion the same.
    """
    ratio = ratio_of(logp, old_logp)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return jnp.maximum(-ratio * advantages, -clipped * advantages)


def ppo(
    logp: Float[Array, "*n T"],
    old_logp: Float[Array, "*n T"],
    advantages: Float[Array, "..."],
    mask: Bool[Array, "*n T"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "*n T"]:
    """`clipped_surrogate`, of whole sequences."""
    advantages = per_token(advantages, mask)
    return clipped_surrogate(logp, old_logp, advantages, clip_low=clip_low, clip_high=clip_high)


def per_token(advantages: Array, mask: Bool[Array, "*n T"]) -> Float[Array, "*n T"]:
    shared = jnp.ndim(advantages) < mask.ndim
    return jnp.broadcast_to(advantages[..., None] if shared else advantages, mask.shape)


def ratio_of(logp: Float[Array, "*d"], old_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    return jnp.exp(jnp.minimum(logp - old_logp, MAX_LOG_RATIO))


OBJECTIVES: Mapping[str, Callable[..., Array]] = {"ppo": ppo}
