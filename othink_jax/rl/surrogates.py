"""Surrogates: elementwise functions of ratio and advantage, to be minimised.

They take the ratio at any level: `ppo_clip(to_ratio(sequence_log_ratio(...)), ...)` is GSPO. Ratios
are > 0; advantages broadcast against them. If the ratio is one and nothing is clipped, the
derivative by the ratio is -A for each of them.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from othink_jax.rl.checks import require, require_positive


def ppo_clip(
    ratio: Float[Array, "*d"],
    advantages: Float[Array, "*#d"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Float[Array, "*d"]:
    """-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) (PPO, arXiv 1707.06347, Eq. 7).

    Unequal bounds are those of DAPO (arXiv 2503.14476). A negative advantage leaves large ratios
    unbounded; `dual_ppo_clip` and `two_sided_ppo_clip` bound them.

    Raises:
      ValueError: not 0 < clip_low < 1, or clip_high is not > 0 and finite.
    """
    # A bound of 0 would clip the on-policy gradient as well.
    require(0 < clip_low < 1, f"clip_low must be in (0, 1), got {clip_low}")
    require_positive(clip_high=clip_high)
    clipped = jnp.clip(ratio, 1.0 - clip_low, 1.0 + clip_high)
    return jnp.maximum(-ratio * advantages, -clipped * advantages)


def dual_ppo_clip(
    ratio: Float[Array, "*d"],
    advantages: Float[Array, "*#d"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    c: float = 3.0,
) -> Float[Array, "*d"]:
    """`ppo_clip`, at most -c A where A < 0 (dual-clip PPO, arXiv 1912.09729).

    The gradient of a token with A < 0 vanishes beyond the ratio c.

    Raises:
      ValueError: as `ppo_clip`, or c is not > 1 and finite.
    """
    require(1 < c < math.inf, f"c must be > 1 and finite: it bounds ratios above one, got {c}")
    clipped = ppo_clip(ratio, advantages, clip_low=clip_low, clip_high=clip_high)
    return jnp.where(advantages < 0, jnp.minimum(clipped, -c * advantages), clipped)


def two_sided_ppo_clip(
    ratio: Float[Array, "*d"],
    advantages: Float[Array, "*#d"],
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    delta: float = 4.0,
) -> Float[Array, "*d"]:
    """-min(min(r, delta) A, clip(r, 1 - clip_low, 1 + clip_high) A) (INTELLECT-2, section 4.1).

    Differs from `ppo_clip` only for A < 0 and a ratio above delta, where it has no gradient
    (arXiv 2505.07291). So it is `dual_ppo_clip` with c = delta.

    Raises:
      ValueError: as `ppo_clip`, or delta is not > 1 + clip_high and finite.
    """
    require(
        1 + clip_high < delta < math.inf,
        f"delta must be finite and above 1 + clip_high = {1 + clip_high}, the bound of the other"
        f" side, got {delta}",
    )
    return dual_ppo_clip(ratio, advantages, clip_low=clip_low, clip_high=clip_high, c=delta)


def sapo_gate(
    ratio: Float[Array, "*d"],
    advantages: Float[Array, "*#d"],
    *,
    temperature_pos: float = 1.0,
    temperature_neg: float = 1.05,
) -> Float[Array, "*d"]:
    """-4 / tau sigmoid(tau (r - 1)) A, tau by the sign of A (SAPO, arXiv 2511.20347).

    A smooth gate instead of the clip: its slope is 1 at r = 1 and falls on both sides, faster for a
    higher temperature tau. The value at r = 1 is -2 A / tau, not -A.

    Args:
      temperature_pos: tau where A > 0.
      temperature_neg: tau elsewhere.

    Raises:
      ValueError: a temperature is not > 0 and finite.
    """
    require_positive(temperature_pos=temperature_pos, temperature_neg=temperature_neg)
    temperature = jnp.where(advantages > 0, temperature_pos, temperature_neg)
    return -jax.nn.sigmoid(temperature * (ratio - 1.0)) * (4.0 / temperature) * advantages
