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
from collections.abc import Mapping, Sequence
from typing import ClassVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_dots
from experiments.lab.experiment import Result, main
from experiments.lab.laptop import Base, LaptopExperiment
from experiments.lab.scales import METHODS, TASKS, TITLES, Laptop, Method
from experiments.lab.scores import Score, records
from experiments.lab.tables import OVER_SEEDS, R1V, STRICT, over_seeds, percent, r1v_mean
from othink_jax.report.table import Table

DECODING = {"greedy": 0.0, "sampled": 1.0}  # temperatures


class NegativeControl(LaptopExperiment):
    name: ClassVar[str] = "negative_control"

    bases: ClassVar[tuple[Base, ...]] = ("hasty", "calibrated")

    def scales(self) -> dict[Base, Laptop]:
        """The same settings for each base."""
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

    def result(self) -> Result:
        scores = {
            (decoding, task, base): self.scores_of(
                self.models(scale, task), scale.test(task, temperature=DECODING[decoding])
            )
            for decoding, task, (base, scale) in itertools.product(
                DECODING, TASKS, self.scales().items()
            )
        }
        rows = []
        for decoding, task, method in itertools.product(DECODING, TASKS, METHODS):
            row = [decoding, task, TITLES[method]]
            for base in self.bases:
                row += gained(scores[decoding, task, base], method)
            rows.append(row)
        columns = ["decoding", "task", "method"]
        for base in self.bases:
            columns += [f"{base} base", f"{base}: gain", f"{base}: every seed"]
            columns.append(f"{base}: {R1V}, before and after")
        table = Table(
            title=f"Points gained on the task trained on, from either base (%, {STRICT})",
            columns=columns,
            rows=rows,
            note=f"{OVER_SEEDS}.",
        )
        greedy = {
            f"{base}, {task}": {method: gains(found, method) for method in METHODS}
            for (decoding, task, base), found in scores.items()
            if decoding == "greedy"
        }
        numbers = [
            {"decoding": decoding, "task": task, "base": base, "scores": records(found)}
            for (decoding, task, base), found in scores.items()
        ]
        return Result(tables=[table], figure=draw(greedy), numbers={"scores": numbers})


def gains(scores: Mapping[str, Sequence[Score]], method: str) -> list[float]:
    """Accuracy gain of each seed over the base."""
    (base,) = scores["base"]
    return [score.accuracy - base.accuracy for score in scores[method]]


def gained(scores: Mapping[str, Sequence[Score]], method: str) -> list[str]:
    """Table cells: base, mean gain, gain of every seed, and R1-V's grades before and after."""
    (base,) = scores["base"]
    found = gains(scores, method)
    return [
        percent(base.accuracy),
        over_seeds(found),
        " ".join(map(percent, found)),
        f"{r1v_mean(scores['base'])} {r1v_mean(scores[method])}",
    ]


def draw(gains: Mapping[str, Mapping[Method, Sequence[float]]]) -> Figure:
    """Greedy gains: one panel per base and task, one dot per seed."""
    figure, panels = plt.subplots(1, len(gains), figsize=(10, 3), layout="constrained", sharey=True)
    for panel, (title, by_method) in zip(panels, gains.items(), strict=True):
        draw_dots(panel, {TITLES[method]: values for method, values in by_method.items()})
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set(title=title, ylabel="gain, points")
        panel.label_outer()
    return figure


if __name__ == "__main__":
    main(NegativeControl, __doc__)
