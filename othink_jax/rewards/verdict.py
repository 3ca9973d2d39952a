"""Verdicts on one completion, by either grader or by its box."""

import dataclasses
from typing import get_args

from othink_jax.rewards import r1v, strict
from othink_jax.rewards.boxes import box_verdict
from othink_jax.rewards.format import ANSWER_TAGS, AnswerFormat
from othink_jax.tasks import Grader, Task


@dataclasses.dataclass(frozen=True)
class Grade:
    """Verdict on a completion."""

    accuracy: float  # 1.0 if the answer is right, else 0.0
    format: float  # 1.0 if the completion has the required form, else 0.0
    # true if time or memory ran out, the grader failed, or the gold cannot be read; accuracy is 0
    ungradable: bool = False


def check_grader(grader: str, task: str | None, answers: AnswerFormat = ANSWER_TAGS) -> None:
    """Raise ValueError unless the names are known and the grader supports task and format.

    R1-V's grader needs a task and reads only `<answer>` tags.
    """
    if grader not in get_args(Grader):
        raise ValueError(f"grader must be {' or '.join(get_args(Grader))}, got {grader!r}")
    if task not in (*get_args(Task), None):
        raise ValueError(f"task must be {' or '.join(get_args(Task))}, got {task!r}")
    if grader == "r1v" and task not in ("counting", "geometry"):
        raise ValueError("R1-V's grader has a rule for counting and one for geometry: give task")
    if grader == "r1v" and answers != ANSWER_TAGS:
        raise ValueError(
            "R1-V's grader reads <answer> tags alone: no --answer-tag, no --answer-pattern"
        )


def quick_verdict(
    text: str, gold: str, grader: Grader, task: Task | None, answers: AnswerFormat = ANSWER_TAGS
) -> bool | None:
    """Verdict without symbolic algebra, in linear time; None if algebra is needed."""
    if grader == "r1v":
        return None if task == "geometry" else r1v.counting_verdict(text, gold)
    if task == "grounding":
        return box_verdict(answers.extract(text), gold)
    return strict.quick_verdict(text, gold, answers)


def symbolic_verdict(
    text: str, gold: str, grader: Grader, task: Task | None, answers: AnswerFormat = ANSWER_TAGS
) -> bool | None:
    """Verdict by symbolic algebra; None if it fails: out of memory, or an unreadable gold."""
    if task == "grounding":
        return None  # the quick verdict leaves open only a truth without exactly one box
    try:
        if grader == "r1v":
            return r1v.geometry_verdict(text, gold)
        return strict.symbolic_verdict(text, gold, answers)
    except Exception:
        # Computer algebra can raise anything on a model's text. No completion may end a training
        # run, and no failure may go unseen: the completion counts as ungradable.
        return None


def grade(
    text: str,
    gold: str,
    grader: Grader = "strict",
    task: Task | None = None,
    answers: AnswerFormat = ANSWER_TAGS,
) -> Grade:
    """Grade one completion in this process, without any limit on time or memory.

    For many completions, or completions of a model, use `GradingPool`.

    Args:
      text: the whole completion.
      gold: the ground truth.
      grader: `strict`, or `r1v` for R1-V's published verdicts.
      task: selects one of R1-V's two rules; required for R1-V's grader. The strict grader treats
        both alike. For `grounding`, an answer is right if its box has an IoU of at least 0.5 with
        the truth's, see `boxes.box_accuracy`.
      answers: how the answer is marked.

    Raises:
      ValueError: the grader or the task is unknown, or R1-V's grader lacks the task or the tags.
    """
    check_grader(grader, task, answers)
    right = quick_verdict(text, gold, grader, task, answers)
    if right is None:
        right = symbolic_verdict(text, gold, grader, task, answers)
    return Grade(float(right or 0), answers.reward(text), ungradable=right is None)
