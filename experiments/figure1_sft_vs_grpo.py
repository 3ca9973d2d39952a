"""Figure 1: accuracy against updates, SFT and GRPO with a constant KL weight, on geometry.

Claim (paper): GRPO is ahead at first, SFT ends above it.
Command: python -m experiments.figure1_sft_vs_grpo
Cost: laptop, 5 seeds: ten minutes on two CPU cores.
Shows: test accuracy of every checkpoint of runs of their own; each seed, and the mean.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import matplotlib.pyplot as plt

from experiments.lab.cells import Cell, checkpoint_steps
from experiments.lab.curves import draw_seeds
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scales import TITLES, Method
from experiments.lab.scores import Score, score_of
from experiments.lab.tables import OVER_SEEDS, R1V, STRICT, r1v_mean, summary
from othink_jax.report.table import Table

SHOWN: tuple[Method, ...] = ("sft", "grpo")
EVERY = {"laptop": 25, "paper": 100}  # updates


class OverUpdates(Experiment):
    name: ClassVar[str] = "figure1_sft_vs_grpo"

    def _cell(self, method: Method, seed: int) -> Cell:
        every = EVERY[self.options.scale]
        trained = self.scale.cell(
            method, "geometry", seed, checkpoint_every=every, keep_checkpoints=1000
        )
        tested = trained.tested_on(self.scale.test("geometry"))
        return dataclasses.replace(tested, every_checkpoint=True)

    def cells(self) -> Sequence[Cell]:
        runs = itertools.product(SHOWN, self.seeds)
        return [self.scale.base(), *(self._cell(*run) for run in runs)]

    def _curve(self, method: Method, seed: int) -> dict[int, Score]:
        """Score by number of updates; 0 is the base."""
        root, cell = self.options.root, self._cell(method, seed)
        (test,) = cell.tests
        *earlier, last = checkpoint_steps(root / cell.name)
        return {
            0: score_of(root, self.scale.base(), test),
            **{step: score_of(root, cell, test, step) for step in earlier},
            last: score_of(root, cell, test),
        }

    def result(self) -> Result:
        curves = {method: [self._curve(method, seed) for seed in self.seeds] for method in SHOWN}
        figure, panel = plt.subplots(figsize=(5, 3.4), layout="constrained")
        for color, (method, found) in zip(("C1", "C0"), curves.items(), strict=True):
            values = [[score.accuracy for score in curve.values()] for curve in found]
            draw_seeds(panel, list(found[0]), values, color, TITLES[method])
        panel.set(xlabel="updates", ylabel="accuracy, %", ylim=(0, None))
        panel.legend(frameon=False)
        numbers = {
            method: [{step: score.record for step, score in curve.items()} for curve in found]
            for method, found in curves.items()
        }
        return Result(tables=[over_updates(curves)], figure=figure, numbers={"curves": numbers})


def over_updates(curves: Mapping[Method, Sequence[Mapping[int, Score]]]) -> Table:
    """Accuracy of each method by number of updates."""
    rows = []
    for step in list(curves["grpo"][0])[1:]:
        row = [str(step)]
        for found in curves.values():
            scores = [curve[step] for curve in found]
            row += [summary(scores), r1v_mean(scores)]
        rows.append(row)
    columns = ["updates"]
    for method in curves:
        columns += [TITLES[method], f"{TITLES[method]}, {R1V}"]
    return Table(
        title=f"Accuracy on geometry after so many updates (%, greedy, {STRICT})",
        columns=columns,
        rows=rows,
        note=f"{OVER_SEEDS}.",
    )


if __name__ == "__main__":
    main(OverUpdates, __doc__)
