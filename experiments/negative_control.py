"""Negative control: a base without engineered headroom, trained as the embedded model is.

Claim (ours): what post-training elicits from the embedded model is the headroom that was put
    there. Its twin whose quick looks are as right as they can be has nothing that could be
    elicited, and greedy accuracy stays where it is.
Command: python -m experiments.negative_control
Cost: laptop, 5 seeds: forty minutes on two CPU cores, the making of two bases included.
Shows: the gain of each method over its base, with the settings that were tuned on the embedded
    model. Both bases went on from it for as many updates (`continue_tiny`), one with quick looks as
    hasty as they were, one without; nothing else differs.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_dots
from experiments.lab.experiment import Result, main
from experiments.lab.laptop import Base, LaptopExperiment
from experiments.lab.scales import METHODS, TASKS, TITLES, Laptop, Method
from experiments.lab.scores import score_of
from experiments.lab.tables import OVER_SEEDS, percent, with_interval
from othink_jax.config import Task
from othink_jax.report.table import Table
from othink_jax.statistics import mean_interval

DECODING = {"greedy": 0.0, "sampled": 1.0}  # temperatures


class NegativeControl(LaptopExperiment):
    name: ClassVar[str] = "negative_control"

    bases: ClassVar[tuple[Base, ...]] = ("hasty", "calibrated")

    def scales(self) -> dict[Base, Laptop]:
        """The same settings from either base."""
        return {
            base: dataclasses.replace(self.laptop, model=self.model(base)) for base in self.bases
        }

    def cells(self) -> Sequence[Cell]:
        found = []
        for scale in self.scales().values():
            found.append(scale.base())
            for method, task, seed in itertools.product(METHODS, TASKS, self.seeds):
                tests = [scale.test(task, temperature=value) for value in DECODING.values()]
                found.append(scale.cell(method, task, seed).tested_on(*tests))
        return found

    def gains(
        self, scale: Laptop, method: Method, task: Task, temperature: float
    ) -> tuple[float, list[float]]:
        """The base's accuracy, and what each seed has more."""
        root, test = self.options.root, scale.test(task, temperature=temperature)
        base = score_of(root, scale.base(), test).accuracy
        cells = [scale.cell(method, task, seed) for seed in self.seeds]
        return base, [score_of(root, cell, test).accuracy - base for cell in cells]

    def result(self) -> Result:
        scales = self.scales()
        rows = []
        greedy: dict[str, dict[str, list[float]]] = {}
        for (decoding, temperature), task, method in itertools.product(
            DECODING.items(), TASKS, METHODS
        ):
            row = [decoding, task, TITLES[method]]
            for name, scale in scales.items():
                base, gains = self.gains(scale, method, task, temperature)
                row += [percent(base), with_interval(*mean_interval(gains))]
                row.append(" ".join(map(percent, gains)))
                if decoding == "greedy":
                    greedy.setdefault(f"{name}, {task}", {})[method] = gains
            rows.append(row)
        columns = ["decoding", "task", "method"]
        for name in scales:
            columns += [f"{name} base", f"{name}: gain", f"{name}: every seed"]
        table = Table(
            title="Points gained on the task trained on, from either base (%)",
            columns=columns,
            rows=rows,
            note=f"{OVER_SEEDS}.",
        )
        return Result(tables=[table], figure=draw(greedy), numbers={"gains": greedy})


def draw(gains: dict[str, dict[str, list[float]]]) -> Figure:
    """Greedy gains: a panel a base and task, a dot a seed."""
    figure, panels = plt.subplots(1, len(gains), figsize=(10, 3), layout="constrained", sharey=True)
    for panel, (title, by_method) in zip(panels, gains.items(), strict=True):
        draw_dots(panel, {TITLES[method]: values for method, values in by_method.items()})
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(title=title, ylabel="gain, points")
        panel.label_outer()
    return figure


if __name__ == "__main__":
    main(NegativeControl, __doc__)
