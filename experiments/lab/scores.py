"""What the finished cells of an experiment scored: read from their directories."""

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
    """One model on one test."""

    accuracy: float  # share that the strict grader calls right
    accuracy_r1v: float  # share that R1-V's grader calls right; nan of grounding: it has no rule
    format: float  # share in the form that is asked for
    tokens: float  # mean length of a completion
    correct: tuple[bool, ...]  # question after question, strict
    contents: tuple[str, ...]  # what each question shows: several may be about the same thing

    @property
    def interval(self) -> tuple[float, float]:
        """95%: of the finite test set alone, over what its questions show."""
        return clustered_interval(self.correct, self.contents)

    @property
    def record(self) -> dict[str, float]:
        """What results.json holds of it."""
        by_r1v = {} if math.isnan(self.accuracy_r1v) else {"accuracy_r1v": self.accuracy_r1v}
        return {"accuracy": self.accuracy, **by_r1v, "format": self.format}


def records(scores: Mapping[Any, Sequence[Score]]) -> dict[Any, list[dict[str, float]]]:
    """What results.json holds of several models: of each, one a seed."""
    return {name: [score.record for score in found] for name, found in scores.items()}


def score_of(root: Path, cell: Cell, test: EvaluateConfig, step: int | None = None) -> Score:
    """The result of a test of a finished cell: of its last checkpoint, or of that of a step."""
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
    """What a question shows; one of a data set, of which that is not known, stands for itself."""
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
    """The rows of a cell's training, a step each."""
    return list(read_json_lines(root / cell.name / "metrics.jsonl").values())


def tenths(runs: Sequence[Sequence[Mapping[str, Any]]], name: str) -> list[float]:
    """A metric of several runs of one length: its mean over all of them in each tenth of the steps.

    Args:
      runs: the rows of each, see `metrics_of`.
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
    differences: tuple[float, ...]  # of accuracies, second minus first, one a seed
    p_values: tuple[float, ...]  # McNemar's, one a seed, Holm-corrected over the whole family

    @property
    def verdicts(self) -> str:
        """In how many seeds the second is better, and worse, at the level of 5%."""
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
    """Compare pairs of methods, of which `scores` holds one a seed, in the same order.

    What has one score only, such as the base, has the same one at every seed. McNemar's test takes
    questions that show the same thing together. The p-values of all pairs are one family.
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
    """How much more accurate the second is, relative to the first, seed by seed.

    None where one of the first has nothing right. See `compare` for what has one score only.
    """
    found = _matched(first, second)
    if not all(a.accuracy for a, _ in found):
        return []
    return [b.accuracy / a.accuracy - 1 for a, b in found]


def _matched(first: Sequence[Score], second: Sequence[Score]) -> list[tuple[Score, Score]]:
    """Seed by seed; both answered the same questions."""
    count = max(len(first), len(second))
    repeated = [list(found) * count if len(found) == 1 else found for found in (first, second)]
    found = list(zip(*repeated, strict=True))
    assert all(a.contents == b.contents for a, b in found)
    return found
