"""Figure 6: GRPO with ever larger constant KL weights, on geometry.

Claim (paper): accuracy rises with beta, then falls.
Command: python -m experiments.figure6_kl_weight
Cost: laptop, 5 seeds: a quarter of an hour on two CPU cores.
Shows: accuracy at beta 0 to 0.05, each seed and the mean.
"""

import itertools
from collections.abc import Sequence
from typing import ClassVar

import matplotlib.pyplot as plt

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_seeds
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scores import score_of
from experiments.lab.tables import OVER_SEEDS, over_first, percent, with_interval
from othink_jax.report.table import Table
from othink_jax.statistics import mean_interval

WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05)


class KLWeight(Experiment):
    name: ClassVar[str] = "figure6_kl_weight"

    def _cell(self, weight: float, seed: int) -> Cell:
        trained = self.scale.cell("grpo", "geometry", seed, kl_schedule="constant", kl_value=weight)
        return trained.tested_on(self.scale.test("geometry"))

    def cells(self) -> Sequence[Cell]:
        return [self._cell(*one) for one in itertools.product(WEIGHTS, self.seeds)]

    def result(self) -> Result:
        test = self.scale.test("geometry")
        accuracies = [
            [
                score_of(self.options.root, self._cell(weight, seed), test).accuracy
                for seed in self.seeds
            ]
            for weight in WEIGHTS
        ]
        figure, panel = plt.subplots(figsize=(5, 3.4), layout="constrained")
        draw_seeds(panel, WEIGHTS, list(zip(*accuracies, strict=True)), "C0")
        panel.set(xlabel="constant KL weight", ylabel="accuracy, %", ylim=(0, None))
        rows = [
            [
                f"{weight:g}",
                with_interval(*mean_interval(values)),
                over_first(values, accuracies[0]),
                " ".join(map(percent, values)),
            ]
            for weight, values in zip(WEIGHTS, accuracies, strict=True)
        ]
        table = Table(
            title="GRPO on geometry by its KL weight (accuracy in %, greedy)",
            columns=["beta", "mean", "points over beta = 0", "every seed"],
            rows=rows,
            note=f"{OVER_SEEDS}.",
        )
        numbers = {"weights": WEIGHTS, "accuracies": accuracies}
        return Result(tables=[table], figure=figure, numbers=numbers)


if __name__ == "__main__":
    main(KLWeight, __doc__)
