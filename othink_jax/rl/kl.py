"""Estimators of KL(policy || reference) from one sampled token, in nats per token.

All three take the log-probabilities of tokens drawn from the policy. Names and analysis follow
J. Schulman, "Approximating KL divergence", http://joschu.net/blog/kl-approx.html
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

# Log-ratios are cut off here before exp. A ratio of e^20 = 4.9e8 says that the policy gave the
# token less than 2.1e-9, so a policy does not sample it; what gets there is a numerical accident.
# Float32 overflows at e^88.7, and at e^44 once the gradient norm squares it: one such token would
# turn a whole update to nan. The square of e^20 stays far below. Smaller ratios are exact.
MAX_LOG_RATIO = 20.0


def kl_k1(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """log pi - log pi_ref: unbiased, of high variance, may be negative. Nats per token."""
    return logp - ref_logp


def kl_k2(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """(log pi - log pi_ref)^2 / 2: biased, of low variance, never negative. Nats per token."""
    return 0.5 * jnp.square(logp - ref_logp)


def kl_k3(logp: Float[Array, "*d"], ref_logp: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """exp(d) - d - 1 with d = log pi_ref - log pi (Eq. 5 of OThink-MR1). Nats per token.

    Unbiased, of low variance, never negative. d is cut off at `MAX_LOG_RATIO`: up to there the
    value is exact, beyond it the value stays and the gradient is zero. There is no lower bound.
    """
    log_ratio = jnp.minimum(ref_logp - logp, MAX_LOG_RATIO)
    # expm1: exp(d) - d - 1 loses all its digits in float32 where policy and reference nearly agree.
    return jnp.expm1(log_ratio) - log_ratio
