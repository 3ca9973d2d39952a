"""Rewards, and advantages of a prompt's completions relative to each other (Eq. 1 and 2).

An advantage function maps rewards [B, G], of G completions of each of B prompts, and
hyperparameters to advantages [B, G]. A hyperparameter out of range raises ValueError. A group whose
rewards are all equal carries no signal and gets exact zeros, unless the whole batch is the baseline
(`reinforce_pp_advantages`). A function that normalises by the batch needs the whole batch, of all
processes. A reward that is nan makes its group nan, or the batch that is normalised with it.
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from othink_jax.rl.checks import require

Rewards = Float[Array | np.ndarray, "B G"]
Advantage = Callable[..., Array]  # (rewards [B, G], *, numbers) -> advantages [B, G]


def total_reward(
    accuracy: Float[Array | np.ndarray, "*d"],
    format: Float[Array | np.ndarray, "*d"],
    *,
    alpha: float = 1.0,
) -> Float[Array, "*d"]:
    """The reward of a completion, R = R_acc + alpha * R_format (Eq. 1 of OThink-MR1).

    Args:
      accuracy: 1 where the answer is right, else 0.
      format: 1 where reasoning and answer are in their tags, else 0.
      alpha: weight of the format reward.
    """
    return jnp.asarray(accuracy) + alpha * jnp.asarray(format)


def soft_overlong_penalty(
    lengths: Int[Array | np.ndarray, "*d"], *, limit: int, cache: int
) -> Float[Array, "*d"]:
    """A penalty for long completions, to be added to their reward (DAPO, arXiv 2503.14476, Eq. 13).

    0 up to limit - cache tokens, then falling linearly to -1 at `limit`, where it stays.

    Args:
      lengths: lengths of completions, tokens.
      limit: length at which the penalty reaches -1, tokens; L_max of the paper.
      cache: number of tokens over which it falls; L_cache of the paper.

    Raises:
      ValueError: not 0 < cache <= limit.
    """
    require(0 < cache <= limit, f"0 < cache <= limit must hold, got {cache} and {limit}")
    return jnp.clip((limit - cache - jnp.asarray(lengths)) / cache, -1.0, 0.0)


def group_advantages(
    rewards_BG: Rewards, *, ddof: int = 1, eps: float = 1e-4
) -> Float[Array, "B G"]:
    """Rewards relative to their group, (r - mean(r)) / (std(r) + eps) (Eq. 2 of OThink-MR1).

    A group whose rewards are all equal carries no signal and gets exact zeros, with `eps` = 0 too.
    A reward that is nan makes its whole group nan.

    Args:
      rewards_BG: rewards of the G completions of each of B prompts.
      ddof: the standard deviation divides by G - ddof; R1-V takes 1.
      eps: added to the standard deviation. The equation has 0, R1-V 1e-4.

    Raises:
      ValueError: `eps` is negative, or a group is too small for `ddof`.
    """
    rewards_BG = jnp.asarray(rewards_BG)
    group_size = rewards_BG.shape[-1]
    if group_size <= ddof:
        raise ValueError(f"a group must hold more than ddof={ddof} rewards, got {group_size}")
    if eps < 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    no_signal = zero_variance_groups(rewards_BG)[:, None]
    centred = rewards_BG - rewards_BG.mean(axis=-1, keepdims=True)
    scale = rewards_BG.std(axis=-1, ddof=ddof, keepdims=True) + eps
    return jnp.where(no_signal, 0.0, centred / jnp.where(no_signal, 1.0, scale))


def mean_advantages(rewards_BG: Rewards) -> Float[Array, "B G"]:
    """r - mean of the group (Dr. GRPO, arXiv 2503.20783).

    Not divided by the standard deviation, so no question weighs more for being easy or hard.
    """
    return _centred(_grouped(rewards_BG))


def batch_advantages(rewards_BG: Rewards, *, eps: float = 1e-4) -> Float[Array, "B G"]:
    """(r - mean of the group) / (std of the batch's rewards + eps), with divisor B G - 1.

    As in Lite PPO (arXiv 2508.08221); TRL's `scale_rewards="batch"`.

    Args:
      eps: added to the standard deviation; TRL has 1e-4.
    """
    rewards_BG = _grouped(rewards_BG)
    return _scaled(_centred(rewards_BG), rewards_BG.std(ddof=1), eps)


def rloo_advantages(rewards_BG: Rewards) -> Float[Array, "B G"]:
    """r - mean of the other rewards of the group (RLOO, arXiv 2402.14740).

    The baseline does not depend on the completion, so the gradient has no bias. It is
    `mean_advantages` times G / (G - 1).
    """
    rewards_BG = _grouped(rewards_BG)
    group_size = rewards_BG.shape[-1]
    return _centred(rewards_BG) * (group_size / (group_size - 1))


def reinforce_pp_advantages(rewards_BG: Rewards, *, eps: float = 1e-8) -> Float[Array, "B G"]:
    """(r - mean of the batch) / (std of the batch + eps) (REINFORCE++, arXiv 2501.03262).

    A group may hold one completion. Groups without signal do not get zeros: the other questions of
    the batch are the baseline. A batch without signal does.

    Args:
      eps: added to the standard deviation, whose divisor is B G - 1. verl, which counts tokens
        instead of completions, adds 1e-8 to the variance.
    """
    rewards_BG = jnp.asarray(rewards_BG)
    require(rewards_BG.size > 1, "a batch of one reward has nothing to be compared with")
    centred = _centred(rewards_BG.reshape(1, -1)).reshape(rewards_BG.shape)
    return _scaled(centred, rewards_BG.std(ddof=1), eps)


def reinforce_pp_baseline_advantages(
    rewards_BG: Rewards, *, eps: float = 1e-8
) -> Float[Array, "B G"]:
    """`mean_advantages` over their std in the whole batch (REINFORCE++ with baseline).

    Their mean over the batch is zero, as it is over each group (arXiv 2501.03262).

    Args:
      eps: added to the standard deviation, whose divisor is B G - 1.
    """
    return _standardised(mean_advantages(rewards_BG), eps)


def pass_at_k_advantages(rewards_BG: Rewards, *, k: int = 2) -> Float[Array, "B G"]:
    """k times the gain of a completion over the best reward of k - 1 others of its group.

    The gain is max of all k minus max of the others, averaged over all choices of the others. It is
    the leave-one-out gradient of pass@k, or of the best of k if rewards are not 0 and 1 (arXiv
    2503.19595 for k = G; arXiv 2505.15201 for k < G). It is unbiased: the mean over a group of
    advantage times gradient of the log-probability has the expectation of grad E[max of k].

    With sorted rewards r_(1) <= ... <= r_(G), j - 1 of them below r_(j), it is
    k sum_j C(j-1, k-2) / C(G-1, k-1) max(r - r_(j), 0). For k = G only the best completion has an
    advantage, G times its lead; verl leaves out the factor G.

    Args:
      k: from 2 to G. With k = 1 there are no others, and the best reward is the mean one.
    """
    rewards_BG = _grouped(rewards_BG)
    group_size = rewards_BG.shape[-1]
    require(2 <= k <= group_size, f"k must be in [2, {group_size}], the group's size, got {k}")
    choices = math.comb(group_size - 1, k - 1)
    # Share of the choices of k - 1 others whose best one has `below` others below it.
    share = jnp.array([math.comb(below, k - 2) / choices for below in range(group_size)])
    lead = jnp.maximum(rewards_BG[..., :, None] - jnp.sort(rewards_BG)[..., None, :], 0.0)
    return k * (lead * share).sum(axis=-1)


def gdpo_advantages(
    rewards_RBG: Float[Array | np.ndarray, "R B G"],
    *,
    weights: Sequence[float],
    eps: float = 1e-4,
) -> Float[Array, "B G"]:
    """Rewards of R kinds, each relative to its group, then summed (GDPO, arXiv 2601.05242).

    The sum of weight times `group_advantages` is divided by its std in the whole batch plus eps;
    its mean is zero. So a reward of small spread counts as much as one of large spread. TRL's
    `multi_objective_aggregation="normalize_then_sum"`.

    Args:
      weights: one per kind of reward.
      eps: added to each standard deviation, whose divisors are G - 1 and B G - 1.
    """
    kinds, prompts, group_size = rewards_RBG.shape
    require(len(weights) == kinds, f"{kinds} rewards need as many weights, got {len(weights)}")
    require(all(map(math.isfinite, weights)), f"weights must be finite, got {list(weights)}")
    normalised = group_advantages(jnp.reshape(rewards_RBG, (-1, group_size)), eps=eps)
    normalised = normalised.reshape(kinds, prompts, group_size)
    return _standardised(jnp.einsum("rbg,r->bg", normalised, jnp.array(weights)), eps)


ADVANTAGES: dict[str, Advantage] = {
    "group": group_advantages,
    "mean": mean_advantages,
    "batch": batch_advantages,
    "rloo": rloo_advantages,
    "reinforce_pp": reinforce_pp_advantages,
    "reinforce_pp_baseline": reinforce_pp_baseline_advantages,
    "pass_at_k": pass_at_k_advantages,
}


def zero_variance_groups(rewards_BG: Rewards) -> Bool[Array | np.ndarray, " B"]:
    """True for groups whose rewards are all equal: none of them is better than another."""
    # Compared, not inferred from std = 0: the mean of three times 0.1 is not 0.1, and a small eps
    # would amplify the rounding error to an advantage of order one.
    return (rewards_BG == rewards_BG[:, :1]).all(axis=-1)


def _grouped(rewards_BG: Rewards) -> Float[Array, "B G"]:
    rewards_BG = jnp.asarray(rewards_BG)
    require(rewards_BG.shape[-1] > 1, "a group of one completion has none to be compared with")
    return rewards_BG


def _centred(rewards_BG: Float[Array, "B G"]) -> Float[Array, "B G"]:
    """r - mean of the group; exact zeros in groups without signal."""
    centred = rewards_BG - rewards_BG.mean(axis=-1, keepdims=True)
    return jnp.where(zero_variance_groups(rewards_BG)[:, None], 0.0, centred)


def _scaled(
    centred_BG: Float[Array, "B G"], std: Float[Array, ""], eps: float
) -> Float[Array, "B G"]:
    """Divide by std + eps; zeros stay zero, also if std and eps are zero."""
    require(eps >= 0, f"eps must be >= 0, got {eps}")
    return jnp.where(centred_BG == 0, 0.0, centred_BG / (std + eps))


def _standardised(centred_BG: Float[Array, "B G"], eps: float) -> Float[Array, "B G"]:
    """Divide by the std in the whole batch; the mean is zero by construction."""
    return _scaled(centred_BG, centred_BG.std(ddof=1), eps)
