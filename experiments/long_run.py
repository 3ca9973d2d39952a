"""The regime that favours GRPO-D most, tried again: other seeds, test questions, more methods.

Claim (paper): a KL weight that moves beats a constant one, where training goes on for long.
Command: python -m experiments.long_run
Cost: fifty minutes on two CPU cores.
Shows: in the regime that `regime_search` found, GRPO-D against GRPO with the lowest, the first and
    the highest of its weights, and against SFT with as many updates; accuracy on the task trained
    on, every seed, and paired tests; accuracy of the samples and KL to the base over the training.
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any, ClassVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_metric
from experiments.lab.experiment import Options, Result, main
from experiments.lab.laptop import Base, LaptopExperiment
from experiments.lab.scales import Laptop, Method, Tuned, constant_kl, first_kl
from experiments.lab.scores import metrics_of, records
from experiments.lab.tables import (
    OVER_CONTENTS,
    OVER_SEEDS,
    STRICT,
    both,
    both_columns,
)
from experiments.regime_search import BASES, UPDATES, Regime, RegimeSearch
from experiments.table1_same_task import comparison_table
from othink_jax.config import KLConfig, from_dict, to_dict
from othink_jax.errors import UserError
from othink_jax.report.table import Table


class LongRun(LaptopExperiment):
    name: ClassVar[str] = "long_run"
    bases: ClassVar[tuple[Base, ...]] = BASES

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.updates = options.steps or UPDATES
        found = options.results / RegimeSearch.name / "results.json"
        if not found.is_file():
            raise UserError(f"{found} is absent: run python -m experiments.regime_search first")
        self.regime = from_dict(Regime, json.loads(found.read_text(encoding="utf-8"))["chosen"])
        low, high = constant_kl(self.regime.kl_min), constant_kl(self.regime.kl_max)
        task, tuned = self.regime.task, self.laptop.tuned
        self.trials: dict[str, tuple[Method, Tuned]] = {
            "SFT, as tuned": ("sft", tuned["sft", task]),
            "GRPO, as tuned": ("grpo", tuned["grpo", task]),
        }
        for kl in (low, first_kl(self.regime.kl), high):
            self.trials[f"GRPO {kl.kl_value:g}"] = ("grpo", self._trial(kl))
        self.trials["GRPO-D"] = ("grpo_d", self._trial(self.regime.kl))

    def _trial(self, kl: KLConfig) -> Tuned:
        return Tuned(learning_rate=self.regime.learning_rate, kl=kl)

    def _scale(self, method: Method, trial: Tuned) -> Laptop:
        return Laptop(
            model=self.model(self.regime.base),
            steps=self.updates,
            tuned={(method, self.regime.task): trial},
        )

    def _cell(self, label: str, seed: int) -> Cell:
        method, trial = self.trials[label]
        trained = self._scale(method, trial).cell(method, self.regime.task, seed)
        return trained.tested_on(*self.both_tests(self.regime.task))

    def _base(self) -> Cell:
        base = dataclasses.replace(self.laptop, model=self.model(self.regime.base)).base()
        return base.tested_on(*self.both_tests(self.regime.task))

    def cells(self) -> Sequence[Cell]:
        return [self._base(), *(self._cell(x, seed) for seed in self.seeds for x in self.trials)]

    def _models(self) -> dict[str, list[Cell]]:
        """Cells of the base and of each trial, one per seed."""
        trained = {label: [self._cell(label, seed) for seed in self.seeds] for label in self.trials}
        return {"base": [self._base()], **trained}

    def result(self) -> Result:
        models, about = self._models(), self.regime
        greedy, sampled = (self.scores_of(models, test) for test in self.both_tests(about.task))
        table = Table(
            title=f"{self.updates} updates on {about.task} from the {about.base} base"
            f" (%, {STRICT})",
            columns=["method", *both_columns()],
            rows=[[label, *both(greedy[label], sampled[label])] for label in models],
            note=f"Learning rate {about.learning_rate:g}, but for those as tuned. GRPO-D: KL weight"
            f" from {about.kl_min:g} to {about.kl_max:g}. {OVER_SEEDS}; {OVER_CONTENTS}.",
        )
        pairs = [(label, "GRPO-D") for label in self.trials if label != "GRPO-D"]
        runs = {
            label: [metrics_of(self.options.root, cell) for cell in models[label]]
            for label, (method, _) in self.trials.items()
            if method != "sft"
        }
        numbers = {
            "regime": to_dict(self.regime),
            "greedy": records(greedy),
            "sampled": records(sampled),
        }
        tables = [table, comparison_table(greedy, f"{about.task}, greedy", pairs)]
        tables.append(comparison_table(sampled, f"{about.task}, sampled", pairs))
        return Result(tables=tables, figure=curves(runs), numbers=numbers)


def curves(runs: dict[str, list[list[dict[str, Any]]]]) -> Figure:
    """Training curves: accuracy of the samples, KL to the base, KL weight; seeds and means."""
    shown = {
        "reward_accuracy": "accuracy of samples",
        "kl": "KL, nats a token",
        "beta": "KL weight",
    }
    figure, panels = plt.subplots(1, len(shown), figsize=(11, 3.2), layout="constrained")
    for panel, (name, label) in zip(panels, shown.items(), strict=True):
        for number, (method, found) in enumerate(runs.items()):
            draw_metric(panel, found, name, f"C{number}", method)
        panel.set_ylabel(label)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main(LongRun, __doc__)
