"""Accuracy against KL for every schedule and controller of the KL weight: is any of them ahead?

Claim (ours): at a given KL, it makes no difference how the weight has moved.
Command: python -m experiments.kl_frontier
Cost: estimated from the steps of one cell, not measured: two to three hours on two CPU cores.
Shows: GRPO with constant weights, the weight of Eq. 3, and three controllers with a target KL
    (Ziegler's, PID, dual ascent), trained on either task and tested on both: accuracy against the
    square root of the KL to the base, as in Gao et al. (arXiv 2210.10760); every seed, the Pareto
    front of the means, and how often each is on the front of resampled seeds.
"""

import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure

from experiments.lab.cells import Cell
from experiments.lab.experiment import Result, main
from experiments.lab.laptop import LaptopExperiment
from experiments.lab.scales import TASKS, constant_kl
from experiments.lab.scores import Score, metrics_of, records, tenths
from experiments.lab.tables import OVER_CONTENTS, OVER_SEEDS, STRICT, every_seed, summary
from othink_jax.config import KLConfig, Task
from othink_jax.report.table import Table
from othink_jax.statistics import mean_interval

# The smallest stands for none: a weight of 0 drops the reference, which the KL is measured with.
WEIGHTS = (1e-4, 0.01, 0.04, 0.1, 0.4, 1.0)
BOUNDS = ((0.0, 0.02), (0.04, 0.10), (0.1, 0.4))  # of Eq. 3; the first two are the paper's
# Nats per token. Constant weights of at most 0.04 end at a KL of 0.05 to 0.13.
TARGETS = (0.02, 0.06)
CONTROLLERS = ("ziegler", "pid", "dual")
DRAWS = 1000
# The task trained on, and the task tested on.
Way = tuple[Task, Task]
WAYS: tuple[Way, ...] = tuple(itertools.product(TASKS, TASKS))


def moving() -> dict[str, KLConfig]:
    """KL settings of Eq. 3 with each pair of bounds, by label."""
    return {
        f"Eq. 3, {low:g} to {high:g}": KLConfig(kl_min=low, kl_max=high) for low, high in BOUNDS
    }


def controls() -> dict[str, dict[str, KLConfig]]:
    """KL settings by family and label."""
    found = {
        "constant": {f"constant {value:g}": constant_kl(value) for value in WEIGHTS},
        "Eq. 3": moving(),
    }
    for name in CONTROLLERS:
        found[name] = {
            f"{name} to {target:g}": KLConfig(kl_schedule=name, kl_target=target)
            for target in TARGETS
        }
    return found


class KLFrontier(LaptopExperiment):
    name: ClassVar[str] = "kl_frontier"

    def _models(self, task: Task) -> dict[str, list[Cell]]:
        """Cells with each KL setting, one per seed; tested on both tasks."""
        tests = [self.laptop.test(tested) for tested in TASKS]
        return {
            label: [
                self.laptop.cell("grpo", task, seed, kl=kl).tested_on(*tests) for seed in self.seeds
            ]
            for family in controls().values()
            for label, kl in family.items()
        }

    def _base(self) -> Cell:
        return self.laptop.base().tested_on(*(self.laptop.test(task) for task in TASKS))

    def cells(self) -> Sequence[Cell]:
        trained = [self._models(task) for task in TASKS]
        return [
            self._base(),
            *(cell for found in trained for row in found.values() for cell in row),
        ]

    def _divergences(self, task: Task) -> dict[str, list[float]]:
        """KL to the base of each seed, nats per token, over the last tenth of the training."""
        return {
            label: [tenths([metrics_of(self.options.root, cell)], "kl")[-1] for cell in cells]
            for label, cells in self._models(task).items()
        }

    def result(self) -> Result:
        divergences = {task: self._divergences(task) for task in TASKS}
        scores = {
            (trained, tested): self.scores_of(
                {"base": [self._base()], **self._models(trained)}, self.laptop.test(tested)
            )
            for trained, tested in WAYS
        }
        tables = [frontier_table(way, divergences[way[0]], scores[way]) for way in WAYS]
        numbers = {
            "kl": divergences,
            **{" to ".join(way): records(found) for way, found in scores.items()},
        }
        return Result(tables=tables, figure=draw(divergences, scores), numbers=numbers)


def on_front(
    kl: Float[np.ndarray, " n"], accuracy: Float[np.ndarray, " n"]
) -> Bool[np.ndarray, " n"]:
    """Pareto front: points that no other beats in KL or accuracy without being worse in one."""
    no_larger = kl[:, None] <= kl
    no_worse = accuracy[:, None] >= accuracy
    better = (kl[:, None] < kl) | (accuracy[:, None] > accuracy)
    beaten = np.any(no_larger & no_worse & better, axis=0)
    return np.logical_not(beaten)


def front_shares(
    kl: Float[np.ndarray, "n seeds"],
    accuracy: Float[np.ndarray, "n seeds"],
    base: float,
    draws: int = DRAWS,
) -> tuple[Bool[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Which points are on the front of the means, and on what share of fronts of resampled seeds.

    The base takes part with a KL of 0, so no point less accurate than the base is on a front. A
    draw takes the same seeds for all points, because equal seeds share data and order.
    """

    def front(seeds: Int[np.ndarray, " k"]) -> Bool[np.ndarray, " n"]:
        means = [values[:, seeds].mean(axis=1) for values in (kl, accuracy)]
        return on_front(np.append(means[0], 0.0), np.append(means[1], base))[:-1]

    rng, count = np.random.default_rng(0), kl.shape[1]
    drawn = [front(seeds) for seeds in rng.integers(count, size=(draws, count))]
    return front(np.arange(count)), np.mean(drawn, axis=0)


def front_rows(
    divergences: Mapping[str, Sequence[float]], scores: Mapping[str, Sequence[Score]]
) -> list[list[str]]:
    """Table rows of the base and of each KL setting: KL, accuracy, every seed, and the front."""
    (base,) = scores["base"]
    accuracies = [[score.accuracy for score in scores[label]] for label in divergences]
    best, shares = front_shares(
        np.array(list(divergences.values())), np.array(accuracies), base.accuracy
    )
    rows = [["base", "0", summary([base]), every_seed([base]), "", ""]]
    for label, front, share in zip(divergences, best, shares, strict=True):
        mean, low, high = mean_interval(divergences[label])
        rows.append(
            [
                label,
                f"{mean:.3f} ({low:.3f} to {high:.3f})",
                summary(scores[label]),
                every_seed(scores[label]),
                "yes" if front else "",
                f"{100 * share:.0f}",
            ]
        )
    return rows


def frontier_table(
    way: Way, divergences: Mapping[str, Sequence[float]], scores: Mapping[str, Sequence[Score]]
) -> Table:
    """Every KL setting on one test."""
    rows = front_rows(divergences, scores)
    trained, tested = way
    return Table(
        title=f"Trained on {trained}, tested on {tested} (%, greedy, {STRICT})",
        columns=["KL weight", "KL", "accuracy", "every seed", "on the front", "share of draws"],
        rows=rows,
        note="KL: to the base, nats a token, samples of the last tenth of the training. Front: by"
        " the means, none is as accurate at a smaller KL. Share of draws: of seeds,"
        f" with replacement, that have it on the front (%). {OVER_SEEDS}; {OVER_CONTENTS}.",
    )


def draw(
    divergences: Mapping[Task, Mapping[str, Sequence[float]]],
    scores: Mapping[Way, Mapping[str, Sequence[Score]]],
) -> Figure:
    """A panel per pair of tasks: a pale dot per seed, a strong one per mean, a line per family."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for panel, (way, found) in zip(panels.flat, scores.items(), strict=True):
        for number, (family, settings) in enumerate(controls().items()):
            means = []
            for label in settings:
                x = np.sqrt(divergences[way[0]][label])
                y = [100 * score.accuracy for score in found[label]]
                panel.plot(x, y, ".", color=f"C{number}", alpha=0.3)
                means.append((fmean(x), fmean(y)))
            panel.plot(*zip(*sorted(means), strict=True), "o-", color=f"C{number}", label=family)
        panel.plot(0, 100 * found["base"][0].accuracy, "k*", label="base")
        panel.set(title=f"{way[0]} to {way[1]}", ylabel="accuracy, %")
        panel.set_xlabel("root of the KL, nats a token")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(KLFrontier, __doc__)
