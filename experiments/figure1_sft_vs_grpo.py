"""Figure 1: accuracy against updates, SFT and GRPO with a constant KL weight, on geometry.

Claim (paper): GRPO is ahead at first, SFT ends above it.
Command: python -m experiments.figure1_sft_vs_grpo
Cost: laptop, 5 seeds: twenty minutes on two CPU cores beside those of table 1.
Shows: test accuracy after ever more updates; each seed, and the mean. As the learning rate is
    constant and the seed decides the rest, shorter runs are the beginnings of the longer ones.
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import matplotlib.pyplot as plt

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_seeds
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scales import TITLES, Method
from experiments.lab.scores import score_of
from experiments.lab.tables import Table, with_interval
from othink_jax.statistics import mean_interval

UPDATES = (25, 50, 100, 150)
SHOWN: tuple[Method, ...] = ("sft", "grpo")


class OverUpdates(Experiment):
    name: ClassVar[str] = "figure1_sft_vs_grpo"

    def _cell(self, method: Method, seed: int, steps: int) -> Cell:
        return self.scale.cell(method, "geometry", seed, steps=steps)

    def cells(self) -> Sequence[Cell]:
        runs = itertools.product(SHOWN, self.seeds, UPDATES)
        return [self.scale.base(), *(self._cell(*run) for run in runs)]

    def result(self) -> Result:
        test = self.scale.test("geometry")
        base = score_of(self.options.root, self.scale.base(), test).accuracy
        curves = {
            method: [
                [base]
                + [
                    score_of(self.options.root, self._cell(method, seed, steps), test).accuracy
                    for steps in UPDATES
                ]
                for seed in self.seeds
            ]
            for method in SHOWN
        }
        figure, panel = plt.subplots(figsize=(5, 3.4), layout="constrained")
        for color, (method, found) in zip(("C1", "C0"), curves.items(), strict=True):
            draw_seeds(panel, (0, *UPDATES), found, color, TITLES[method])
        panel.set(xlabel="updates", ylabel="accuracy, %", ylim=(0, None))
        panel.legend(frameon=False)
        rows = [
            [str(steps)]
            + [
                with_interval(*mean_interval([curve[place] for curve in curves[method]]))
                for method in SHOWN
            ]
            for place, steps in enumerate(UPDATES, start=1)
        ]
        table = Table(
            title="Accuracy on geometry after so many updates (%, greedy)",
            columns=["updates", *(TITLES[method] for method in SHOWN)],
            rows=rows,
            note="Mean and 95% interval over seeds (Student's t).",
        )
        return Result(tables=[table], figure=figure, numbers={"base": base, "curves": curves})


if __name__ == "__main__":
    main(OverUpdates, __doc__)
