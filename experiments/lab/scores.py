"""Scores of finished cells, read from their directories."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from experiments.lab.cells import Cell, evaluation_directory
from othink_jax.config import Difficulty, EvaluateConfig, Task
from othink_jax.data.synthetic import LEVELS
from othink_jax.data.synthetic.source import sample_problem
from othink_jax.files import read_json, read_json_lines
from othink_jax.statistics import clustered_interval, holm, mcnemar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """The score of one model on one test."""

    accuracy: float  # share that the strict grader calls right
    accuracy_r1v: float  # share that R1-V's grader calls right; nan for grounding: it has no rule
    format: float  # share of completions in the right format
    tokens: float  # mean length of a completion
    correct: tuple[bool, ...]  # of each question, by the strict grader
    contents: tuple[str, ...]  # content of each question; several may share one

    @property
    def interval(self) -> tuple[float, float]:
        """95% interval over the contents of the questions: of the finite test set alone."""
        return clustered_interval(self.correct, self.contents)

    @property
    def record(self) -> dict[str, float]:
        """The score's entry in results.json."""
        by_r1v = {} if math.isnan(self.accuracy_r1v) else {"accuracy_r1v": self.accuracy_r1v}
        return {"accuracy": self.accuracy, **by_r1v, "format": self.format}


def records(scores: Mapping[Any, Sequence[Score]]) -> dict[Any, list[dict[str, float]]]:
    """The entries of several models in results.json: one per seed."""
    return {name: [score.record for score in found] for name, found in scores.items()}


def score_of(root: Path, cell: Cell, test: EvaluateConfig, step: int | None = None) -> Score:
    """Score of a finished cell on a test: of its last checkpoint, or of that of a step."""
    directory = evaluation_directory(root, cell, test, step)
    result = read_json(directory / "result.json")
    predictions = predictions_of(root, cell, test, step)
    return Score(
        accuracy=result["accuracy_strict"],
        accuracy_r1v=result.get("accuracy_r1v", math.nan),
        **{name: result[name] for name in ("format", "tokens")},
        correct=tuple(row["correct"] for row in predictions),
        contents=tuple(_content(row["id"], test.data.difficulty) for row in predictions),
    )


@functools.cache
def _content(identifier: str, difficulty: Difficulty) -> str:
    """Content of a synthetic question; of any other, whose content is unknown, the identifier."""
    match = re.fullmatch(r"(counting|geometry|grounding)-([a-z-]+)-(\d+)-(\d+)", identifier)
    if match is None:
        return identifier
    task, split, seed, index = match.groups()
    level = LEVELS[cast(Task, task)][difficulty]
    return sample_problem(task, split, int(index), seed=int(seed), difficulty=level).content


def predictions_of(
    root: Path, cell: Cell, test: EvaluateConfig, step: int | None = None
) -> list[dict[str, Any]]:
    """Each question with the model's answer and the verdict."""
    file = evaluation_directory(root, cell, test, step) / "predictions.jsonl"
    return list(read_json_lines(file).values())


def metrics_of(root: Path, cell: Cell) -> list[dict[str, Any]]:
    """Metric rows of a cell's training, one per step."""
    return list(read_json_lines(root / cell.name / "metrics.jsonl").values())


def tenths(runs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> list[float]:
    """Mean of a metric over runs of equal length, in each tenth of the steps.

    Args:
      runs: metric rows of each run, see `metrics_of`.
      name: of the metric.
    """
    values = np.array([[row[name] for row in run] for run in runs])
    parts = np.array_split(values, min(10, values.shape[1]), axis=1)
    return [float(part.mean()) for part in parts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two methods on the same questions, trained from the same seeds."""

    first: str
    second: str
    differences: tuple[float, ...]  # accuracy of second minus first, one per seed
    p_values: tuple[float, ...]  # McNemar's, one per seed, Holm-corrected over the whole family

    @property
    def verdicts(self) -> str:
        """Number of seeds in which the second is better, and worse, at the 5% level."""
        told = [
            difference
            for difference, p in zip(self.differences, self.p_values, strict=True)
            if p < 0.05
        ]
        better = sum(difference > 0 for difference in told)
        return f"{better} better, {len(told) - better} worse of {len(self.p_values)}"


def compare(
    scores: Mapping[str, Sequence[Score]], pairs: Sequence[tuple[str, str]]
) -> list[Comparison]:
    """Compare pairs of methods; `scores` holds one score per seed, in the same order.

    A single score, such as the base's, counts for every seed. McNemar's test clusters questions
    that show the same content. The p-values of all pairs are one family.
    """
    matched = [_matched(scores[first], scores[second]) for first, second in pairs]
    raw = [mcnemar(a.correct, b.correct, a.contents) for found in matched for a, b in found]
    corrected = iter(holm(raw))
    return [
        Comparison(
            first=first,
            second=second,
            differences=tuple(b.accuracy - a.accuracy for a, b in found),
            p_values=tuple(next(corrected) for _ in found),
        )
        for (first, second), found in zip(pairs, matched, strict=True)
    ]


def relative_changes(first: Sequence[Score], second: Sequence[Score]) -> list[float]:
    """Relative change of accuracy from the first to the second, seed by seed.

    Empty if an accuracy of the first is 0. A single score counts for every seed, see `compare`.
    """
    found = _matched(first, second)
    if not all(a.accuracy for a, _ in found):
        return []
    return [b.accuracy / a.accuracy - 1 for a, b in found]


def _matched(first: Sequence[Score], second: Sequence[Score]) -> list[tuple[Score, Score]]:
    """Pairs of scores, seed by seed; both answered the same questions."""
    count = max(len(first), len(second))
    repeated = [list(found) * count if len(found) == 1 else found for found in (first, second)]
    found = list(zip(*repeated, strict=True))
    assert all(a.contents == b.contents for a, b in found)
    return found
