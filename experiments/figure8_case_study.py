"""Figures 3 and 8: one question, SFT's answer beside GRPO-D's, on the task not trained on.

Claim (paper): GRPO-D reasons its way to the answer where SFT fails.
Command: python -m experiments.figure8_case_study
Cost: nothing beside table 1, whose predictions it shows; R1-V's grader takes a minute over them.
Shows: for each way across tasks, how often one of the two is right and the other wrong (all seeds,
    both graders), and the first such question of each kind (first seed, strict grader): of both
    kinds, whichever is rarer.
"""

import contextlib
import textwrap
from collections.abc import Sequence
from typing import Any, ClassVar

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from experiments.figure7_cross_task import WAYS
from experiments.lab.cells import Cell
from experiments.lab.experiment import Case, Experiment, Result, main
from experiments.lab.scales import TITLES, Method, Task
from experiments.lab.scores import predictions_of
from experiments.lab.tables import R1V, STRICT
from othink_jax.data.example import Example, UnreadableExample
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
from othink_jax.report.table import Table
from othink_jax.rewards import GradingPool

SHOWN: tuple[Method, Method] = ("sft", "grpo_d")
_KINDS = ((False, True), (True, False))  # whether each of the two is right


class CaseStudy(Experiment):
    name: ClassVar[str] = "figure8_case_study"

    def cells(self) -> Sequence[Cell]:
        return [
            self.scale.cell(method, task, seed)
            for task, _ in WAYS
            for seed in self.seeds
            for method in SHOWN
        ]

    def answers(self, way: tuple[Task, Task]) -> list[list[tuple[dict[str, Any], ...]]]:
        """Answers of the two methods, by seed and question.

        Each holds `correct`, the strict grader's verdict, and `correct_r1v`, that of R1-V's.
        """
        trained, tested = way
        test, root, asked = self.scale.test(tested), self.options.root, []
        with GradingPool("r1v", task=tested) as pool:
            for seed in self.seeds:
                cells = [self.scale.cell(method, trained, seed) for method in SHOWN]
                said = [_graded(predictions_of(root, cell, test), pool) for cell in cells]
                asked.append(list(zip(*said, strict=True)))
        return asked

    def result(self) -> Result:
        figure, panels = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
        counts: list[dict[str, Any]] = []
        cases: list[Case] = []
        for line, way in zip(panels, WAYS, strict=True):
            asked = self.answers(way)
            for panel, kind in zip(line, _KINDS, strict=True):
                label = f"{TITLES[SHOWN[kind.index(True)]]} alone is right"
                counts.append(
                    {
                        "way": " to ".join(way),
                        "kind": label,
                        "strict": _count(asked, kind, "correct"),
                        "r1v": _count(asked, kind, "correct_r1v"),
                    }
                )
                pair = next((pair for pair in asked[0] if _kind(pair, "correct") == kind), None)
                panel.set_axis_off()
                panel.set_title(f"{' to '.join(way)}: {label}", fontsize=9)
                if pair is not None:
                    cases.append(self._case(f"{' to '.join(way)}: {label}", way[1], pair))
                    _draw(panel, cases[-1])
        table = Table(
            title=f"Questions that one of {' and '.join(TITLES[m] for m in SHOWN)} has right"
            f" ({STRICT})",
            columns=["way", "kind", "questions, every seed", f"{R1V}, every seed"],
            rows=[
                [one["way"], one["kind"], *(_words(one[name]) for name in ("strict", "r1v"))]
                for one in counts
            ],
        )
        return Result(tables=[table], figure=figure, cases=cases, numbers={"questions": counts})

    def _case(self, title: str, task: Task, answers: Sequence[dict[str, Any]]) -> Case:
        example = self._example(task, answers[0]["id"])
        return Case(
            title=title,
            image=example.images[0],
            question=example.question,
            ground_truth=example.answer,
            answers=[
                {
                    "method": TITLES[method],
                    "correct": answer["correct"],
                    "text": answer["model_output"],
                }
                for method, answer in zip(SHOWN, answers, strict=True)
            ],
        )

    def _example(self, task: Task, identifier: str) -> Example:
        """The test question with this id."""
        test = self.scale.test(task)
        source = open_source(test.data, size=test.count)
        for index in range(len(source)):
            with contextlib.suppress(UnreadableExample):
                example = source[index]
                if example.id == identifier:
                    return example
        raise UserError(f"{test.data.name} has no question {identifier} any more")


def _graded(predictions: Sequence[dict[str, Any]], pool: GradingPool) -> list[dict[str, Any]]:
    """Predictions with the verdict of R1-V's grader, which evaluations do not keep per question."""
    grades = pool.grade_all(
        [row["model_output"] for row in predictions], [row["ground_truth"] for row in predictions]
    )
    return [
        row | {"correct_r1v": bool(grade.accuracy)}
        for row, grade in zip(predictions, grades, strict=True)
    ]


def _kind(pair: tuple[dict[str, Any], ...], verdict: str) -> tuple[bool, ...]:
    return tuple(one[verdict] for one in pair)


def _count(
    asked: Sequence[Sequence[tuple[dict[str, Any], ...]]], kind: tuple[bool, ...], verdict: str
) -> list[int]:
    """Number of questions of a kind by one of the verdicts, per seed."""
    return [sum(_kind(pair, verdict) == kind for pair in answers) for answers in asked]


def _words(counts: Sequence[int]) -> str:
    return " ".join(map(str, counts))


def _draw(panel: Axes, case: Case) -> None:
    panel.imshow(case.image)
    lines = textwrap.wrap(f"{case.question} (answer: {case.ground_truth})", 48)
    for answer in case.answers:
        verdict = "right" if answer["correct"] else "wrong"
        lines += ["", *textwrap.wrap(f"{answer['method']}, {verdict}: {answer['text']}", 48)]
    panel.text(
        0.5, -0.04, "\n".join(lines), transform=panel.transAxes, ha="center", va="top", fontsize=7
    )


if __name__ == "__main__":
    main(CaseStudy, __doc__)
