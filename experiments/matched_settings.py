"""GRPO at GRPO-D's settings: is it the schedule that tells them apart, or what was tuned?

Claim (paper): the KL weight that moves is what makes GRPO-D better.
Command: python -m experiments.matched_settings
Cost: laptop, 5 seeds: five minutes on two CPU cores, beside table 1.
Shows: GRPO as tuned, GRPO with GRPO-D's learning rate and, all along, the KL weight that GRPO-D
    begins with, and GRPO-D; on the task trained on, every seed, and paired tests.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import ClassVar

from experiments.lab.cells import Cell
from experiments.lab.experiment import Result, main
from experiments.lab.laptop import LaptopExperiment
from experiments.lab.scales import TASKS, Laptop, Tuned, first_kl
from experiments.lab.scores import records
from experiments.lab.tables import OVER_SEEDS, STRICT, both, both_columns
from experiments.table1_same_task import comparison_table
from othink_jax.config import Task
from othink_jax.report.table import Table

PAIRS = list(itertools.combinations(("GRPO, as tuned", "GRPO, matched", "GRPO-D"), 2))


class MatchedSettings(LaptopExperiment):
    name: ClassVar[str] = "matched_settings"

    def _matched(self, task: Task) -> Laptop:
        """The laptop's settings, with GRPO at GRPO-D's settings except for the schedule."""
        tuned = self.laptop.tuned["grpo_d", task]
        assert tuned.kl is not None
        matched = Tuned(learning_rate=tuned.learning_rate, kl=first_kl(tuned.kl))
        return dataclasses.replace(self.laptop, tuned={("grpo", task): matched})

    def _models(self, task: Task) -> dict[str, list[Cell]]:
        """Cells of each method, one per seed."""
        matched, tests = self._matched(task), self.both_tests(task)
        return {
            "GRPO, as tuned": [self.laptop.cell("grpo", task, seed) for seed in self.seeds],
            "GRPO, matched": [
                matched.cell("grpo", task, seed).tested_on(*tests) for seed in self.seeds
            ],
            "GRPO-D": [self.laptop.cell("grpo_d", task, seed) for seed in self.seeds],
        }

    def cells(self) -> Sequence[Cell]:
        return [cell for task in TASKS for cells in self._models(task).values() for cell in cells]

    def result(self) -> Result:
        rows, comparisons, numbers = [], [], []
        for task in TASKS:
            models = self._models(task)
            greedy, sampled = (self.scores_of(models, test) for test in self.both_tests(task))
            rows += [[task, label, *both(greedy[label], sampled[label])] for label in models]
            comparisons.append(comparison_table(greedy, f"{task}, greedy", PAIRS))
            comparisons.append(comparison_table(sampled, f"{task}, sampled", PAIRS))
            graded = {"greedy": records(greedy), "sampled": records(sampled)}
            numbers.append({"task": task, **graded})
        table = Table(
            title=f"GRPO at GRPO-D's settings (%, {STRICT})",
            columns=["task", "method", *both_columns()],
            rows=rows,
            note=f"Matched: GRPO-D's learning rate, and the weight it begins with. {OVER_SEEDS}.",
        )
        return Result(tables=[table, *comparisons], numbers={"scores": numbers})


if __name__ == "__main__":
    main(MatchedSettings, __doc__)
