"""Settings of each method on each task, chosen on the validation split, the same care for all.

Claim: none; so that no method is compared at settings that suit another one.
Command: python -m experiments.tuning
Cost: about an hour on two CPU cores.
Shows: six trials a method and task, each from two seeds that no experiment uses, by greedy accuracy
    on 500 questions of the validation split, which shares no content with training and test sets.
    The other experiments at laptop scale read what is chosen here.
"""

import dataclasses
import itertools
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro

from experiments.lab.cells import Cell
from experiments.lab.experiment import Result, as_command, show, write
from experiments.lab.runner import run_all
from experiments.lab.scales import METHODS, TASKS, TITLES, TUNED, Laptop, Method, Tuned
from experiments.lab.scores import score_of
from experiments.lab.tables import percent
from othink_jax.config import KLConfig, Task, to_dict
from othink_jax.report.table import Table

SEEDS = (100, 101)
QUESTIONS = 500
_RATES = (1e-4, 3e-4, 1e-3)
# The paper's weights for its two tasks, each tried on both.
_CONSTANT = [KLConfig(kl_schedule="constant", kl_value=value) for value in (0.01, 0.04)]
_DYNAMIC = [KLConfig(kl_min=low, kl_max=high) for low, high in ((0.0, 0.02), (0.04, 0.10))]
TRIALS: dict[Method, list[Tuned]] = {
    "sft": [Tuned(learning_rate=rate) for rate in (1e-5, 3e-5, 1e-4, 3e-4, 6e-4, 1e-3)],
    "grpo": [Tuned(learning_rate=rate, kl=kl) for rate, kl in itertools.product(_RATES, _CONSTANT)],
    "grpo_d": [
        Tuned(learning_rate=rate, kl=kl) for rate, kl in itertools.product(_RATES, _DYNAMIC)
    ],
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """Where models and tables go."""

    runs: Path = Path("runs/experiments/laptop")
    out: Path = TUNED.parent


def cell(method: Method, task: Task, trial: Tuned, seed: int) -> Cell:
    """A trial from one seed, tested on the validation split alone."""
    scale = Laptop(tuned={(method, task): trial}, count=QUESTIONS)
    return scale.cell(method, task, seed).tested_on(scale.test(task, "validation"))


def cells() -> list[Cell]:
    """Of all trials."""
    return [
        cell(method, task, trial, seed)
        for method, task, seed in itertools.product(METHODS, TASKS, SEEDS)
        for trial in TRIALS[method]
    ]


def result(root: Path) -> Result:
    """The accuracy of every trial, and the best one of each method and task.

    A trial that failed, its numbers no longer finite, is a trial with an accuracy of zero.
    """
    rows, chosen = [], []
    for method, task in itertools.product(METHODS, TASKS):
        tried = [(_accuracies(root, method, task, trial), trial) for trial in TRIALS[method]]
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
        + [f"seed {seed}" for seed in SEEDS]
        + ["mean", ""],
        rows=rows,
        note=f"{QUESTIONS} questions; {Laptop(tuned={}).steps} updates of 8 prompts.",
    )
    return Result(tables=[table], numbers={"chosen": chosen, "rows": rows})


def _accuracies(root: Path, method: Method, task: Task, trial: Tuned) -> list[float]:
    tried = [cell(method, task, trial, seed) for seed in SEEDS]
    return [score_of(root, one, one.tests[0]).accuracy for one in tried]


def _record(method: Method, task: Task, trial: Tuned) -> dict[str, Any]:
    return {
        "method": method,
        "task": task,
        "learning_rate": trial.learning_rate,
        "kl": None if trial.kl is None else to_dict(trial.kl),
    }


def _weight(kl: KLConfig | None) -> str:
    if kl is None:
        return ""
    if kl.kl_schedule == "constant":
        return f"{kl.kl_value:g}"
    return f"{kl.kl_min:g} to {kl.kl_max:g}"


def tune(config: TuningConfig) -> None:
    """Do what is left to do of all trials, and write what they chose."""
    run_all(cells(), config.runs)
    made = result(config.runs)
    write(made, config.out, __doc__)
    show(made)


def main() -> None:
    tune(tyro.cli(TuningConfig, description=__doc__))


if __name__ == "__main__":
    as_command("tuning", main)
