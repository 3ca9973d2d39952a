"""Policy objectives by name: values per token, to be minimised.

Each is a function of

    logp [*n, T]        nats, under the policy being trained
    old_logp [*n, T]    nats, under the policy that sampled
    advantages          [*n], one per sequence, or [*n, T], one per token
    mask [*n, T]        true where a token is real

and of hyperparameters, whose defaults are those of its source. It returns values [*n, T], which a
reduction such as `mean_over_sequences` turns into the loss. The gradient flows through `logp`
alone. Where `mask` is false, value and gradient are zero and inputs are ignored, nan and infinities
included. A sequence-level objective repeats its value at each token, so that the mean over the
tokens of a sequence is the sequence's value. A hyperparameter out of range raises ValueError.

On-policy (logp = old_logp), the gradient of the mean over sequences is the policy gradient,
-A / |o| per token, for all but `luspo`, which has -A. The gradient of each token's value is -A too,
except for `gspo` and `gmpo`, whose values depend on all tokens of a sequence.
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from othink_jax.rl import surrogates
from othink_jax.rl.checks import require, require_positive
from othink_jax.rl.ratios import (
    Mask,
    RatioLevel,
    Values,
    gspo_token_log_ratio,
    sequence_log_ratio,
    to_ratio,
    token_log_ratio,
)

Objective = Callable[..., Array]  # (logp, old_logp, advantages, mask, *, numbers) -> [*n, T]
Advantages = Float[Array, "*n"] | Float[Array, "*n T"]

# Keeps the logarithm of 1 - p finite where a probability rounds to one, as in verl.
_TINY = 1e-8


def ppo(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Values:
    """`ppo_clip` of the token's ratio: Eq. 4 of OThink-MR1 (PPO, arXiv 1707.06347).

    GRPO reduces it by sequence; DAPO (arXiv 2503.14476, Eq. 8) by token, with clip_high = 0.28.
    """
    ratio, advantages = _prepare(token_log_ratio, logp, old_logp, advantages, mask)
    values = surrogates.ppo_clip(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(mask, values, 0.0)


def dual_clip(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    c: float = 3.0,
) -> Values:
    """`dual_ppo_clip` of the token's ratio (dual-clip PPO, arXiv 1912.09729)."""
    ratio, advantages = _prepare(token_log_ratio, logp, old_logp, advantages, mask)
    values = surrogates.dual_ppo_clip(
        ratio, advantages, clip_low=clip_low, clip_high=clip_high, c=c
    )
    return jnp.where(mask, values, 0.0)


def two_sided(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float = 4.0,
) -> Values:
    """`two_sided_ppo_clip` of the token's ratio (INTELLECT-2, arXiv 2505.07291, section 4.1)."""
    ratio, advantages = _prepare(token_log_ratio, logp, old_logp, advantages, mask)
    values = surrogates.two_sided_ppo_clip(
        ratio, advantages, clip_low=clip_low, clip_high=clip_high, delta=delta
    )
    return jnp.where(mask, values, 0.0)


def gspo(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Values:
    """`ppo_clip` of the sequence's ratio (GSPO, arXiv 2507.18071, Eq. 5 and 7).

    Its reduction is by sequence. A reduction that sums tokens weights sequences by their length.
    """
    ratio, advantages = _prepare(sequence_log_ratio, logp, old_logp, advantages, mask)
    values = surrogates.ppo_clip(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(mask, values, 0.0)


def gspo_token(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Values:
    """`ppo_clip` of the sequence's ratio, with the gradient at each token its own (GSPO, Eq. 13).

    With one advantage a sequence, and reduced by sequence, value and gradient are those of `gspo`
    (arXiv 2507.18071, section 4.3).
    """
    ratio, advantages = _prepare(gspo_token_log_ratio, logp, old_logp, advantages, mask)
    values = surrogates.ppo_clip(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(mask, values, 0.0)


def luspo(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    clip_low: float = 2e-3,
    clip_high: float = 2.5e-3,
) -> Values:
    """`gspo` times the length of the sequence in tokens (LUSPO, arXiv 2602.05261, section 5.1).

    Its reduction is by sequence: sum of |o| s A over n sequences. (`gspo`, summed over the tokens
    of each sequence, is the same; TRL writes it so.)
    """
    values = gspo(logp, old_logp, advantages, mask, clip_low=clip_low, clip_high=clip_high)
    return mask.sum(axis=-1, keepdims=True) * values


def cispo(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    ratio_cap: float = 5.0,
) -> Values:
    """-sg(min(r, ratio_cap)) A log pi (CISPO of MiniMax-M1, arXiv 2506.13585).

    No token loses its gradient: the ratio is a bounded weight. `ratio_cap` is 1 + eps_high of the
    paper, and eps_max = 5 of ScaleRL (arXiv 2510.13786). Both reduce by token. The value is not
    that of a surrogate: only its gradient means anything.
    """
    require_positive(ratio_cap=ratio_cap)
    ratio, advantages = _prepare(token_log_ratio, logp, old_logp, advantages, mask)
    return _reinforce(jnp.minimum(ratio, ratio_cap), logp, advantages, mask)


def sapo(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    temperature_pos: float = 1.0,
    temperature_neg: float = 1.05,
) -> Values:
    """`sapo_gate` of the token's ratio (SAPO, arXiv 2511.20347). Its reduction is by sequence."""
    ratio, advantages = _prepare(token_log_ratio, logp, old_logp, advantages, mask)
    values = surrogates.sapo_gate(
        ratio, advantages, temperature_pos=temperature_pos, temperature_neg=temperature_neg
    )
    return jnp.where(mask, values, 0.0)


def gmpo(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    clip_low: float = 0.4,
    clip_high: float = 0.4,
) -> Values:
    """-A times the geometric mean of clipped token ratios (GMPO, arXiv 2507.20673).

    The log ratio of a token is clipped at clip_high where A > 0, else at -clip_low, both in nats:
    the ratio stays below e^0.4, or above e^-0.4. (For unequal bounds, the authors' code, verl and
    TRL do the same; the paper's equation takes clip_high for both signs.) Its reduction is by
    sequence.
    """
    require_positive(clip_low=clip_low, clip_high=clip_high)
    log_ratio = token_log_ratio(logp, old_logp, mask)
    advantages = per_token(advantages, mask)
    clipped = jnp.where(
        advantages > 0, jnp.minimum(log_ratio, clip_high), jnp.maximum(log_ratio, -clip_low)
    )
    # Padding holds log ratios of 0, which no bound moves.
    lengths = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
    ratio = to_ratio(clipped.sum(axis=-1, keepdims=True) / lengths)
    return jnp.where(mask, -ratio * advantages, 0.0)


def vespo(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
) -> Values:
    """-sg(w^k exp(lambda (1 - w))) A log pi, w = pi(o) / pi_old(o) (VESPO, arXiv 2602.10693).

    The weight is that of the whole sequence, without a mean over its length. It is 1 on-policy, has
    its maximum at w = k / lambda, and falls to zero on both sides. k_pos and lambda_pos hold where
    A >= 0. As in the authors' code, log ratios are clipped: of a token to +-20, of a sequence to
    [log 1e-8, 20] nats. Its reduction is by token. Only the gradient of the value means anything.
    """
    require_positive(k_pos=k_pos, lambda_pos=lambda_pos, k_neg=k_neg, lambda_neg=lambda_neg)
    log_ratio = jnp.clip(token_log_ratio(logp, old_logp, mask), -20.0, 20.0)
    log_w = jnp.clip(log_ratio.sum(axis=-1, keepdims=True), math.log(1e-8), 20.0)
    advantages = per_token(advantages, mask)
    k = jnp.where(advantages >= 0, k_pos, k_neg)
    scale = jnp.where(advantages >= 0, lambda_pos, lambda_neg)
    weight = jnp.exp(scale + k * log_w - scale * jnp.exp(log_w))
    return _reinforce(weight, logp, advantages, mask)


def dppo_tv(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    delta: float = 0.15,
    ratio_cap: float = 20.0,
) -> Values:
    """-M sg(min(r, ratio_cap)) A log pi (DPPO, arXiv 2602.04879, Eq. 11 to 13).

    M is 0 for a token whose probability has already moved by more than delta in the direction of
    its advantage: pi - pi_old > delta where A > 0, pi_old - pi > delta elsewhere. Else it is 1.
    |pi - pi_old| is the total variation of the token against all others; unlike a ratio, it moves
    little for rare tokens. delta is that of the script in verl, `ratio_cap` verl's default. Only
    the gradient of the value means anything.
    """
    require(0 < delta < 1, f"delta must be in (0, 1), a difference of probabilities, got {delta}")
    ratio, advantages = _prepare(token_log_ratio, logp, old_logp, advantages, mask)
    moved = jnp.exp(jnp.where(mask, logp, 0.0)) - jnp.exp(jnp.where(mask, old_logp, 0.0))
    too_far = jnp.where(advantages > 0, moved > delta, moved < -delta)
    return _dppo(ratio, too_far, logp, advantages, mask, ratio_cap)


def dppo_kl(
    logp: Values,
    old_logp: Values,
    advantages: Advantages,
    mask: Mask,
    *,
    delta: float = 0.05,
    ratio_cap: float = 20.0,
) -> Values:
    """`dppo_tv` with a binary KL instead of total variation (DPPO, Eq. 14).

    p log(p / q) + (1 - p) log((1 - p) / (1 - q)) with p = pi_old and q = pi of the sampled token,
    in nats. delta is that of the authors' script in verl.
    """
    require_positive(delta=delta)
    ratio, advantages = _prepare(token_log_ratio, logp, old_logp, advantages, mask)
    log_q, log_p = jnp.where(mask, logp, 0.0), jnp.where(mask, old_logp, 0.0)
    # 1 - p by expm1: the plain difference has no digits left if a token is nearly certain.
    other_p, other_q = -jnp.expm1(log_p), -jnp.expm1(log_q)
    divergence = jnp.exp(log_p) * (log_p - log_q)
    divergence += other_p * jnp.log((other_p + _TINY) / (other_q + _TINY))
    pushed_on = jnp.where(advantages > 0, log_q > log_p, log_q < log_p)
    too_far = (divergence > delta) & pushed_on
    return _dppo(ratio, too_far, logp, advantages, mask, ratio_cap)


OBJECTIVES: dict[str, Objective] = {
    "ppo": ppo,
    "dual_clip": dual_clip,
    "two_sided": two_sided,
    "gspo": gspo,
    "gspo_token": gspo_token,
    "cispo": cispo,
    "sapo": sapo,
    "gmpo": gmpo,
    "luspo": luspo,
    "vespo": vespo,
    "dppo_tv": dppo_tv,
    "dppo_kl": dppo_kl,
}


def _prepare(
    level: RatioLevel, logp: Values, old_logp: Values, advantages: Advantages, mask: Mask
) -> tuple[Values, Values]:
    return to_ratio(level(logp, old_logp, mask)), per_token(advantages, mask)


def per_token(advantages: Float[Array, "..."], mask: Mask) -> Values:
    """Advantages as constants [*n, T], zero outside `mask`."""
    if advantages.ndim < mask.ndim:
        chex.assert_shape(advantages, mask.shape[:-1])
        advantages = advantages[..., None]
    else:
        chex.assert_shape(advantages, mask.shape)
    return jnp.where(mask, jax.lax.stop_gradient(advantages), 0.0)


def _reinforce(weight: Values, logp: Values, advantages: Values, mask: Mask) -> Values:
    """-sg(weight) A log pi, zero outside `mask`."""
    return jnp.where(mask, -jax.lax.stop_gradient(weight) * advantages * logp, 0.0)


def _dppo(
    ratio: Values, too_far: Mask, logp: Values, advantages: Values, mask: Mask, ratio_cap: float
) -> Values:
    require_positive(ratio_cap=ratio_cap)
    weight = jnp.where(too_far, 0.0, jnp.minimum(ratio, ratio_cap))
    return _reinforce(weight, logp, advantages, mask)
