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
from experiments.lab.scores import records
from experiments.lab.tables import (
    OVER_SEEDS,
    R1V,
    STRICT,
    every_seed,
    over_first,
    r1v_mean,
    summary,
)
from othink_jax.report.table import Table

WEIGHTS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05)


class KLWeight(Experiment):
    name: ClassVar[str] = "figure6_kl_weight"

    def _cell(self, weight: float, seed: int) -> Cell:
        trained = self.scale.cell("grpo", "geometry", seed, kl_schedule="constant", kl_value=weight)
        return trained.tested_on(self.scale.test("geometry"))

    def cells(self) -> Sequence[Cell]:
        return [self._cell(*one) for one in itertools.product(WEIGHTS, self.seeds)]

    def result(self) -> Result:
        trained = {weight: [self._cell(weight, seed) for seed in self.seeds] for weight in WEIGHTS}
        scores = self.scores_of(trained, self.scale.test("geometry"))
        accuracies = [[score.accuracy for score in found] for found in scores.values()]
        figure, panel = plt.subplots(figsize=(5, 3.4), layout="constrained")
        draw_seeds(panel, WEIGHTS, list(zip(*accuracies, strict=True)), "C0")
        panel.set(xlabel="constant KL weight", ylabel="accuracy, %", ylim=(0, None))
        rows = [
            [
                f"{weight:g}",
                summary(found),
                r1v_mean(found),
                over_first(found, scores[WEIGHTS[0]]),
                every_seed(found),
            ]
            for weight, found in scores.items()
        ]
        table = Table(
            title=f"GRPO on geometry by its KL weight (accuracy in %, greedy, {STRICT})",
            columns=["beta", "mean", R1V, "points over beta = 0", "every seed"],
            rows=rows,
            note=f"{OVER_SEEDS}.",
        )
        return Result(tables=[table], figure=figure, numbers={"weights": records(scores)})


if __name__ == "__main__":
    main(KLWeight, __doc__)
