"""Figures 3 and 8: one question, SFT's answer beside GRPO-D's, on the task not trained on.

Claim (paper): GRPO-D reasons its way to the answer where SFT fails.
Command: python -m experiments.figure8_case_study
Cost: nothing beside table 1, whose predictions it shows.
Shows: for each way across tasks, how often one of the two is right and the other wrong (all seeds),
    and the first such question of each kind (first seed): of both kinds, whichever is rarer.
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
from othink_jax.data.example import Example, UnreadableExample
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
from othink_jax.report.table import Table

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

    def answers(self, way: tuple[Task, Task], seed: int) -> list[tuple[dict[str, Any], ...]]:
        """Question after question, what each of the two said."""
        trained, tested = way
        test, root = self.scale.test(tested), self.options.root
        cells = [self.scale.cell(method, trained, seed) for method in SHOWN]
        return list(zip(*(predictions_of(root, cell, test) for cell in cells), strict=True))

    def result(self) -> Result:
        figure, panels = plt.subplots(2, 2, figsize=(9, 7), layout="constrained")
        rows: list[list[str]] = []
        cases: list[Case] = []
        for line, way in zip(panels, WAYS, strict=True):
            asked = [self.answers(way, seed) for seed in self.seeds]
            for panel, kind in zip(line, _KINDS, strict=True):
                counts = [sum(_kind(pair) == kind for pair in answers) for answers in asked]
                label = f"{TITLES[SHOWN[kind.index(True)]]} alone is right"
                rows.append([" to ".join(way), label, " ".join(map(str, counts))])
                pair = next((pair for pair in asked[0] if _kind(pair) == kind), None)
                panel.set_axis_off()
                panel.set_title(f"{' to '.join(way)}: {label}", fontsize=9)
                if pair is not None:
                    cases.append(self._case(f"{' to '.join(way)}: {label}", way[1], pair))
                    _draw(panel, cases[-1])
        table = Table(
            title=f"Questions that one of {' and '.join(TITLES[m] for m in SHOWN)} has right",
            columns=["way", "kind", "questions, every seed"],
            rows=rows,
        )
        return Result(tables=[table], figure=figure, cases=cases, numbers={})

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
        """The test question of this name."""
        test = self.scale.test(task)
        source = open_source(test.data, size=test.count)
        for index in range(len(source)):
            with contextlib.suppress(UnreadableExample):
                example = source[index]
                if example.id == identifier:
                    return example
        raise UserError(f"{test.data.name} has no question {identifier} any more")


def _kind(pair: tuple[dict[str, Any], ...]) -> tuple[bool, ...]:
    return tuple(one["correct"] for one in pair)


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
