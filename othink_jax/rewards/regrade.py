"""Regrading of stored predictions."""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePath
from typing import Any

from othink_jax.rewards.answers import ground_truth
from othink_jax.rewards.builtin import load
from othink_jax.rewards.format import ANSWER_TAGS, AnswerFormat
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
from othink_jax.rewards.sums import measured
from othink_jax.tasks import Grader, Task

_NEEDED = ("question", "ground_truth", "model_output")


@dataclasses.dataclass(frozen=True)
class _Row:
    """A stored prediction."""

    line: int  # of the file, from 1
    text: str  # the completion
    gold: str
    example: RewardExample | None  # None if the question could not be asked
    answers: AnswerFormat  # as stored in the row

    def marked(self, answers: AnswerFormat) -> "_Row":
        """The same row with another answer format."""
        if self.example is None:
            return self
        example = dataclasses.replace(self.example, answer_format=answers)
        return dataclasses.replace(self, example=example)


def regrade(
    path: str | PathLike[str],
    *,
    task: Task | None = None,
    grader: Grader = "strict",
    weights: Mapping[str, float] | None = None,
    answers: AnswerFormat | None = None,
) -> dict[str, Any]:
    """Grade the predictions of a JSONL file.

    Args:
      path: one JSON object per line, with the texts `question` and `model_output`, and
        `ground_truth`, a text or a number. Other keys are allowed; blank lines are skipped. A
        question that `othink-jax evaluate` could not read counts as answered wrongly, as there.
        Reward functions see the other keys as columns of the example. For a file of `evaluate`,
        they see the example's own columns and the sizes of its images.
      task: see `grade`.
      grader: `strict`, or `r1v` for R1-V's published verdicts.
      weights: of rewards by name or path, see `load`; None for no rewards.
      answers: how answers are marked; None takes it from the rows, which default to `<answer>`
        tags.

    Returns:
      `accuracy` in [0, 1], the number `n` of rows, the number `ungradable` among them, and their
      lines (`ungradable_lines`, from 1). With weights also `rewards`, see `measured`.

    Raises:
      ValueError: the file cannot be read or has no row, a row is not as described (with its line
        number), rows differ in how answers are marked, R1-V's grader lacks the task or the tags, or
        a reward function cannot be loaded or fails on every row.
    """
    rewards = [load(name) for name in weights or () if name not in GRADED]
    # A path in a bucket already is a path object, of its own type.
    rows = list(_rows(path if isinstance(path, PurePath) else Path(path)))
    if not rows:
        raise ValueError(f"{path}: the file holds no predictions")
    if answers is None:
        answers = _format_of(rows, path)
    rows = [row.marked(answers) for row in rows]
    with GradingPool(grader, task=task, rewards=rewards, answers=answers) as pool:
        grades = pool.grade_all([row.text for row in rows], [row.gold for row in rows])
        scores = score_asked(pool, rewards, [(row.text, row.example) for row in rows])
    lines = [row.line for row, grade in zip(rows, grades, strict=True) if grade.ungradable]
    return {
        "accuracy": sum(grade.accuracy for grade in grades) / len(grades),
        "n": len(grades),
        "ungradable": len(lines),
        "ungradable_lines": lines,
        **({"rewards": measured(weights, rewards, grades, scores)} if weights else {}),
    }


def score_asked(
    pool: GradingPool,
    rewards: Sequence[Reward],
    answers: Sequence[tuple[str, RewardExample | None]],
) -> list[Scores]:
    """Scores of a pool's functions for the answers of a test; 0 for an answer without example.

    Raises:
      ValueError: a function fails on every answer.
    """
    asked = [(text, example) for text, example in answers if example is not None]
    made = pool.score_all([text for text, _ in asked], [example for _, example in asked])
    for reward in rewards:
        if reason := why_all_failed(reward, made):
            raise ValueError(f"--reward {reward.path} fails on every answer: {reason}")
    unasked = Scores({reward.name: 0.0 for reward in rewards}, {})
    scores = iter(made)
    return [unasked if example is None else next(scores) for _, example in answers]


def _rows(path: Any) -> Iterator[_Row]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            yield _row(number, line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from error


def _row(number: int, line: bytes) -> _Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but {type(row).__name__}")
    missing = [key for key in _NEEDED if key not in row]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}")
    if not isinstance(row["model_output"], str):
        raise ValueError(f"model_output must be a text, got {type(row['model_output']).__name__}")
    answers = _marks(row)
    if row.get("readable") is False:  # `othink-jax evaluate` could not ask it: it has no answer
        return _Row(number, "", str(row["ground_truth"]), None, answers)
    try:
        gold = ground_truth(row["ground_truth"])
    except ValueError as error:
        raise ValueError(f"ground_truth {error}") from error
    return _Row(number, row["model_output"], gold, _example(row, gold), answers)


def _marks(row: Mapping[str, Any]) -> AnswerFormat:
    """Answer format of a row of `othink-jax evaluate`."""
    stored = row.get(ANSWER_FORMAT)
    if stored is None:
        return ANSWER_TAGS
    try:
        return AnswerFormat(**stored)
    except TypeError as error:
        raise ValueError(f"{ANSWER_FORMAT} must hold tag and pattern, got {stored!r}") from error


def _format_of(rows: Sequence[_Row], path: str | PathLike[str]) -> AnswerFormat:
    """The answer format of all rows."""
    for row in rows:
        if row.answers != rows[0].answers:
            raise ValueError(
                f"{path}, line {row.line}: its answer is not marked as those before; give"
                " --answer-tag or --answer-pattern"
            )
    return rows[0].answers


def _example(row: Mapping[str, Any], gold: str) -> RewardExample:
    """The example for reward functions; for a file of `othink-jax evaluate`, as it had it."""
    stored = {name: row[name] for name in EXAMPLE_FIELDS if name in row}
    if len(stored) == len(EXAMPLE_FIELDS) and isinstance(stored["columns"], dict):
        for name in ("image_sizes", "shown_sizes"):
            stored[name] = tuple(map(tuple, stored[name]))
    else:
        further = {
            name: value for name, value in row.items() if name not in (*_NEEDED, ANSWER_FORMAT)
        }
        solution = further.get("solution")
        stored = {"columns": further, "solution": solution if isinstance(solution, str) else None}
    return RewardExample(question=str(row["question"]), answer=gold, **stored)
