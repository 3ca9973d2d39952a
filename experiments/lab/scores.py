"""What the finished cells of an experiment scored: read from their directories."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.cells import Cell, evaluation_directory
from othink_jax.config import EvaluateConfig
from othink_jax.statistics import holm, mcnemar, mean_interval, wilson_interval


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One model on one test."""

    accuracy: float  # share that the strict grader calls right
    accuracy_r1v: float  # share that R1-V's grader calls right
    format: float  # share in the form that is asked for
    tokens: float  # mean length of a completion
    correct: tuple[bool, ...]  # question after question, strict

    @property
    def interval(self) -> tuple[float, float]:
        """95%, Wilson: of the finite test set alone."""
        return wilson_interval(sum(self.correct), len(self.correct))


def score_of(root: Path, cell: Cell, test: EvaluateConfig, step: int | None = None) -> Score:
    """The result of a test of a finished cell: of its last checkpoint, or of that of a step."""
    directory = evaluation_directory(root, cell, test, step)
    result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
    names = ("accuracy_r1v", "format", "tokens")
    return Score(
        accuracy=result["accuracy_strict"],
        **{name: result[name] for name in names},
        correct=tuple(row["correct"] for row in predictions_of(root, cell, test, step)),
    )


def predictions_of(
    root: Path, cell: Cell, test: EvaluateConfig, step: int | None = None
) -> list[dict[str, Any]]:
    """Each question with the model's answer and the verdict."""
    return _rows(evaluation_directory(root, cell, test, step) / "predictions.jsonl")


def metrics_of(root: Path, cell: Cell) -> list[dict[str, Any]]:
    """The rows of a cell's training, a step each."""
    return _rows(root / cell.name / "metrics.jsonl")


def tenths(runs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> list[float]:
    """A metric of several runs of one length: its mean over all of them in each tenth of the steps.

    Args:
      runs: the rows of each, see `metrics_of`.
      name: of the metric.
    """
    values = np.array([[row[name] for row in run] for run in runs])
    parts = np.array_split(values, min(10, values.shape[1]), axis=1)
    return [float(part.mean()) for part in parts]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two methods on the same questions, trained from the same seeds."""

    first: str
    second: str
    difference: tuple[float, float, float]  # of accuracies, second minus first; 95%, over seeds
    p_values: tuple[float, ...]  # McNemar, one a seed, Holm-corrected over the whole family

    @property
    def significant(self) -> int:
        """Seeds in which the methods differ at the level of 5%."""
        return sum(p < 0.05 for p in self.p_values)


def compare(
    scores: Mapping[str, Sequence[Score]], pairs: Sequence[tuple[str, str]]
) -> list[Comparison]:
    """Compare pairs of methods, of which `scores` holds one a seed, in the same order.

    A seed's interval over test questions says nothing of how training varies, and an interval over
    seeds little of single models: both are given. The p-values of all pairs are one family.
    """
    raw = [
        [mcnemar(a.correct, b.correct) for a, b in zip(scores[x], scores[y], strict=True)]
        for x, y in pairs
    ]
    corrected = iter(holm([p for values in raw for p in values]))
    return [
        Comparison(
            first=x,
            second=y,
            difference=mean_interval(
                [b.accuracy - a.accuracy for a, b in zip(scores[x], scores[y], strict=True)]
            ),
            p_values=tuple(next(corrected) for _ in values),
        )
        for (x, y), values in zip(pairs, raw, strict=True)
    ]
