"""Figure 4: the weight of the format reward (alpha of Eq. 1).

Claim (paper): alpha = 1 is about 20% (relative) better in accuracy than alpha = 0; the format is
    right in 99.70% at alpha = 0 already.
Command: python -m experiments.figure4_format_weight
Cost: laptop, 5 seeds: ten minutes on two CPU cores, beside table 1.
Shows: accuracy and format accuracy of GRPO-D on counting against alpha, beside the published ones,
    and those of the base before training.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import ClassVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_seeds
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scores import Score, records, relative_changes
from experiments.lab.tables import (
    OVER_CONTENTS,
    OVER_SEEDS,
    R1V,
    STRICT,
    every_seed,
    over_seeds,
    r1v_mean,
    summary,
)
from othink_jax.report.table import Table

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
# In percent: the share of right format, and the relative change of accuracy over alpha = 0.
PUBLISHED = {"0": ("99.70", ""), "1": ("", "about 20")}


class FormatWeight(Experiment):
    name: ClassVar[str] = "figure4_format_weight"

    def _cell(self, weight: float, seed: int) -> Cell:
        trained = self.scale.cell("grpo_d", "counting", seed, format_weight=weight)
        return trained.tested_on(self.scale.test("counting"))

    def _models(self) -> dict[str, list[Cell]]:
        """Cells of the base and of each format weight, one per seed."""
        trained = {f"{weight:g}": [self._cell(weight, s) for s in self.seeds] for weight in WEIGHTS}
        return {"base": [self.scale.base()], **trained}

    def cells(self) -> Sequence[Cell]:
        return list(itertools.chain(*self._models().values()))

    def result(self) -> Result:
        scores = self.scores_of(self._models(), self.scale.test("counting"))
        numbers = {"weights": records(scores)}
        return Result(tables=[by_weight(scores)], figure=draw(scores), numbers=numbers)


def by_weight(scores: Mapping[str, Sequence[Score]]) -> Table:
    """The base, and each weight beside the published numbers."""
    rows = []
    for name, found in scores.items():
        form, change = PUBLISHED.get(name, ("", ""))
        ours = [] if name in ("base", "0") else relative_changes(scores["0"], found)
        rows.append(
            [
                name,
                summary(found),
                r1v_mean(found),
                over_seeds([score.format for score in found]),
                form,
                over_seeds(ours) if ours else "",
                change,
                every_seed(found),
            ]
        )
    columns = ["alpha", "accuracy", R1V, "right format", "right format, paper"]
    columns += ["change over alpha = 0", "change, paper", "accuracy, every seed"]
    return Table(
        title=f"GRPO-D on counting by the weight of the format reward (%, greedy, {STRICT})",
        columns=columns,
        rows=rows,
        note=f"Base: before training. Change: relative. {OVER_SEEDS}; {OVER_CONTENTS}.",
    )


def draw(scores: Mapping[str, Sequence[Score]]) -> Figure:
    """Accuracy and right format by weight: a pale line per seed, a strong one for their mean."""
    trained = [scores[f"{weight:g}"] for weight in WEIGHTS]
    shown = {
        "accuracy": [[score.accuracy for score in found] for found in trained],
        "right format": [[score.format for score in found] for found in trained],
    }
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained")
    for panel, (label, columns) in zip(panels, shown.items(), strict=True):
        draw_seeds(panel, WEIGHTS, list(zip(*columns, strict=True)), "C0")
        panel.set(xlabel="weight of the format reward", ylabel=f"{label}, %", ylim=(0, 103))
    return figure


if __name__ == "__main__":
    main(FormatWeight, __doc__)
