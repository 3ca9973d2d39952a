"""Estimators of KL(policy || reference) from one sampled token, in nats per token.

All take the log-probabilities of tokens drawn from the policy. Names and analysis of the values
follow J. Schulman, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html

As a term of the loss, an estimator need not descend the divergence that its value measures. With x
drawn from pi, and E[grad log pi(x)] = 0, the expected gradients are

    k1    zero: the term is noise
    k2    that of the reverse divergence KL(pi || pi_ref), which all three values estimate
    k3    that of the forward divergence KL(pi_ref || pi)
    abs   twice that of the total variation between pi and pi_ref

of one token's distribution. None accounts for how a token changes the divergence of later tokens. A
test verifies each by enumeration. `KL_GRADIENTS` gives an estimator another gradient; `kl_to_go`
puts the divergence of later tokens into the reward. `KL_DIVERGENCES` of `rl.distributions` measures
over the whole vocabulary, without noise.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# (logp, ref_logp) -> nats per token, elementwise
Estimator = Callable[[Array, Array], Array]
# (logp, old_logp, ref_logp) -> nats per token, elementwise; old_logp is of the policy that sampled
KLTerm = Callable[[Array, Array, Array], Array]

# Log-ratios are clipped at this value before exp. A ratio of e^20 = 4.9e8 means that the policy
# gave the token less than 2.1e-9: a policy does not sample it, so it is a numerical accident.
# Float32 overflows at e^88.7, and at e^44 once the gradient norm squares it: one such token would
# turn a whole update to nan. The square of e^20 stays far below. Smaller ratios are exact.
MAX_LOG_RATIO = 20.0


def kl_k1(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """log pi - log pi_ref: unbiased, of high variance, may be negative. Nats per token.

    Its expected gradient is zero.
    """
    return logp - ref_logp


def kl_k2(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """(log pi - log pi_ref)^2 / 2: biased, of low variance, never negative. Nats per token.

    Its expected gradient is that of KL(pi || pi_ref).
    """
    return 0.5 * jnp.square(logp - ref_logp)


def kl_k3(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """exp(d) - d - 1 with d = log pi_ref - log pi (Eq. 5 of OThink-MR1). Nats per token.

    Unbiased, of low variance, never negative. Its expected gradient is that of KL(pi_ref || pi), so
    Eq. 5 does not descend the divergence that it measures. d is clipped at `MAX_LOG_RATIO`: below
    it the value is exact, above it the value is constant and the gradient zero. There is no lower
    bound.
    """
    log_ratio = jnp.minimum(ref_logp - logp, MAX_LOG_RATIO)
    # expm1: exp(d) - d - 1 loses all its digits in float32 where policy and reference nearly agree.
    return jnp.expm1(log_ratio) - log_ratio


def kl_abs(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """|log pi - log pi_ref|: biased, never negative. Nats per token.

    Its expected gradient is twice that of the total variation between pi and pi_ref.
    """
    return jnp.abs(logp - ref_logp)


def own_gradient(estimator: Estimator) -> KLTerm:
    """The estimator as a term of the loss, with the gradient of its value."""

    def term(logp: Array, old_logp: Array, ref_logp: Array) -> Array:
        del old_logp
        return estimator(logp, ref_logp)

    return term


def reverse_gradient(estimator: Estimator) -> KLTerm:
    """The value of an estimator with the gradient of KL(pi || pi_ref), which is that of `kl_k2`.

    Straight-through, as verl's `k3+`. Exact on-policy only: tokens drawn from an older policy are
    weighted as that policy drew them; see `ratio_gradient`.
    """
    return _straight_through(estimator, kl_k2)


def forward_gradient(estimator: Estimator) -> KLTerm:
    """The value of an estimator with the gradient of KL(pi_ref || pi), which is that of `kl_k3`."""
    return _straight_through(estimator, kl_k3)


def ratio_gradient(estimator: Estimator) -> KLTerm:
    """An estimator times the ratio pi / pi_old of its token.

    The expected gradient is that of the estimator's expected value, for any sampling policy: with
    `kl_k1` and `kl_k3` that of KL(pi || pi_ref). TRL: `use_bias_correction_kl`; DeepSeek-V3.2,
    section 3.1. The log-ratio is clipped at `MAX_LOG_RATIO`.
    """

    def term(logp: Array, old_logp: Array, ref_logp: Array) -> Array:
        return estimator(logp, ref_logp) * jnp.exp(jnp.minimum(logp - old_logp, MAX_LOG_RATIO))

    return term


def _straight_through(value: Estimator, gradient: Estimator) -> KLTerm:
    def term(logp: Array, old_logp: Array, ref_logp: Array) -> Array:
        del old_logp
        moving = gradient(logp, ref_logp)
        return jax.lax.stop_gradient(value(logp, ref_logp) - moving) + moving

    return term


def kl_to_go(
    logp: Float[Array, "*n T"], ref_logp: Float[Array, "*n T"], mask: Bool[Array, "*n T"]
) -> Float[Array, "*n T"]:
    """The sum of `kl_k1` from each token to the end of its sequence, nats; zero outside `mask`.

    Added to the reward with weight -beta, it makes a policy gradient descend the divergence of
    whole sequences: a token is charged for its effect on later tokens. No gradient flows through
    it. Values outside `mask` are ignored, nan included.
    """
    each = jax.lax.stop_gradient(jnp.where(mask, kl_k1(logp, ref_logp), 0.0))
    to_go = jax.lax.cumsum(each, axis=each.ndim - 1, reverse=True)
    return jnp.where(mask, to_go, 0.0)


KL_ESTIMATORS: Mapping[str, Estimator] = {
    "k1": kl_k1,
    "k2": kl_k2,
    "k3": kl_k3,
    "abs": kl_abs,
}

KL_GRADIENTS: Mapping[str, Callable[[Estimator], KLTerm]] = {
    "own": own_gradient,
    "reverse": reverse_gradient,
    "forward": forward_gradient,
    "ratio": ratio_gradient,
}
