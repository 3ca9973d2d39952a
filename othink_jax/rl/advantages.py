"""Rewards and group-relative advantages (Eq. 1 and 2)."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def total_reward(
    accuracy: Float[Array | np.ndarray, "*d"],
    format: Float[Array | np.ndarray, "*d"],
    *,
    alpha: float = 1.0,
) -> Float[Array, "*d"]:
    """The reward of a completion, R = R_acc + alpha * R_format (Eq. 1 of OThink-MR1).

    Args:
        accuracy: 1 where the answer is right, else 0.
        format: 1 where reasoning and answer stand in their tags, else 0.
        alpha: weight of the format reward.
    """
    return jnp.asarray(accuracy) + alpha * jnp.asarray(format)


def group_advantages(
    rewards_BG: Float[Array | np.ndarray, "B G"], *, ddof: int = 1, eps: float = 1e-4
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
    # Compared, not inferred from std = 0: the mean of three times 0.1 is not 0.1, and with a small
    # eps the rounding error would be blown up into an advantage of order one.
    no_signal = jnp.all(rewards_BG == rewards_BG[:, :1], axis=-1, keepdims=True)
    centred = rewards_BG - rewards_BG.mean(axis=-1, keepdims=True)
    scale = rewards_BG.std(axis=-1, ddof=ddof, keepdims=True) + eps
    return jnp.where(no_signal, 0.0, centred / jnp.where(no_signal, 1.0, scale))


ADVANTAGES: Mapping[str, Callable[..., Array]] = {"group": group_advantages}
