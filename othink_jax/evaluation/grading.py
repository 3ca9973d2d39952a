"""Verdicts on an evaluation's answers, and reward values of them."""

from collections.abc import Sequence
from typing import get_args

from othink_jax.config import EvaluateConfig, Grader
from othink_jax.data.example import answer_format
from othink_jax.errors import UserError
from othink_jax.evaluation.answers import Prediction
from othink_jax.rewards import ANSWER_TAGS, Grade, GradingPool, Reward, Scores, score_asked


def grade(predictions: Sequence[Prediction], config: EvaluateConfig, grader: Grader) -> list[Grade]:
    """Verdicts of one grader over predictions."""
    with _pool(config, grader) as pool:
        return pool.grade_all(
            [prediction.model_output for prediction in predictions],
            [prediction.ground_truth for prediction in predictions],
        )


def answers_of(predictions: Sequence[Prediction], config: EvaluateConfig) -> list[str | None]:
    """The extracted answer of each prediction; None if it has none."""
    with _pool(config, config.reward.grader) as pool:
        return pool.extract_all([prediction.model_output for prediction in predictions])


def score(
    predictions: Sequence[Prediction], config: EvaluateConfig, rewards: Sequence[Reward]
) -> list[Scores]:
    """Values of reward functions over predictions; 0 if the question could not be read.

    Raises:
      UserError: a function fails on every answer.
    """
    answers = [(prediction.model_output, prediction.example) for prediction in predictions]
    try:
        with _pool(config, config.reward.grader, rewards) as pool:
            return score_asked(pool, rewards, answers)
    except ValueError as error:
        raise UserError(str(error)) from error


def _pool(config: EvaluateConfig, grader: Grader, rewards: Sequence[Reward] = ()) -> GradingPool:
    return GradingPool(
        grader,
        task=config.reward.task_of(config.data),
        timeout_s=config.reward.grading_timeout_s,
        workers=config.reward.grading_workers,
        rewards=rewards,
        answers=answer_format(config.data),
    )


def graders(config: EvaluateConfig) -> tuple[Grader, ...]:
    """All graders that apply to an evaluation."""
    known = config.reward.task_of(config.data) in ("counting", "geometry")
    tagged = answer_format(config.data) == ANSWER_TAGS
    return get_args(Grader) if known and tagged else ("strict",)
