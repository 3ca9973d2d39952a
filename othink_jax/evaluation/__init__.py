"""A model's answers to a test set, and its accuracy with a confidence interval."""

from othink_jax.evaluation.accuracy import evaluate
from othink_jax.evaluation.answers import Prediction, predict
from othink_jax.evaluation.grading import grade
from othink_jax.evaluation.kept import PARTIAL, Kept
from othink_jax.evaluation.several import evaluate_several

__all__ = [
    "PARTIAL",
    "Kept",
    "Prediction",
    "evaluate",
    "evaluate_several",
    "grade",
    "predict",
]
