"""Figure 4: the weight of the format reward (alpha of Eq. 1).

Claim (paper): alpha = 1 is about 20% (relative) better in accuracy than alpha = 0; the format is
    right in 99.70% at alpha = 0 already.
Command: python -m experiments.figure4_format_weight
Cost: laptop, 5 seeds: ten minutes on two CPU cores, beside table 1.
Shows: accuracy and format accuracy of GRPO-D on counting against alpha.
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import matplotlib.pyplot as plt

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_seeds
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scores import Score, score_of
from experiments.lab.tables import OVER_SEEDS, over_first, percent, with_interval
from othink_jax.report.table import Table
from othink_jax.statistics import mean_interval

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


class FormatWeight(Experiment):
    name: ClassVar[str] = "figure4_format_weight"

    def _cell(self, weight: float, seed: int) -> Cell:
        trained = self.scale.cell("grpo_d", "counting", seed, format_weight=weight)
        return trained.tested_on(self.scale.test("counting"))

    def cells(self) -> Sequence[Cell]:
        return [self._cell(*one) for one in itertools.product(WEIGHTS, self.seeds)]

    def result(self) -> Result:
        test = self.scale.test("counting")
        scores: dict[float, list[Score]] = {
            weight: [
                score_of(self.options.root, self._cell(weight, seed), test) for seed in self.seeds
            ]
            for weight in WEIGHTS
        }
        shown = {
            "accuracy": [[s.accuracy for s in scores[weight]] for weight in WEIGHTS],
            "right format": [[s.format for s in scores[weight]] for weight in WEIGHTS],
        }
        figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
        for panel, (label, columns) in zip(panels, shown.items(), strict=True):
            draw_seeds(panel, WEIGHTS, list(zip(*columns, strict=True)), "C0")
            panel.set(xlabel="weight of the format reward", ylabel=f"{label}, %", ylim=(0, 103))
        rows = [
            [
                f"{weight:g}",
                *(with_interval(*mean_interval(shown[label][i])) for label in shown),
                over_first(shown["accuracy"][i], shown["accuracy"][0]),
                " ".join(map(percent, shown["accuracy"][i])),
            ]
            for i, weight in enumerate(WEIGHTS)
        ]
        table = Table(
            title="GRPO-D on counting by the weight of the format reward (%, greedy)",
            columns=["alpha", *shown, "points over alpha = 0", "accuracy, every seed"],
            rows=rows,
            note=f"{OVER_SEEDS}.",
        )
        return Result(tables=[table], figure=figure, numbers={"weights": WEIGHTS, **shown})


if __name__ == "__main__":
    main(FormatWeight, __doc__)
