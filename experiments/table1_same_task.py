"""Table 1: base, SFT, GRPO and GRPO-D on the task that they were trained on.

Claim (paper): SFT beats GRPO with a constant KL weight; GRPO-D beats both, on both tasks.
Command: python -m experiments.table1_same_task [--seeds 3] [--scale paper ...]
Cost: laptop, 5 seeds: half an hour on two CPU cores; paper: not measured.
Shows: accuracy of each method (mean over seeds, its interval, every seed) by both graders, beside
    the published one; McNemar's tests on the same questions; all tests, sampled ones and other
    scenes among them; how the models answer; what the choice of grader does to a score.

Published (%), for base, SFT, GRPO, GRPO-D:
    2B: counting 42.50, 68.50, 64.50, 76.50; geometry 15.52, 32.49, 30.24, 34.35
    7B: counting 76.00, 74.50, 76.50, 78.00; geometry 33.16, 43.50, 42.04, 45.49
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.lab.cells import Cell
from experiments.lab.curves import draw_dots
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scales import METHODS, TASKS, TITLES
from experiments.lab.scores import Score, compare, metrics_of, predictions_of, score_of, tenths
from experiments.lab.tables import OVER_CONTENTS, OVER_SEEDS, percent, published, with_interval
from experiments.pretraining_corpus import QUICK_LOOK
from othink_jax.config import GRPOConfig, Task
from othink_jax.report.table import Table
from othink_jax.statistics import mean_interval

# Of base, SFT, GRPO, GRPO-D.
PUBLISHED = {
    ("2B", "counting"): (0.4250, 0.6850, 0.6450, 0.7650),
    ("2B", "geometry"): (0.1552, 0.3249, 0.3024, 0.3435),
    ("7B", "counting"): (0.7600, 0.7450, 0.7650, 0.7800),
    ("7B", "geometry"): (0.3316, 0.4350, 0.4204, 0.4549),
}
PAIRS = (("grpo", "sft"), ("grpo", "grpo_d"), ("sft", "grpo_d"))
OVER_BASE = tuple(("base", method) for method in METHODS)


class SameTask(Experiment):
    name: ClassVar[str] = "table1_same_task"

    def cells(self) -> Sequence[Cell]:
        trained = [
            self.scale.cell(method, task, seed)
            for task, seed, method in itertools.product(TASKS, self.seeds, METHODS)
        ]
        return [self.scale.base(), *trained]

    def result(self) -> Result:
        greedy = {task: self.scores_of(task, self.scale.test(task)) for task in TASKS}
        tables = [accuracy_table(greedy, self.options.paper.size)]
        tables += [comparison_table(greedy[task], task) for task in TASKS]
        tables += [self.all_tests(), self.manner(), grader_table(greedy)]
        numbers: dict[str, Any] = {
            task: {
                method: [
                    {"accuracy": s.accuracy, "accuracy_r1v": s.accuracy_r1v, "format": s.format}
                    for s in scores
                ]
                for method, scores in greedy[task].items()
            }
            for task in TASKS
        }
        return Result(tables=tables, figure=every_seed(greedy), numbers=numbers)

    def _models(self) -> Iterator[tuple[str, str, list[Cell]]]:
        """Method, task trained on, and a cell a seed; the base first."""
        yield TITLES["base"], "", [self.scale.base()]
        for task, method in itertools.product(TASKS, METHODS):
            trained = [self.scale.cell(method, task, seed) for seed in self.seeds]
            yield TITLES[method], task, trained

    def manner(self) -> Table:
        """How each model answers, and how far training took it from the base."""
        root, rows = self.options.root, []
        for title, trained_on, cells in self._models():
            row = [title, trained_on]
            for task in TASKS:
                test = self.scale.test(task)
                scores = [score_of(root, cell, test) for cell in cells]
                quick = [quick_looks(predictions_of(root, cell, test)) for cell in cells]
                row.append(percent(fmean(score.format for score in scores)))
                row.append(f"{fmean(score.tokens for score in scores):.1f}")
                row.append(" ".join(f"{100 * share:.0f}" for share in quick))
            sampled = isinstance(cells[0].train, GRPOConfig)
            runs = [metrics_of(root, cell) for cell in cells] if sampled else []
            rows.append([*row, f"{tenths(runs, 'kl')[-1]:.2g}" if sampled else ""])
        columns = ["method", "trained on"]
        for task in TASKS:
            columns += [f"{task}: right format", f"{task}: tokens"]
            columns.append(f"{task}: quick looks, every seed")
        return Table(
            title="How they answer (greedy; % of answers; mean over seeds)",
            columns=[*columns, "KL"],
            rows=rows,
            note="Quick looks: the hasty style that the embedded model was taught. KL to the base,"
            " nats a token: of samples in the last tenth of the training.",
        )

    def all_tests(self) -> Table:
        """Every model on every test: the other task, other scenes, and sampled answers too."""
        tests = self.scale.tests()
        rows = []
        for title, trained_on, cells in self._models():
            row = [title, trained_on]
            for test in tests:
                row.append(summary([score_of(self.options.root, cell, test) for cell in cells]))
            rows.append(row)
        titles = [
            f"{test.data.name}, {'greedy' if test.sampling.temperature == 0 else 'sampled'}"
            for test in tests
        ]
        return Table(
            title="All tests (accuracy in %)",
            columns=["method", "trained on", *titles],
            rows=rows,
            note="Sampled: one answer a question, at temperature 1. test-ood: unknown shapes."
            f" {OVER_SEEDS}; {OVER_CONTENTS}.",
        )


def quick_looks(predictions: Sequence[Mapping[str, Any]]) -> float:
    """The share of answers in the embedded model's hasty style."""
    return fmean(QUICK_LOOK in row["model_output"] for row in predictions)


def summary(scores: Sequence[Score]) -> str:
    """Mean and interval: over seeds, or of the test set where there is one model only."""
    values = [score.accuracy for score in scores]
    if len(values) == 1:
        return with_interval(values[0], *scores[0].interval)
    return with_interval(*mean_interval(values))


def r1v_summary(scores: Sequence[Score]) -> str:
    """As `summary`, by R1-V's grader, with which the paper's numbers were made."""
    values = [score.accuracy_r1v for score in scores]
    return percent(values[0]) if len(values) == 1 else with_interval(*mean_interval(values))


def accuracy_table(scores: dict[Task, dict[str, list[Score]]], size: str) -> Table:
    """Ours beside the published numbers of the model of this size."""
    rows = []
    for place, method in enumerate(("base", *METHODS)):
        row = [TITLES[method]]
        for task, by_method in scores.items():
            row += [summary(by_method[method]), r1v_summary(by_method[method])]
            row += [published(PUBLISHED[size, task][place])]
            row.append(" ".join(percent(score.accuracy) for score in by_method[method]))
        rows.append(row)
    columns = ["method"]
    for task in scores:
        columns += [task, f"{task}, R1-V's grader", f"{task}, paper ({size})"]
        columns.append(f"{task}, every seed")
    return Table(
        title="Accuracy on the task that was trained on (%, greedy, strict grader where not said)",
        columns=columns,
        rows=rows,
        note=f"{OVER_SEEDS}; {OVER_CONTENTS}.",
    )


def comparison_table(
    scores: Mapping[str, Sequence[Score]],
    task: str,
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> Table:
    """Methods against each other on the same questions."""
    rows = [
        [
            f"{TITLES.get(one.second, one.second)} - {TITLES.get(one.first, one.first)}",
            with_interval(*mean_interval(one.differences)),
            " ".join(f"{round(100 * difference, 1) + 0.0:+.1f}" for difference in one.differences),
            one.verdicts,
            " ".join(f"{p:.2g}" for p in one.p_values),
        ]
        for one in compare(scores, pairs)
    ]
    return Table(
        title=f"Differences on {task}",
        columns=["methods", "points", "every seed", "seeds with p < 0.05", "p of every seed"],
        rows=rows,
        note=f"{OVER_SEEDS}. p: McNemar's test, questions that show the same thing taken together,"
        " corrected for all of this table (Holm).",
    )


def grader_table(scores: dict[Task, dict[str, list[Score]]]) -> Table:
    """The same answers, graded in two ways."""
    rows = [
        [
            TITLES[method],
            task,
            percent(sum(s.accuracy for s in found) / len(found)),
            percent(sum(s.accuracy_r1v for s in found) / len(found)),
            percent(sum(s.format for s in found) / len(found)),
        ]
        for task, by_method in scores.items()
        for method, found in by_method.items()
    ]
    return Table(
        title="What the grader does to a score (%, mean over seeds)",
        columns=["method", "task", "strict", "R1-V's", "right format"],
        rows=rows,
    )


def every_seed(scores: dict[Task, dict[str, list[Score]]]) -> Figure:
    """A dot a seed, a line at the mean."""
    figure, panels = plt.subplots(1, len(scores), figsize=(8, 3.2), layout="constrained")
    for panel, (task, by_method) in zip(panels, scores.items(), strict=True):
        found = by_method.items()
        draw_dots(panel, {TITLES[name]: [s.accuracy for s in scores] for name, scores in found})
        panel.set(title=task, ylabel="accuracy, %", ylim=(0, 100))
    return figure


if __name__ == "__main__":
    main(SameTask, __doc__)
