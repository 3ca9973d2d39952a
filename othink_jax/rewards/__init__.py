"""Rewards of a completion: is the answer right, and is the format as asked for?"""

from othink_jax.rewards.answers import extract_answer, ground_truth
from othink_jax.rewards.format import format_reward
from othink_jax.rewards.pool import GradingPool
from othink_jax.rewards.regrade import regrade
from othink_jax.rewards.verdict import Grade, grade

__all__ = [
    "Grade",
    "GradingPool",
    "extract_answer",
    "format_reward",
    "grade",
    "ground_truth",
    "regrade",
]
