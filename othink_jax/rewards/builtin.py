"""Built-in reward functions by name, beside the rewards that graders measure."""

from collections.abc import Mapping

from othink_jax.rewards.boxes import BOX_REWARDS
from othink_jax.rewards.functions import Reward, RewardFunction, load_reward
from othink_jax.rewards.texts import TEXT_REWARDS

REWARDS: Mapping[str, RewardFunction] = {**TEXT_REWARDS, **BOX_REWARDS}


def load(path: str) -> Reward:
    """Load the function of this name or at this path; raises as `functions.load_reward` does."""
    return load_reward(path, REWARDS)
