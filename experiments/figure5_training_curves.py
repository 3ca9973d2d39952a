"""Figure 5: rewards over training with GRPO-D, and the KL weight that was applied.

Claim (paper): the format reward rises within about 50 steps, the accuracy reward slowly and
    steadily.
Command: python -m experiments.figure5_training_curves
Cost: nothing beside table 1, whose runs it shows.
Shows: both rewards at each step, smoothed, on both tasks; each seed, and the mean. Below them beta
    as the updates recorded it, which has to be that of Eq. 3.
"""

from collections.abc import Sequence
from typing import ClassVar

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_metric
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scales import TASKS, Task
from experiments.lab.scores import metrics_of, tenths
from experiments.lab.tables import percent
from othink_jax.config import GRPOConfig, KLConfig
from othink_jax.report.table import Table

REWARDS = ("reward_format", "reward_accuracy")


class TrainingCurves(Experiment):
    name: ClassVar[str] = "figure5_training_curves"

    def _cell(self, task: Task, seed: int) -> Cell:
        return self.scale.cell("grpo_d", task, seed)

    def cells(self) -> Sequence[Cell]:
        return [self._cell(task, seed) for task in TASKS for seed in self.seeds]

    def result(self) -> Result:
        runs = {
            task: [metrics_of(self.options.root, self._cell(task, seed)) for seed in self.seeds]
            for task in TASKS
        }
        figure, (panels, below) = plt.subplots(
            2, len(TASKS), figsize=(9, 5), layout="constrained", height_ratios=(3, 1.4)
        )
        rows, distances = [], []
        for panel, weights, (task, found) in zip(panels, below, runs.items(), strict=True):
            for color, reward in zip(("C2", "C0"), REWARDS, strict=True):
                label = reward.removeprefix("reward_")
                draw_metric(panel, found, reward, color, label)
                means = tenths(found, reward)
                rows.append([task, label, percent(means[0]), percent(means[-1])])
            panel.set(title=task, ylabel="reward", ylim=(0, 1.03))
            panel.legend(frameon=False)
            recorded = [[row["beta"] for row in run] for run in found]
            distances.append([task, f"{self._draw_weights(weights, task, recorded):.1e}"])
        table = Table(
            title="Rewards of GRPO-D while it trains (%, mean over seeds)",
            columns=["task", "reward", "first tenth of the steps", "last tenth"],
            rows=rows,
        )
        numbers = {
            task: {reward: [[row[reward] for row in run] for run in found] for reward in REWARDS}
            for task, found in runs.items()
        }
        applied = Table(
            title="KL weights as the updates recorded them, all seeds",
            columns=["task", "farthest from Eq. 3"],
            rows=distances,
        )
        return Result(tables=[table, applied], figure=figure, numbers=numbers)

    def _draw_weights(self, panel: Axes, task: Task, runs: Sequence[Sequence[float]]) -> float:
        """Draw the KL weights of each seed's run; returns their largest distance from Eq. 3."""
        train = self._cell(task, 0).train
        assert isinstance(train, GRPOConfig)
        expected = equation_3(train.kl, len(runs[0]))
        steps = np.arange(1, len(runs[0]) + 1)
        for recorded in runs:
            panel.plot(steps, recorded, color="C3", alpha=0.5)
        panel.plot(steps, expected, color="black", linestyle="dashed", label="Eq. 3")
        panel.set(xlabel="step", ylabel="beta", ylim=(0, None))
        panel.legend(frameon=False)
        return float(np.abs(np.array(runs) - expected).max())


def equation_3(kl: KLConfig, total: int) -> Float[np.ndarray, " steps"]:
    """KL weights of a run as the paper defines them, independent of the training code."""
    step, turn = np.arange(total), kl.exploration_fraction * total
    middle = (kl.kl_min + kl.kl_max) / 2
    falling = middle - (middle - kl.kl_min) * step / turn
    rising = kl.kl_min + (kl.kl_max - kl.kl_min) * (step - turn) / (total - turn)
    return np.where(step <= turn, falling, rising)


if __name__ == "__main__":
    main(TrainingCurves, __doc__)
