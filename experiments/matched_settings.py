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
from experiments.lab.tables import OVER_SEEDS, R1V, STRICT, every_seed, r1v_mean, summary
from experiments.table1_same_task import comparison_table
from othink_jax.config import EvaluateConfig, Task
from othink_jax.report.table import Table

PAIRS = list(itertools.combinations(("GRPO, as tuned", "GRPO, matched", "GRPO-D"), 2))


class MatchedSettings(LaptopExperiment):
    name: ClassVar[str] = "matched_settings"

    def _matched(self, task: Task) -> Laptop:
        """With GRPO at GRPO-D's settings but for the schedule."""
        tuned = self.laptop.tuned["grpo_d", task]
        assert tuned.kl is not None
        matched = Tuned(learning_rate=tuned.learning_rate, kl=first_kl(tuned.kl))
        return dataclasses.replace(self.laptop, tuned={("grpo", task): matched})

    def _tests(self, task: Task) -> list[EvaluateConfig]:
        """Greedy, and sampled."""
        return [self.laptop.test(task, temperature=value) for value in (0.0, 1.0)]

    def _models(self, task: Task) -> dict[str, list[Cell]]:
        """A cell a seed."""
        matched, tests = self._matched(task), self._tests(task)
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
            greedy, sampled = (self.scores_of(models, test) for test in self._tests(task))
            for label in models:
                row = [task, label]
                for found in (greedy[label], sampled[label]):
                    row += [summary(found), r1v_mean(found), every_seed(found)]
                rows.append(row)
            comparisons.append(comparison_table(greedy, f"{task}, greedy", PAIRS))
            comparisons.append(comparison_table(sampled, f"{task}, sampled", PAIRS))
            graded = {"greedy": records(greedy), "sampled": records(sampled)}
            numbers.append({"task": task, **graded})
        columns = ["task", "method"]
        for decoding in ("greedy", "sampled"):
            columns += [decoding, f"{decoding}, {R1V}", f"{decoding}, every seed"]
        table = Table(
            title=f"GRPO at GRPO-D's settings (%, {STRICT})",
            columns=columns,
            rows=rows,
            note=f"Matched: GRPO-D's learning rate, and the weight it begins with. {OVER_SEEDS}.",
        )
        return Result(tables=[table, *comparisons], numbers={"scores": numbers})


if __name__ == "__main__":
    main(MatchedSettings, __doc__)
