"""The objectives of `rl.OBJECTIVES` under one budget: which of them makes a better policy?

Claim (their papers): each beats what came before it.
Command: python -m experiments.objectives
Cost: estimated from the steps of one cell, not measured: two to three hours on two CPU cores.
Shows: on counting, greedy and sampled accuracy of GRPO with every objective, all else equal:
    samples, two updates per rollout (with one, the objectives that clip have the same gradient),
    KL weight, reduction. The validation split chose the learning rate of each, in equally many
    trials with separate seeds. Paired tests against PPO's clip.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import ClassVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_dots
from experiments.lab.experiment import FIRST_TUNING_SEED, Result, main
from experiments.lab.laptop import LaptopExperiment
from experiments.lab.runner import run_all
from experiments.lab.scores import Score, metrics_of, records, tenths
from experiments.lab.tables import OVER_SEEDS, STRICT, both, both_columns, every_seed, percent
from experiments.table1_same_task import comparison_table
from othink_jax import rl
from othink_jax.config import Task
from othink_jax.report.table import Table

TASK: Task = "counting"
INNER_UPDATES = 2  # per rollout
RATES = (1e-5, 3e-5, 1e-4)
QUESTIONS = 500  # of the validation split
TUNING_SEEDS = (FIRST_TUNING_SEED, FIRST_TUNING_SEED + 1)
FIRST = "ppo"  # the others are compared with it


class Objectives(LaptopExperiment):
    name: ClassVar[str] = "objectives"

    def _cell(self, objective: str, rate: float, seed: int) -> Cell:
        """A cell with these settings; all others are those tuned for GRPO."""
        settings = {"objective": objective, "learning_rate": rate, "inner_updates": INNER_UPDATES}
        return self.laptop.cell("grpo", TASK, seed, **settings)

    def _trial(self, objective: str, rate: float, seed: int) -> Cell:
        scale = dataclasses.replace(self.laptop, count=QUESTIONS)
        return self._cell(objective, rate, seed).tested_on(scale.test(TASK, "validation"))

    def trials(self) -> list[Cell]:
        """All trials that the learning rates are chosen from."""
        return [self._trial(*one) for one in itertools.product(rl.OBJECTIVES, RATES, TUNING_SEEDS)]

    def _trial_scores(self, objective: str) -> dict[float, list[Score]]:
        tried = {
            rate: [self._trial(objective, rate, seed) for seed in TUNING_SEEDS] for rate in RATES
        }
        (test,) = tried[RATES[0]][0].tests
        return self.scores_of(tried, test)

    @functools.cached_property
    def rates(self) -> dict[str, float]:
        """Learning rate per objective: most right answers in its trials; the lowest on a tie."""

        def best(scores: Mapping[float, Sequence[Score]]) -> float:
            return max(RATES, key=lambda rate: sum(sum(one.correct) for one in scores[rate]))

        return {objective: best(self._trial_scores(objective)) for objective in rl.OBJECTIVES}

    def _models(self) -> dict[str, list[Cell]]:
        """Cells of the base and of each objective, one per seed."""
        tests = self.both_tests(TASK)
        trained = {
            objective: [self._cell(objective, rate, seed).tested_on(*tests) for seed in self.seeds]
            for objective, rate in self.rates.items()
        }
        return {"base": [self.laptop.base().tested_on(*tests)], **trained}

    def cells(self) -> Sequence[Cell]:
        return [cell for cells in self._models().values() for cell in cells]

    def run(self) -> Result:
        run_all(self.trials(), self.options.root, one_a_core=True)
        return super().run()

    def result(self) -> Result:
        models = self._models()
        greedy, sampled = (self.scores_of(models, test) for test in self.both_tests(TASK))
        table = Table(
            title=f"GRPO on {TASK} by its objective (%, {STRICT})",
            columns=["objective", "learning rate", *both_columns(), "clipped", "KL"],
            rows=[
                [
                    label,
                    f"{self.rates[label]:g}" if label in self.rates else "",
                    *both(greedy[label], sampled[label]),
                    *self._end(models[label]),
                ]
                for label in models
            ],
            note=f"{INNER_UPDATES} updates from each of {self.laptop.steps} rollouts. Clipped:"
            " share of tokens without a gradient (%); KL: nats a token; both of the last tenth"
            f" of the training, means. {OVER_SEEDS}; of the base, over what the questions show.",
        )
        pairs = [(FIRST, other) for other in rl.OBJECTIVES if other != FIRST]
        tables = [table, comparison_table(greedy, f"{TASK}, greedy", pairs)]
        tables += [comparison_table(sampled, f"{TASK}, sampled", pairs), self._trial_table()]
        numbers = {
            "rates": self.rates,
            "greedy": records(greedy),
            "sampled": records(sampled),
        }
        return Result(tables=tables, figure=draw(greedy), numbers=numbers)

    def _end(self, cells: Sequence[Cell]) -> list[str]:
        """Clipped tokens and KL at the end of the training; empty for the base."""
        if cells[0].train is None:
            return ["", ""]
        runs = [metrics_of(self.options.root, cell) for cell in cells]
        clipped, kl = (tenths(runs, name)[-1] for name in ("clip_fraction", "kl"))
        return [percent(clipped), f"{kl:.2g}"]

    def _trial_table(self) -> Table:
        rows = []
        for objective in rl.OBJECTIVES:
            for rate, scores in self._trial_scores(objective).items():
                mean = percent(fmean(score.accuracy for score in scores))
                chosen = "chosen" if rate == self.rates[objective] else ""
                rows.append([objective, f"{rate:g}", every_seed(scores), mean, chosen])
        return Table(
            title="Learning rates on the validation split (accuracy in %, greedy)",
            columns=["objective", "learning rate", "every seed", "mean", ""],
            rows=rows,
            note=f"{QUESTIONS} questions; seeds {' and '.join(map(str, TUNING_SEEDS))}.",
        )


def draw(scores: Mapping[str, Sequence[Score]]) -> Figure:
    """Accuracy: one column per objective, one dot per seed."""
    figure, panel = plt.subplots(figsize=(10, 3.4), layout="constrained")
    shown = {name: [score.accuracy for score in scores[name]] for name in rl.OBJECTIVES}
    draw_dots(panel, shown)
    panel.axhline(100 * scores["base"][0].accuracy, color="black", linewidth=0.8, linestyle=":")
    panel.set(ylabel="accuracy, %")
    panel.tick_params(axis="x", rotation=30)
    return figure


if __name__ == "__main__":
    main(Objectives, __doc__)
