"""Three tasks, three ways: what training on each does to itself and to the two others.

Claim: none of the paper's, which has two tasks; a third tells what carries over from one task to
    another from what any training does to a model.
Command: python -m experiments.transfer
Cost: not measured yet.
Shows: greedy accuracy of `tiny-grounding` on counting, geometry and grounding (a box with an IoU of
    at least 0.5), before and after 150 updates on each of them by each method, every seed;
    McNemar's tests against the base. Grounding is rewarded by its IoU, the others by Eq. 1. No
    setting was tuned: all methods and tasks have the same learning rate.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.lab.cells import Cell, evaluation_directory
from experiments.lab.experiment import Result, main
from experiments.lab.laptop import LaptopExperiment
from experiments.lab.scales import METHODS, TITLES, Laptop, Method, Tuned, changed, first_kl
from experiments.lab.scores import Score, records
from experiments.lab.tables import OVER_SEEDS, STRICT, every_seed, summary
from experiments.table1_same_task import OVER_BASE, comparison_table
from othink_jax.config import EvaluateConfig, KLConfig, Task
from othink_jax.files import read_json
from othink_jax.report.table import Table

MODEL = "tiny-grounding"
THREE: tuple[Task, ...] = ("counting", "geometry", "grounding")
# Of the demo.
RATE = 1e-4
MOVING = KLConfig(kl_min=0.04, kl_max=0.10)
WEIGHTS: Mapping[Method, KLConfig | None] = {
    "sft": None,
    "grpo": first_kl(MOVING),
    "grpo_d": MOVING,
}

ByMethod = Mapping[str, Sequence[Score]]


class Transfer(LaptopExperiment):
    name: ClassVar[str] = "transfer"

    @functools.cached_property
    def scale(self) -> Laptop:
        """The same settings for every task."""
        tuned = {
            (method, task): Tuned(learning_rate=RATE, kl=WEIGHTS[method])
            for method in METHODS
            for task in THREE
        }
        scale = Laptop(model=MODEL, tuned=tuned)
        steps = self.options.steps
        return scale if steps is None else dataclasses.replace(scale, steps=steps)

    def _cell(self, method: Method, task: Task, seed: int) -> Cell:
        changes: dict[str, Any] = {"limit": None}  # counting is few-shot otherwise
        if task == "grounding" and method != "sft":
            changes["functions"] = ("iou", "format")
        cell = self.laptop.cell(method, task, seed, **changes)
        return cell.tested_on(*map(self._test, THREE))

    def _test(self, task: Task) -> EvaluateConfig:
        """Of grounding, with the mean IoU."""
        test = self.laptop.test(task)
        if task != "grounding":
            return test
        return dataclasses.replace(test, reward=changed(test.reward, {"functions": ("iou",)}))

    def _models(self, task: Task) -> dict[str, list[Cell]]:
        """The base, and each method trained on a task, a cell a seed."""
        base = self.laptop.base().tested_on(*map(self._test, THREE))
        trained: dict[str, list[Cell]] = {
            method: [self._cell(method, task, seed) for seed in self.seeds] for method in METHODS
        }
        return {"base": [base], **trained}

    def cells(self) -> Sequence[Cell]:
        # Seed by seed, so that an interrupted call has done as much of every method and task.
        trained = [
            self._cell(method, task, seed)
            for seed in self.seeds
            for task in THREE
            for method in METHODS
        ]
        return [*self._models(THREE[0])["base"], *trained]

    def result(self) -> Result:
        scores = {
            task: {test: self.scores_of(self._models(task), self._test(test)) for test in THREE}
            for task in THREE
        }
        tables = [accuracy_table(scores), self._overlaps()]
        tables += [
            comparison_table(found, f"{test}, trained on {task}", OVER_BASE)
            for task, by_test in scores.items()
            for test, found in by_test.items()
        ]
        numbers = {
            f"{task} to {test}": records(found)
            for task, by_test in scores.items()
            for test, found in by_test.items()
        }
        return Result(tables=tables, figure=draw(scores), numbers=numbers)

    def _overlaps(self) -> Table:
        """Mean IoU of the boxes that models answer with, which accuracy cuts at one half."""
        rows = []
        for task in THREE:
            for method, cells in self._models(task).items():
                if method == "base" and task != THREE[0]:
                    continue
                means = [self._mean_overlap(cell) for cell in cells]
                trained_on = "" if method == "base" else task
                shown = " ".join(f"{mean:.3f}" for mean in means)
                rows.append([trained_on, TITLES[method], f"{fmean(means):.3f}", shown])
        return Table(
            title="IoU on grounding (greedy)",
            columns=["trained on", "method", "mean", "every seed"],
            rows=rows,
        )

    def _mean_overlap(self, cell: Cell) -> float:
        directory = evaluation_directory(self.options.root, cell, self._test("grounding"), None)
        return float(read_json(directory / "result.json")["rewards"]["iou"]["mean"])


def accuracy_table(scores: Mapping[Task, Mapping[Task, ByMethod]]) -> Table:
    """A row a model, a column a test."""
    rows = []
    base = {test: found["base"] for test, found in scores[THREE[0]].items()}
    cells = (part for test in THREE for part in (summary(base[test]), ""))
    rows.append(["", TITLES["base"], *cells])
    for task, by_test in scores.items():
        for method in METHODS:
            found = [by_test[test][method] for test in THREE]
            cells = (part for one in found for part in (summary(one), every_seed(one)))
            rows.append([task, TITLES[method], *cells])
    columns = ["trained on", "method"]
    columns += [part for test in THREE for part in (test, f"{test}, every seed")]
    return Table(
        title=f"Accuracy of {MODEL} (%, greedy, {STRICT})",
        columns=columns,
        rows=rows,
        note=f"Grounding: IoU of at least 0.5. {OVER_SEEDS}; of the base, over what the questions"
        " show.",
    )


def draw(scores: Mapping[Task, Mapping[Task, ByMethod]]) -> Figure:
    """A panel a method: points over the base, trained on (down) and tested on (across)."""
    figure, panels = plt.subplots(1, len(METHODS), figsize=(9.5, 3.4), layout="constrained")
    for panel, method in zip(panels, METHODS, strict=True):
        change = np.array(
            [[_over_base(scores[task][test], method) for test in THREE] for task in THREE]
        )
        panel.imshow(change, cmap="RdBu", vmin=-50, vmax=50)
        for (row, column), points in np.ndenumerate(change):
            colour = "white" if abs(points) > 35 else "black"
            panel.text(column, row, f"{points:+.1f}", ha="center", va="center", color=colour)
        panel.set_xticks(range(3), THREE)
        panel.set_yticks(range(3), THREE)
        panel.set(title=TITLES[method], xlabel="tested on")
    panels[0].set_ylabel("trained on")
    return figure


def _over_base(scores: ByMethod, method: Method) -> float:
    """Points, mean over seeds."""
    return 100 * (fmean(one.accuracy for one in scores[method]) - scores["base"][0].accuracy)


if __name__ == "__main__":
    main(Transfer, __doc__)
