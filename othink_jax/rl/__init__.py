"""The pure functions of GRPO-D: Eq. 1 to 5 of OThink-MR1 (arXiv 2503.16081).

Nothing here knows of models, prompts or runs: arrays in, arrays out, ready for other projects.
Dimension letters: B prompts, G completions of a prompt, T completion tokens.
"""

from othink_jax.rl.advantages import ADVANTAGES, group_advantages, total_reward
from othink_jax.rl.averages import (
    REDUCTIONS,
    Average,
    Reduction,
    mean_over_length,
    mean_over_sequences,
    mean_over_tokens,
    sum_over_tokens,
)
from othink_jax.rl.kl import (
    KL_ESTIMATORS,
    KL_GRADIENTS,
    MAX_LOG_RATIO,
    forward_gradient,
    kl_abs,
    kl_k1,
    kl_k2,
    kl_k3,
    kl_to_go,
    own_gradient,
    ratio_gradient,
    reverse_gradient,
)
from othink_jax.rl.kl_coef import (
    KLCoefState,
    adapt_kl_coef,
    carry_kl_coef,
    dual_kl_coef,
    kl_coef,
    pid_kl_coef,
)
from othink_jax.rl.kl_controls import KL_CONTROLS
from othink_jax.rl.losses import grpo_loss, policy_loss
from othink_jax.rl.objectives import OBJECTIVES, clipped_surrogate, ppo
from othink_jax.rl.reference import moving_reference, reference_params
from othink_jax.rl.schedules import constant_kl, cyclic_kl, dynamic_kl

__all__ = [
    "ADVANTAGES",
    "KL_CONTROLS",
    "KL_ESTIMATORS",
    "KL_GRADIENTS",
    "MAX_LOG_RATIO",
    "OBJECTIVES",
    "REDUCTIONS",
    "Average",
    "KLCoefState",
    "Reduction",
    "adapt_kl_coef",
    "carry_kl_coef",
    "clipped_surrogate",
    "constant_kl",
    "cyclic_kl",
    "dual_kl_coef",
    "dynamic_kl",
    "forward_gradient",
    "group_advantages",
    "grpo_loss",
    "kl_abs",
    "kl_coef",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "kl_to_go",
    "mean_over_length",
    "mean_over_sequences",
    "mean_over_tokens",
    "moving_reference",
    "own_gradient",
    "pid_kl_coef",
    "policy_loss",
    "ppo",
    "ratio_gradient",
    "reference_params",
    "reverse_gradient",
    "sum_over_tokens",
    "total_reward",
]
