"""One verdict on one completion, by either grader, or by its box."""

import dataclasses
from typing import Literal

from othink_jax.rewards import r1v, strict
from othink_jax.rewards.boxes import box_verdict
from othink_jax.rewards.format import ANSWER_TAGS, AnswerFormat

Grader = Literal["strict", "r1v"]
Task = Literal["counting", "geometry", "grounding"]


@dataclasses.dataclass(frozen=True)
class Grade:
    """Verdict on a completion."""

    accuracy: float  # 1.0 if the answer is right, else 0.0
    format: float  # 1.0 if the tags are as asked for, else 0.0
    # true if time, memory or the grader gave out, or the gold cannot be read; accuracy is 0
    ungradable: bool = False


def check_grader(grader: str, task: str | None, answers: AnswerFormat = ANSWER_TAGS) -> None:
    """Raise ValueError unless the names are known and the grader can grade so.

    R1-V's needs a task, and reads `<answer>` tags alone.
    """
    if grader not in ("strict", "r1v"):
        raise ValueError(f"grader must be strict or r1v, got {grader!r}")
    if task not in ("counting", "geometry", "grounding", None):
        raise ValueError(f"task must be counting, geometry or grounding, got {task!r}")
    if grader == "r1v" and task not in ("counting", "geometry"):
        raise ValueError("R1-V's grader has a rule for counting and one for geometry: give task")
    if grader == "r1v" and answers != ANSWER_TAGS:
        raise ValueError(
            "R1-V's grader reads <answer> tags alone: no --answer-tag, no --answer-pattern"
        )


def quick_verdict(
    text: str, gold: str, grader: Grader, task: Task | None, answers: AnswerFormat = ANSWER_TAGS
) -> bool | None:
    """Verdict where it takes no symbolic algebra, in linear time; None where it does."""
    if grader == "r1v":
        return None if task == "geometry" else r1v.counting_verdict(text, gold)
    if task == "grounding":
        return box_verdict(answers.extract(text), gold)
    return strict.quick_verdict(text, gold, answers)


def symbolic_verdict(
    text: str, gold: str, grader: Grader, task: Task | None, answers: AnswerFormat = ANSWER_TAGS
) -> bool | None:
    """Verdict by symbolic algebra; None if it gave up: no memory, or a gold that says nothing."""
    if task == "grounding":
        return None  # what the quick verdict leaves open is a truth without one box
    try:
        if grader == "r1v":
            return r1v.geometry_verdict(text, gold)
        return strict.symbolic_verdict(text, gold, answers)
    except Exception:
        # Computer algebra can raise anything on what a model writes. No completion may end a
        # training run, and none that failed goes unseen: it counts as ungradable.
        return None


def grade(
    text: str,
    gold: str,
    grader: Grader = "strict",
    task: Task | None = None,
    answers: AnswerFormat = ANSWER_TAGS,
) -> Grade:
    """Grade one completion in this process, without any limit on time or memory.

    For many completions, or for such as a model wrote, use `GradingPool`.

    Args:
      text: the whole completion.
      gold: the ground truth.
      grader: `strict`, or `r1v` for R1-V's published verdicts.
      task: which of R1-V's two rules it takes, which it must be told. The strict grader treats
        both alike; of `grounding`, an answer is right if its box has an IoU of at least 0.5 with
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
