"""Figure 1: accuracy against updates, SFT and GRPO with a constant KL weight, on geometry.

Claim (paper): GRPO is ahead at first, SFT ends above it.
Command: python -m experiments.figure1_sft_vs_grpo
Cost: laptop, 5 seeds: ten minutes on two CPU cores.
Shows: test accuracy of every checkpoint of runs of their own; each seed, and the mean.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import matplotlib.pyplot as plt

from experiments.lab.cells import Cell, checkpoint_steps
from experiments.lab.curves import draw_seeds
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scales import TITLES, Method
from experiments.lab.scores import score_of
from experiments.lab.tables import OVER_SEEDS, with_interval
from othink_jax.report.table import Table
from othink_jax.statistics import mean_interval

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

    def _curve(self, method: Method, seed: int) -> dict[int, float]:
        """The accuracy after so many updates."""
        root, cell = self.options.root, self._cell(method, seed)
        (test,) = cell.tests
        *earlier, last = checkpoint_steps(root / cell.name)
        return {
            0: score_of(root, self.scale.base(), test).accuracy,
            **{step: score_of(root, cell, test, step).accuracy for step in earlier},
            last: score_of(root, cell, test).accuracy,
        }

    def result(self) -> Result:
        curves = {method: [self._curve(method, seed) for seed in self.seeds] for method in SHOWN}
        figure, panel = plt.subplots(figsize=(5, 3.4), layout="constrained")
        for color, (method, found) in zip(("C1", "C0"), curves.items(), strict=True):
            values = [list(curve.values()) for curve in found]
            draw_seeds(panel, list(found[0]), values, color, TITLES[method])
        panel.set(xlabel="updates", ylabel="accuracy, %", ylim=(0, None))
        panel.legend(frameon=False)
        rows = [
            [str(step)]
            + [
                with_interval(*mean_interval([curve[step] for curve in curves[method]]))
                for method in SHOWN
            ]
            for step in list(curves["grpo"][0])[1:]
        ]
        table = Table(
            title="Accuracy on geometry after so many updates (%, greedy)",
            columns=["updates", *(TITLES[method] for method in SHOWN)],
            rows=rows,
            note=f"{OVER_SEEDS}.",
        )
        return Result(tables=[table], figure=figure, numbers={"curves": curves})


if __name__ == "__main__":
    main(OverUpdates, __doc__)
