"""The reward functions that are known by name."""

from collections.abc import Mapping

from othink_jax.rewards.functions import Reward, RewardFunction, load_reward

REWARDS: Mapping[str, RewardFunction] = {}


def load(path: str) -> Reward:
    """The function of this name or at this path; raises as `functions.load_reward` does."""
    return load_reward(path, REWARDS)
