"""Settings of each method on each task, chosen on the validation split, the same care for all.

Claim: none; so that no method is compared at settings that suit another one.
Command: python -m experiments.tuning
Cost: 35 minutes on two CPU cores.
Shows: six trials a method and task, each from two seeds that no experiment uses (whatever --seeds
    says), by greedy accuracy on 500 questions of the validation split, which shares no content with
    training and test sets. The other experiments at laptop scale read what is chosen here.
"""

import itertools
from collections.abc import Sequence
from statistics import fmean
from typing import Any, ClassVar

from experiments.lab.cells import Cell
from experiments.lab.experiment import FIRST_TUNING_SEED, Options, Result, main
from experiments.lab.laptop import LaptopExperiment
from experiments.lab.scales import METHODS, TASKS, TITLES, Laptop, Method, Tuned, constant_kl
from experiments.lab.scores import score_of
from experiments.lab.tables import percent
from othink_jax.config import KLConfig, Task, to_dict
from othink_jax.report.table import Table

QUESTIONS = 500
_RATES = (1e-4, 3e-4, 1e-3)
# The paper's weights for its two tasks, each tried on both.
_CONSTANT = [constant_kl(value) for value in (0.01, 0.04)]
_DYNAMIC = [KLConfig(kl_min=low, kl_max=high) for low, high in ((0.0, 0.02), (0.04, 0.10))]
TRIALS: dict[Method, list[Tuned]] = {
    "sft": [Tuned(learning_rate=rate) for rate in (1e-5, 3e-5, 1e-4, 3e-4, 6e-4, 1e-3)],
    "grpo": [Tuned(learning_rate=rate, kl=kl) for rate, kl in itertools.product(_RATES, _CONSTANT)],
    "grpo_d": [
        Tuned(learning_rate=rate, kl=kl) for rate, kl in itertools.product(_RATES, _DYNAMIC)
    ],
}


class Tuning(LaptopExperiment):
    name: ClassVar[str] = "tuning"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.seeds = (FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1)

    def _cell(self, method: Method, task: Task, trial: Tuned, seed: int) -> Cell:
        """A trial from one seed, tested on the validation split alone."""
        scale = Laptop(tuned={(method, task): trial}, count=QUESTIONS)
        return scale.cell(method, task, seed).tested_on(scale.test(task, "validation"))

    def cells(self) -> Sequence[Cell]:
        return [
            self._cell(method, task, trial, seed)
            for method, task, seed in itertools.product(METHODS, TASKS, self.seeds)
            for trial in TRIALS[method]
        ]

    def _accuracies(self, method: Method, task: Task, trial: Tuned) -> list[float]:
        tried = [self._cell(method, task, trial, seed) for seed in self.seeds]
        return [score_of(self.options.root, one, one.tests[0]).accuracy for one in tried]

    def result(self) -> Result:
        rows, chosen = [], []
        for method, task in itertools.product(METHODS, TASKS):
            tried = [(self._accuracies(method, task, trial), trial) for trial in TRIALS[method]]
            best = max(tried, key=lambda one: fmean(one[0]))[1]
            chosen.append(_record(method, task, best))
            rows += [
                [
                    TITLES[method],
                    task,
                    f"{trial.learning_rate:g}",
                    _weight(trial.kl),
                    *map(percent, accuracies),
                    percent(fmean(accuracies)),
                    "chosen" if trial is best else "",
                ]
                for accuracies, trial in tried
            ]
        table = Table(
            title="Trials on the validation split (accuracy in percent, greedy)",
            columns=["method", "task", "learning rate", "KL weight"]
            + [f"seed {seed}" for seed in self.seeds]
            + ["mean", ""],
            rows=rows,
            note=f"{QUESTIONS} questions; {Laptop(tuned={}).steps} updates of 8 prompts.",
        )
        return Result(tables=[table], numbers={"chosen": chosen})


def _record(method: Method, task: Task, trial: Tuned) -> dict[str, Any]:
    return {"method": method, "task": task} | to_dict(trial)


def _weight(kl: KLConfig | None) -> str:
    if kl is None:
        return ""
    if kl.kl_schedule == "constant":
        return f"{kl.kl_value:g}"
    return f"{kl.kl_min:g} to {kl.kl_max:g}"


if __name__ == "__main__":
    main(Tuning, __doc__)
