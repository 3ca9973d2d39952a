"""Grading stored predictions again."""

import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

from othink_jax.rewards.answers import ground_truth
from othink_jax.rewards.pool import GradingPool
from othink_jax.rewards.verdict import Grader, Task


def regrade(
    path: str | PathLike[str], *, task: Task | None = None, grader: Grader = "strict"
) -> dict[str, Any]:
    """Grade the predictions of a JSONL file.

    Args:
      path: one JSON object a line, with the texts `question` and `model_output`, and
        `ground_truth`, a text or a number. Other keys are allowed; blank lines are skipped. A
        question that `othink-jax evaluate` could not read counts as answered wrongly, as there.
      task: see `grade`.
      grader: `strict`, or `r1v` for R1-V's published verdicts.

    Returns:
      `accuracy` in [0, 1], `n` rows, how many of them were `ungradable`, and their lines
        (`ungradable_lines`, from 1).

    Raises:
      ValueError: the file cannot be read, a row is not as described (with its line number), there
        is none, or R1-V's grader lacks the task.
    """
    # One in a bucket is a path of its own kind already.
    rows = list(_rows(path if isinstance(path, PurePath) else Path(path)))
    if not rows:
        raise ValueError(f"{path}: the file holds no predictions")
    with GradingPool(grader, task=task) as pool:
        grades = pool.grade_all([text for _, text, _ in rows], [gold for *_, gold in rows])
    lines = [row[0] for row, grade in zip(rows, grades, strict=True) if grade.ungradable]
    return {
        "accuracy": sum(grade.accuracy for grade in grades) / len(grades),
        "n": len(grades),
        "ungradable": len(lines),
        "ungradable_lines": lines,
    }


def _rows(path: Any) -> Iterator[tuple[int, str, str]]:
    """Line, completion and ground truth of each row."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield number, *_row(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _row(line: bytes) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {type(row).__name__}")
    missing = [key for key in ("question", "ground_truth", "model_output") if key not in row]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    if not isinstance(row["model_output"], str):
        raise ValueError(f"model_output must be a text, got {type(row['model_output']).__name__}")
    if row.get("readable") is False:  # `othink-jax evaluate` could not ask it: it has no answer
        return "", str(row["ground_truth"])
    try:
        return row["model_output"], ground_truth(row["ground_truth"])
    except ValueError as error:
        raise ValueError(f"ground_truth {error}") from error
