"""The pure functions of GRPO-D: Eq. 1 to 5 of OThink-MR1 (arXiv 2503.16081).

Nothing here knows of models, prompts or runs: arrays in, arrays out, ready for other projects.
Dimension letters: B prompts, G completions of a prompt, T completion tokens.
"""

from othink_jax.rl.advantages import group_advantages, total_reward
from othink_jax.rl.kl import MAX_LOG_RATIO, kl_k1, kl_k2, kl_k3
from othink_jax.rl.kl_coef import KLCoefState, adapt_kl_coef, carry_kl_coef, kl_coef
from othink_jax.rl.losses import (
    clipped_surrogate,
    grpo_loss,
    mean_over_length,
    mean_over_sequences,
    mean_over_tokens,
)
from othink_jax.rl.schedules import constant_kl, dynamic_kl

__all__ = [
    "MAX_LOG_RATIO",
    "KLCoefState",
    "adapt_kl_coef",
    "carry_kl_coef",
    "clipped_surrogate",
    "constant_kl",
    "dynamic_kl",
    "group_advantages",
    "grpo_loss",
    "kl_coef",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "mean_over_length",
    "mean_over_sequences",
    "mean_over_tokens",
    "total_reward",
]
