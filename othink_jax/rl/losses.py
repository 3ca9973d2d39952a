"""The loss of GRPO (Eq. 4), to be minimised, and its general form `policy_loss`."""

import functools

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from othink_jax.rl.averages import Average, Reduction, mean_over_sequences
from othink_jax.rl.checks import require
from othink_jax.rl.corrections import Correction
from othink_jax.rl.kl import Estimator, KLTerm, kl_k3, kl_to_go, own_gradient
from othink_jax.rl.objectives import Objective, per_token, ppo
from othink_jax.rl.ratios import to_ratio
from othink_jax.rl.surrogates import ppo_clip

_OF_PAPER = own_gradient(kl_k3)


def clipped_surrogate(
    logp: Float[Array, "*d"],
    old_logp: Float[Array, "*d"],
    advantages: Float[Array, "*#d"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "*d"]:
    """-min(rho * A, clip(rho, 1 - clip_low, 1 + clip_high) * A), rho = pi / pi_old (part of Eq. 4).

    Elementwise and to be minimised: `ppo_clip` of the ratio. log rho is clipped at `MAX_LOG_RATIO`:
    PPO's clip bounds the ratio only where A > 0, and a huge ratio with A < 0 would overflow.

    Args:
      logp: nats, under the policy being trained; the gradient flows through this.
      old_logp: nats, under the policy that sampled.
      advantages: broadcast against the others; a trailing axis of 1 gives all tokens of a
        completion the same advantage.
    """
    return ppo_clip(to_ratio(logp - old_logp), advantages, clip_low=clip_low, clip_high=clip_high)


def policy_loss(
    logp: Float[Array, "*n T"],
    old_logp: Float[Array, "*n T"],
    ref_logp: Float[Array, "*n T"] | None,
    advantages: Float[Array, "*n"] | Float[Array, "*n T"],
    mask: Bool[Array, "*n T"],
    *,
    kl_coef: Float[Array, ""] | float,
    kept: Bool[Array, "*n"] | None = None,
    weights: Float[Array, "*n T"] | None = None,
    sampler_logp: Float[Array, "*n T"] | None = None,
    kl: Float[Array, "*n T"] | None = None,
    objective: Objective = ppo,
    kl_term: KLTerm = _OF_PAPER,
    reduce: Reduction = mean_over_sequences,
    kl_in_reward: bool = False,
    correction: Correction | None = None,
) -> tuple[Average, dict[str, Average]]:
    """A policy-gradient loss with a KL term, as averages that add up over micro-batches.

    The loss is reduce(objective) + kl_coef * reduce(kl_term). With `kl_in_reward` the KL term is
    only measured. Instead the advantage of each token is lowered by kl_coef * `kl_to_go` of the
    policy that sampled.

    The gradient flows through `logp` and `kl` alone. Inputs where `mask` is false are ignored, nan
    and infinities included.

    Args:
      logp: nats, under the policy being trained.
      old_logp: nats, under the policy that sampled.
      ref_logp: nats, under the reference; None omits the KL from loss and metrics, unless `kl` is
        given.
      advantages: one per sequence, or one per token.
      mask: true where a token is real.
      kl_coef: beta, the KL coefficient.
      kept: false for sequences that are left out of every mean; None keeps all.
      weights: constant weights of the objective's values, such as `top_entropy_mask`.
      sampler_logp: nats, as reported by the engine that sampled; for the correction.
      kl: nats, divergence from the reference after each token, measured over the whole vocabulary
        by `KL_DIVERGENCES`; replaces `ref_logp` and `kl_term`.
      objective: function of (logp, old_logp, advantages, mask), all [*n, T]; one of `OBJECTIVES`.
      kl_term: function of (logp, old_logp, ref_logp); an estimator of `KL_ESTIMATORS` with a
        gradient of `KL_GRADIENTS`.
      reduce: function of (values, mask, kept); one of `REDUCTIONS`.
      kl_in_reward: whether the KL is a part of the reward instead of the loss.
      correction: further weights of the objective's values; one of `CORRECTIONS`.

    Returns:
      The loss, and metrics. The loss is the sum of `policy_loss` (the objective) and `kl_loss`
      (beta times the KL term). For any `reduce`, `mean_over_sequences` averages `kl` (nats per
      token), `clip_fraction` (share of tokens with an advantage but no gradient of the objective)
      and `ratio` (pi / pi_old of a token).

    Raises:
      ValueError: `kl` is given together with `ref_logp` or `kl_in_reward`.
    """
    require(kl is None or ref_logp is None, "a loss takes ref_logp or kl, not both")
    require(kl is None or not kl_in_reward, "a KL over the vocabulary is a term of the loss only")
    measured = [values for values in (ref_logp, kl) if values is not None]
    chex.assert_equal_shape([logp, old_logp, mask, *measured])
    # Mask before any exp: masking after it leaves nan gradients, since 0 * inf is nan.
    logp, old_logp = (jnp.where(mask, x, 0.0) for x in (logp, old_logp))
    old_logp, given = jax.lax.stop_gradient(old_logp), per_token(advantages, mask)
    advantages = given
    if ref_logp is not None:
        ref_logp = jax.lax.stop_gradient(jnp.where(mask, ref_logp, 0.0))
        kl = kl_term(logp, old_logp, ref_logp)
        if kl_in_reward:
            advantages = given - kl_coef * kl_to_go(old_logp, ref_logp, mask)
    elif kl is not None:
        kl = jnp.where(mask, kl, 0.0)
    loss_of_kl: dict[str, Average] = {}
    if kl is not None:
        coef_in_loss = 0.0 if kl_in_reward else kl_coef
        kl_loss = reduce(kl, mask, kept)
        loss_of_kl["kl"] = mean_over_sequences(kl, mask, kept)
        loss_of_kl["kl_loss"] = kl_loss._replace(total=coef_in_loss * kl_loss.total)

    now = jax.lax.stop_gradient(logp)
    if correction is not None:
        sampled = old_logp if sampler_logp is None else jnp.where(mask, sampler_logp, 0.0)
        # As given: whether a sequence did well does not depend on its KL.
        further = correction(now, old_logp, sampled, given, mask)
        weights = further if weights is None else weights * further

    def values(logp: Array) -> Array:
        unweighted = objective(logp, old_logp, advantages, mask)
        return unweighted if weights is None else unweighted * jax.lax.stop_gradient(weights)

    gain = reduce(values(logp), mask, kept)
    slope = jax.grad(lambda logp: values(logp).sum())(now)
    clipped = (slope == 0) & (advantages != 0)
    metrics = {
        "policy_loss": gain,
        **loss_of_kl,
        "clip_fraction": mean_over_sequences(clipped.astype(logp.dtype), mask, kept),
        "ratio": mean_over_sequences(to_ratio(now - old_logp), mask, kept),
    }
    total = gain.total if kl is None else gain.total + metrics["kl_loss"].total
    return gain._replace(total=total), metrics


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
    kl_estimator: Estimator = kl_k3,
    reduce: Reduction = mean_over_sequences,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The loss of Eq. 4 and 5 of OThink-MR1, to be minimised, and its metrics.

    It is `policy_loss` with the objective `ppo`, for a whole batch. The gradient flows through
    `logp` alone; the other arrays are constants, as in the equation. `grpo_loss(logp, logp, ...)`
    is thus the strictly on-policy loss, whose ratio is one. Inputs where `mask` is false are
    ignored, nan and infinities included.

    Args:
      logp: nats, under the policy being trained.
      old_logp: nats, under the policy that sampled.
      ref_logp: nats, under the reference.
      advantages: one per sequence.
      mask: true where a token is real; an empty sequence counts in the mean, with zero.
      kl_coef: beta, the KL coefficient.
      clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high].
      kl_estimator: elementwise function of (logp, ref_logp); Eq. 5 has `kl_k3`.
      reduce: function of (values, mask, kept); Eq. 4 has `mean_over_sequences`.

    Returns:
      The loss, and the metrics of `policy_loss`, as numbers.
    """
    _, averages = policy_loss(
        logp,
        old_logp,
        ref_logp,
        advantages,
        mask,
        kl_coef=kl_coef,
        objective=functools.partial(ppo, clip_low=clip_low, clip_high=clip_high),
        kl_term=own_gradient(kl_estimator),
        reduce=reduce,
    )
    metrics = {name: average.value for name, average in averages.items()}
    return metrics["policy_loss"] + metrics["kl_loss"], metrics
