"""The objective of GRPO (Eq. 4), to be minimised."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from othink_jax.rl.kl import MAX_LOG_RATIO, kl_k3

Reduction = Callable[[Array, Array], Array]  # (values [*n, T], mask [*n, T]) -> scalar


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
    ratio = _ratio(logp, old_logp)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return jnp.maximum(-ratio * advantages, -clipped * advantages)


def mean_over_sequences(
    values: Float[Array, "*n T"], mask: Bool[Array, "*n T"]
) -> Float[Array, ""]:
    """Mean over the real tokens of each sequence, then over sequences: 1/n sum 1/|o| sum (Eq. 4).

    An empty sequence (no true in its row) contributes zero and counts: the divisor stays n.
    Values outside `mask` are ignored, nan included; their gradient is zero.
    """
    lengths = jnp.maximum(mask.sum(axis=-1), 1)
    return (jnp.where(mask, values, 0.0).sum(axis=-1) / lengths).mean()


def mean_over_tokens(values: Float[Array, "*n T"], mask: Bool[Array, "*n T"]) -> Float[Array, ""]:
    """Mean over all real tokens, so that long sequences weigh more (DAPO, arXiv 2503.14476, Eq. 8).

    Without a real token it is zero. Values outside `mask` are ignored, nan included.
    """
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def mean_over_length(length: int) -> Reduction:
    """Sum over the real tokens of a sequence by a constant, then mean over sequences.

    So no sequence's length scales its gradient (Dr. GRPO, arXiv 2503.20783, section 3.2).

    Args:
        length: the constant, such as the length limit of a completion, tokens.
    """

    def reduce(values: Float[Array, "*n T"], mask: Bool[Array, "*n T"]) -> Float[Array, ""]:
        return jnp.where(mask, values, 0.0).sum(axis=-1).mean() / length

    return reduce


def grpo_loss(
    logp: Float[Array, "*n T"],
    old_logp: Float[Array, "*n T"],
    ref_logp: Float[Array, "*n T"],
    advantages: Float[Array, "*n"],
    mask: Bool[Array, "*n T"],
    *,
    kl_coef: Float[Array, ""] | float,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_estimator: Callable[[Array, Array], Array] = kl_k3,
    reduce: Reduction = mean_over_sequences,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of Eq. 4 and 5 of OThink-MR1, to be minimised, and what it is made of.

    The gradient flows through `logp` alone; the other arrays are constants, as in the equation.
    So `grpo_loss(logp, logp, ...)` is the strictly on-policy loss, whose ratio is one. Where `mask`
    is false any value may stand, nan and infinities included.

    Args:
        logp: nats, under the policy that is trained.
        old_logp: nats, under the policy that sampled.
        ref_logp: nats, under the reference.
        advantages: one a sequence.
        mask: true where a token is real; an empty sequence counts in the mean, with zero.
        kl_coef: beta, the weight of the KL term.
        clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
        kl_estimator: of (logp, ref_logp), elementwise; Eq. 5 has `kl_k3`.
        reduce: of (values, mask) to the loss; Eq. 4 has `mean_over_sequences`.

    Returns:
        The loss, and metrics: `policy_loss` (the surrogate) and `kl_loss` (beta times the KL term),
        whose sum it is; and, by `mean_over_sequences` whatever `reduce` is, `kl` (nats per token),
        `clip_fraction` (share of tokens whose gradient the clip removes) and `ratio`.
    """
    chex.assert_equal_shape([logp, old_logp, ref_logp, mask])
    chex.assert_shape(advantages, mask.shape[:-1])
    # Before any exp: a mask that comes after it leaves nan gradients, for 0 * inf is nan.
    logp, old_logp, ref_logp = (jnp.where(mask, x, 0.0) for x in (logp, old_logp, ref_logp))
    old_logp, ref_logp = jax.lax.stop_gradient((old_logp, ref_logp))
    advantages = jax.lax.stop_gradient(advantages)[..., None]

    surrogate = clipped_surrogate(
        logp, old_logp, advantages, clip_low=clip_low, clip_high=clip_high
    )
    policy_loss = reduce(surrogate, mask)
    kl = kl_estimator(logp, ref_logp)
    kl_loss = kl_coef * reduce(kl, mask)

    ratio = jax.lax.stop_gradient(_ratio(logp, old_logp))
    is_clipped = jnp.where(advantages > 0, ratio > 1.0 + clip_high, ratio < 1.0 - clip_low)
    is_clipped &= advantages != 0
    metrics = {
        "policy_loss": policy_loss,
        "kl": mean_over_sequences(kl, mask),
        "kl_loss": kl_loss,
        "clip_fraction": mean_over_sequences(is_clipped.astype(ratio.dtype), mask),
        "ratio": mean_over_sequences(ratio, mask),
    }
    return policy_loss + kl_loss, metrics


def _ratio(logp: Float[Array, "*d"], old_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    return jnp.exp(jnp.minimum(logp - old_logp, MAX_LOG_RATIO))
