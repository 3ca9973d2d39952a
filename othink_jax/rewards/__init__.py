"""Rewards of a completion: correctness of its answer, its format, and reward functions."""

from othink_jax.rewards.answers import extract_answer, ground_truth, same_answer_key
from othink_jax.rewards.builtin import REWARDS, load
from othink_jax.rewards.format import ANSWER_TAGS, AnswerFormat, format_reward
from othink_jax.rewards.functions import (
    ANSWER_FORMAT,
    EXAMPLE_FIELDS,
    GRADED,
    Reward,
    RewardExample,
    Scores,
    why_all_failed,
)
from othink_jax.rewards.pool import GradingPool
from othink_jax.rewards.regrade import regrade, score_asked
from othink_jax.rewards.sums import measured, parts, weighted
from othink_jax.rewards.verdict import Grade, grade

__all__ = [
    "ANSWER_FORMAT",
    "ANSWER_TAGS",
    "EXAMPLE_FIELDS",
    "GRADED",
    "REWARDS",
    "AnswerFormat",
    "Grade",
    "GradingPool",
    "Reward",
    "RewardExample",
    "Scores",
    "extract_answer",
    "format_reward",
    "grade",
    "ground_truth",
    "load",
    "measured",
    "parts",
    "regrade",
    "same_answer_key",
    "score_asked",
    "weighted",
    "why_all_failed",
]
