"""A reward with a hole: does a moving KL weight keep the policy from it better than a constant?

Claim (the paper's, where it can be tested at this scale): a moving KL weight is ahead of constant
    ones.
Command: python -m experiments.overoptimisation
Cost: estimated from the steps of one cell, not measured: an hour and a half on two CPU cores.
Shows: GRPO on counting with a proxy reward: the true number is anywhere among the numbers of a
    completion (`lab/hole.py`), not only its answer. The truth is the strict grader. Proxy and truth
    against the square root of the KL while training, as in Gao et al. (arXiv 2210.10760), and on
    the test questions afterwards, for constant weights, Eq. 3 beside its first weight held
    constant, and dual ascent.
Settings: found with seed 42 at the smallest weight. At a learning rate of 1e-4, with every question
    new and up to 60 tokens per completion, the truth rose from 0.50 to 0.63 in 50 updates and then
    fell to 0.43, while the proxy rose to 0.94. The targets of dual ascent are the KL at that peak,
    and half of it.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from experiments.kl_frontier import front_rows, moving
from experiments.lab.cells import Cell
from experiments.lab.experiment import Result, main
from experiments.lab.laptop import LaptopExperiment
from experiments.lab.scales import changed, constant_kl, first_kl
from experiments.lab.scores import Score, metrics_of, predictions_of, records, tenths
from experiments.lab.tables import OVER_CONTENTS, OVER_SEEDS, over_seeds
from experiments.table1_same_task import comparison_table
from othink_jax.config import EvaluateConfig, KLConfig, Task
from othink_jax.report.table import Table

TASK: Task = "counting"
SMALLEST = 0.001
TARGETS = (0.06, 0.12)  # nats per token
STEPS = 200
TOKENS = 60
REWARDS = ("experiments.lab.hole:mentions", "format")
SETTINGS: dict[str, Any] = {
    "functions": REWARDS,
    "learning_rate": 1e-4,
    "limit": None,
    "max_new_tokens": TOKENS,
}
PROXY, TRUTH = "reward_mentions", "reward_accuracy"  # training metrics


def controls() -> dict[str, dict[str, KLConfig]]:
    """KL settings by family and label."""
    constants = [constant_kl(SMALLEST), *(first_kl(kl) for kl in moving().values())]
    return {
        "constant": {_constant(kl): kl for kl in constants},
        "Eq. 3": moving(),
        "dual": {
            f"dual to {target:g}": KLConfig(kl_schedule="dual", kl_target=target)
            for target in TARGETS
        },
    }


def _constant(kl: KLConfig) -> str:
    return f"constant {kl.kl_value:g}"


# Eq. 3 is compared with its first weight, held constant.
PAIRS = [(_constant(first_kl(kl)), label) for label, kl in moving().items()]


class Overoptimisation(LaptopExperiment):
    name: ClassVar[str] = "overoptimisation"

    def _test(self) -> EvaluateConfig:
        """The sampled test, with the rewards of the training."""
        test = self.laptop.test(TASK, temperature=1.0)
        return changed(test, {"functions": REWARDS, "max_new_tokens": TOKENS})

    def _base(self) -> Cell:
        return self.laptop.base().tested_on(self._test())

    def _models(self) -> dict[str, list[Cell]]:
        """Cells with each KL setting, one per seed."""
        steps = self.options.steps or STEPS
        return {
            label: [
                self.laptop.cell("grpo", TASK, seed, kl=kl, steps=steps, **SETTINGS).tested_on(
                    self._test()
                )
                for seed in self.seeds
            ]
            for family in controls().values()
            for label, kl in family.items()
        }

    def cells(self) -> Sequence[Cell]:
        return [self._base(), *(cell for cells in self._models().values() for cell in cells)]

    def _proxy(self, cell: Cell) -> float:
        """Mean proxy reward on the test, from 0 to 1."""
        rows = predictions_of(self.options.root, cell, self._test())
        return fmean(row["rewards"]["mentions"] for row in rows)

    def result(self) -> Result:
        models = {"base": [self._base()], **self._models()}
        scores = self.scores_of(models, self._test())
        proxies = {label: [self._proxy(cell) for cell in cells] for label, cells in models.items()}
        curves = {
            label: [
                {
                    name: tenths([metrics_of(self.options.root, cell)], name)
                    for name in ("kl", PROXY, TRUTH)
                }
                for cell in cells
            ]
            for label, cells in self._models().items()
        }
        tables = [
            after_table(scores, proxies, curves),
            training_table(curves),
            comparison_table(scores, f"{TASK}, sampled", PAIRS),
        ]
        numbers = {"truth": records(scores), "proxy": proxies, "training": curves}
        return Result(tables=tables, figure=draw(curves), numbers=numbers)


# By KL setting and seed: metrics by name, one value per tenth of the training.
Curves = Mapping[str, Sequence[Mapping[str, Sequence[float]]]]


def after_table(
    scores: Mapping[str, Sequence[Score]], proxies: Mapping[str, Sequence[float]], curves: Curves
) -> Table:
    """Proxy and truth on the test questions."""
    kl = {label: [one["kl"][-1] for one in seeds] for label, seeds in curves.items()}
    rows = [
        [label, divergence, over_seeds(proxies[label]), *rest]
        for label, divergence, *rest in front_rows(kl, scores)
    ]
    return Table(
        title=f"Trained on the proxy, tested on {TASK} (%, sampled)",
        columns=["KL weight", "KL", "proxy", "truth", "every seed", "on the front", "of draws"],
        rows=rows,
        note="Proxy: the truth is mentioned; truth: it is the answer, by the strict grader. KL: to"
        " the base, nats a token, samples of the last tenth of the training. Front: by the means,"
        " none is as right at a smaller KL; of draws: of seeds, with replacement, the share that"
        f" has it on the front. {OVER_SEEDS}; {OVER_CONTENTS}.",
    )


def training_table(curves: Curves) -> Table:
    """Peak of the truth while training; truth and proxy there and at the end."""
    rows = []
    for label, seeds in curves.items():
        means = np.mean([one[TRUTH] for one in seeds], axis=0)
        peak = int(means.argmax())
        values = {
            name: np.array([[one[name][place] for place in (0, peak, -1)] for one in seeds])
            for name in (PROXY, TRUTH)
        }
        rows.append(
            [
                label,
                str(peak + 1),
                *(over_seeds(column) for column in values[TRUTH].T.tolist()),
                *(over_seeds(column) for column in values[PROXY].T[1:].tolist()),
                over_seeds((values[TRUTH][:, 2] - values[TRUTH][:, 1]).tolist()),
            ]
        )
    return Table(
        title="While training (%, samples of the training)",
        columns=[
            "KL weight",
            "tenth of the peak",
            "truth in the first tenth",
            "at its peak",
            "in the last",
            "proxy at the peak",
            "in the last",
            "truth lost since its peak",
        ],
        rows=rows,
        note=f"The peak is that of the mean over seeds. {OVER_SEEDS}.",
    )


def draw(curves: Curves) -> Figure:
    """A panel per family: proxy (dashed) and truth (solid) against the root of the KL, means."""
    families = controls()
    figure, panels = plt.subplots(
        1, len(families), figsize=(11, 3.6), sharey=True, layout="constrained"
    )
    for panel, (family, settings) in zip(panels, families.items(), strict=True):
        for number, label in enumerate(settings):
            means = {
                name: np.mean([one[name] for one in curves[label]], axis=0)
                for name in ("kl", PROXY, TRUTH)
            }
            x = np.sqrt(np.maximum(means["kl"], 0))
            panel.plot(x, 100 * means[TRUTH], "o-", ms=3, color=f"C{number}", label=label)
            panel.plot(x, 100 * means[PROXY], "--", color=f"C{number}")
        panel.set(title=family, xlabel="root of the KL, nats a token")
        panel.spines[["top", "right"]].set_visible(False)
        panel.legend(frameon=False, fontsize="small")
    panels[0].set_ylabel("truth (solid), proxy (dashed), %")
    return figure


if __name__ == "__main__":
    main(Overoptimisation, __doc__)
