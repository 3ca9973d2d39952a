"""Settings of each method on each task, chosen on the validation split, the same care for all.

Claim: none; so that no method is compared at settings that suit another one.
Command: python -m experiments.tuning
Cost: three quarters of an hour on two CPU cores.
Shows: eight trials a method and task, each from two seeds that no experiment uses (whatever --seeds
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
from experiments.lab.scales import METHODS, PAPER_KL, TASKS, TITLES, Laptop, Method, Tuned
from experiments.lab.scores import Score, score_of
from experiments.lab.tables import percent, r1v_mean
from othink_jax.config import KLConfig, Task, to_dict
from othink_jax.report.table import Table

QUESTIONS = 500
_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
_RATES_OF_SFT = (3e-6, 1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 6e-4, 1e-3)  # SFT has no KL weight to try


def trials(method: Method, task: Task) -> list[Tuned]:
    """Trials of a method on a task, equally many for each method; the first wins a tie.

    The paper's KL weights for its two tasks are each tried on both, the task's own first.
    """
    if method == "sft":
        return [Tuned(learning_rate=rate) for rate in _RATES_OF_SFT]
    weights = [PAPER_KL[method, one] for one in sorted(TASKS, key=lambda one: one != task)]
    return [Tuned(learning_rate=rate, kl=kl) for kl, rate in itertools.product(weights, _RATES)]


class Tuning(LaptopExperiment):
    name: ClassVar[str] = "tuning"

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.seeds = (FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1)

    def _cell(self, method: Method, task: Task, trial: Tuned, seed: int) -> Cell:
        """A trial with one seed, tested only on the validation split."""
        scale = Laptop(tuned={(method, task): trial}, count=QUESTIONS)
        return scale.cell(method, task, seed).tested_on(scale.test(task, "validation"))

    def cells(self) -> Sequence[Cell]:
        return [
            self._cell(method, task, trial, seed)
            for method, task, seed in itertools.product(METHODS, TASKS, self.seeds)
            for trial in trials(method, task)
        ]

    def _scores(self, method: Method, task: Task, trial: Tuned) -> list[Score]:
        tried = [self._cell(method, task, trial, seed) for seed in self.seeds]
        return [score_of(self.options.root, one, one.tests[0]) for one in tried]

    def result(self) -> Result:
        rows, records, chosen = [], [], []
        for method, task in itertools.product(METHODS, TASKS):
            tried = [(self._scores(method, task, one), one) for one in trials(method, task)]
            best = max(tried, key=lambda one: _right(one[0]))[1]
            chosen.append(_record(method, task, best))
            for scores, trial in tried:
                strict = [score.accuracy for score in scores]
                r1v = [score.accuracy_r1v for score in scores]
                graded = {"accuracy": strict, "accuracy_r1v": r1v}
                records.append(_record(method, task, trial) | graded)
                rows.append(
                    [
                        TITLES[method],
                        task,
                        f"{trial.learning_rate:g}",
                        _weight(trial.kl),
                        *map(percent, strict),
                        percent(fmean(strict)),
                        r1v_mean(scores),
                        "chosen" if trial is best else "",
                    ]
                )
        table = Table(
            title="Trials on the validation split (accuracy in percent, greedy)",
            columns=["method", "task", "learning rate", "KL weight"]
            + [f"seed {seed}" for seed in self.seeds]
            + ["mean", "R1-V's grader, mean", ""],
            rows=rows,
            note=f"{QUESTIONS} questions; {Laptop(tuned={}).steps} updates of 8 prompts.",
        )
        return Result(tables=[table], numbers={"chosen": chosen, "trials": records})


def _right(scores: Sequence[Score]) -> int:
    """Number of answers that the strict grader calls right: an integer, so that ties are exact."""
    return sum(sum(score.correct) for score in scores)


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
