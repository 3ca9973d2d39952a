"""The pure functions of GRPO-D, Eq. 1 to 5 of OThink-MR1 (arXiv 2503.16081), and of its relatives.

A loss is a reduction of an objective, which is a surrogate of a level of the ratio. Each of them is
a function, so that own ones plug in; `OBJECTIVES` and `ADVANTAGES` name those that are here.

Nothing here knows of models, prompts or runs: arrays in, arrays out, ready for other projects.
Dimension letters: B prompts, G completions of a prompt, T completion tokens, R kinds of reward.
"""

from othink_jax.rl.advantages import (
    ADVANTAGES,
    batch_advantages,
    gdpo_advantages,
    group_advantages,
    mean_advantages,
    pass_at_k_advantages,
    reinforce_pp_advantages,
    reinforce_pp_baseline_advantages,
    rloo_advantages,
    soft_overlong_penalty,
    total_reward,
)
from othink_jax.rl.corrections import (
    masked_weights,
    off_policy_sequence_mask,
    top_entropy_mask,
    truncated_weights,
)
from othink_jax.rl.kl import MAX_LOG_RATIO, kl_k1, kl_k2, kl_k3
from othink_jax.rl.kl_coef import KLCoefState, adapt_kl_coef, carry_kl_coef, kl_coef
from othink_jax.rl.losses import (
    clipped_surrogate,
    grpo_loss,
    mean_over_length,
    mean_over_sequences,
    mean_over_tokens,
)
from othink_jax.rl.objectives import (
    OBJECTIVES,
    cispo,
    dppo_kl,
    dppo_tv,
    dual_clip,
    gmpo,
    gspo,
    gspo_token,
    luspo,
    ppo,
    sapo,
    two_sided,
    vespo,
)
from othink_jax.rl.ratios import (
    gspo_token_log_ratio,
    sequence_log_ratio,
    to_ratio,
    token_log_ratio,
    trajectory_log_ratio,
)
from othink_jax.rl.schedules import constant_kl, dynamic_kl
from othink_jax.rl.surrogates import dual_ppo_clip, ppo_clip, sapo_gate, two_sided_ppo_clip

__all__ = [
    "ADVANTAGES",
    "MAX_LOG_RATIO",
    "OBJECTIVES",
    "KLCoefState",
    "adapt_kl_coef",
    "batch_advantages",
    "carry_kl_coef",
    "cispo",
    "clipped_surrogate",
    "constant_kl",
    "dppo_kl",
    "dppo_tv",
    "dual_clip",
    "dual_ppo_clip",
    "dynamic_kl",
    "gdpo_advantages",
    "gmpo",
    "group_advantages",
    "grpo_loss",
    "gspo",
    "gspo_token",
    "gspo_token_log_ratio",
    "kl_coef",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "luspo",
    "masked_weights",
    "mean_advantages",
    "mean_over_length",
    "mean_over_sequences",
    "mean_over_tokens",
    "off_policy_sequence_mask",
    "pass_at_k_advantages",
    "ppo",
    "ppo_clip",
    "reinforce_pp_advantages",
    "reinforce_pp_baseline_advantages",
    "rloo_advantages",
    "sapo",
    "sapo_gate",
    "sequence_log_ratio",
    "soft_overlong_penalty",
    "to_ratio",
    "token_log_ratio",
    "top_entropy_mask",
    "total_reward",
    "trajectory_log_ratio",
    "truncated_weights",
    "two_sided",
    "two_sided_ppo_clip",
    "vespo",
]
