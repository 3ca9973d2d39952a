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
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, ClassVar

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from experiments.lab.cells import Cell, decoding
from experiments.lab.curves import draw_dots
from experiments.lab.experiment import Experiment, Result, main
from experiments.lab.scales import METHODS, TASKS, TITLES
from experiments.lab.scores import (
    Score,
    compare,
    metrics_of,
    predictions_of,
    records,
    tenths,
)
from experiments.lab.tables import (
    OVER_CONTENTS,
    OVER_SEEDS,
    R1V,
    STRICT,
    every_seed,
    over_seeds,
    percent,
    published,
    r1v_mean,
    summary,
)
from experiments.pretraining_corpus import QUICK_LOOK
from othink_jax.config import EvaluateConfig, GRPOConfig, Task
from othink_jax.report.table import Table

# Published accuracy of base, SFT, GRPO, GRPO-D.
PUBLISHED = {
    ("2B", "counting"): (0.4250, 0.6850, 0.6450, 0.7650),
    ("2B", "geometry"): (0.1552, 0.3249, 0.3024, 0.3435),
    ("7B", "counting"): (0.7600, 0.7450, 0.7650, 0.7800),
    ("7B", "geometry"): (0.3316, 0.4350, 0.4204, 0.4549),
}
PAIRS = (("grpo", "sft"), ("grpo", "grpo_d"), ("sft", "grpo_d"))
# A method and the task it was trained on; "" for the base.
Model = tuple[str, str]
AllScores = Mapping[EvaluateConfig, Mapping[Model, list[Score]]]
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
        everything = {test: self.scores_of(self._all_models(), test) for test in self.scale.tests()}
        greedy = {task: _trained_on(task, everything[self.scale.test(task)]) for task in TASKS}
        tables = [accuracy_table(greedy, self.options.paper.size)]
        tables += [comparison_table(greedy[task], task) for task in TASKS]
        tables += [all_tests(everything), self.manner(everything), grader_table(greedy)]
        numbers = [
            {
                "test": test.data.name,
                "decoding": decoding(test),
                "method": method,
                "trained_on": task or None,
                "seeds": found,
            }
            for test, scores in everything.items()
            for (method, task), found in records(scores).items()
        ]
        return Result(tables=tables, figure=draw(greedy), numbers={"scores": numbers})

    def _all_models(self) -> dict[Model, list[Cell]]:
        """The cells of every model, one per seed; the base first."""
        found = {("base", ""): [self.scale.base()]}
        for task, method in itertools.product(TASKS, METHODS):
            found[method, task] = [self.scale.cell(method, task, seed) for seed in self.seeds]
        return found

    def manner(self, scores: AllScores) -> Table:
        """Format, length and style of each model's answers, and its KL to the base."""
        rows = []
        for (method, trained_on), cells in self._all_models().items():
            row = {"method": TITLES[method], "trained on": trained_on}
            for task in TASKS:
                test = self.scale.test(task)
                told = self._manner(cells, test, scores[test][method, trained_on])
                row |= {f"{task}: {what}": text for what, text in told.items()}
            sampled = isinstance(cells[0].train, GRPOConfig)
            runs = [metrics_of(self.options.root, cell) for cell in cells] if sampled else []
            row["KL"] = f"{tenths(runs, 'kl')[-1]:.2g}" if sampled else ""
            rows.append(row)
        note = "KL to the base, nats a token: of samples in the last tenth of the training."
        if self._has_quick_looks:
            note = f"Quick looks: the hasty style that the embedded model was taught. {note}"
        return Table(
            title="How they answer (greedy; % of answers; mean over seeds)",
            columns=list(rows[0]),
            rows=[list(row.values()) for row in rows],
            note=note,
        )

    @property
    def _has_quick_looks(self) -> bool:
        """Whether the models start from the embedded one, which was taught quick looks."""
        return self.options.scale == "laptop"

    def _manner(
        self, cells: Sequence[Cell], test: EvaluateConfig, scores: Sequence[Score]
    ) -> dict[str, str]:
        """Table cells about one model's answers to a test, by column."""
        shown = {
            "right format": percent(fmean(score.format for score in scores)),
            "tokens": f"{fmean(score.tokens for score in scores):.1f}",
        }
        if self._has_quick_looks:
            root = self.options.root
            quick = [quick_looks(predictions_of(root, cell, test)) for cell in cells]
            shown["quick looks, every seed"] = " ".join(f"{100 * share:.0f}" for share in quick)
        return shown


def quick_looks(predictions: Sequence[Mapping[str, Any]]) -> float:
    """The share of answers in the embedded model's hasty style."""
    return fmean(QUICK_LOOK in row["model_output"] for row in predictions)


def _trained_on(task: Task, scores: Mapping[Model, list[Score]]) -> dict[str, list[Score]]:
    """Scores of the base and of the methods trained on a task, by method."""
    return {"base": scores["base", ""], **{method: scores[method, task] for method in METHODS}}


def all_tests(scores: AllScores) -> Table:
    """Every model on every test, including the other task, other scenes and sampled answers."""
    rows = []
    for test, by_model in scores.items():
        for (method, trained_on), found in by_model.items():
            model = [test.data.name, decoding(test), TITLES[method], trained_on]
            rows.append([*model, summary(found), r1v_mean(found), every_seed(found)])
    return Table(
        title=f"All tests (accuracy in %, {STRICT})",
        columns=["test", "decoding", "method", "trained on", "accuracy", R1V, "every seed"],
        rows=rows,
        note="Sampled: one answer a question, at temperature 1. test-ood: unknown shapes."
        f" {OVER_SEEDS}; {OVER_CONTENTS}.",
    )


def accuracy_table(scores: dict[Task, dict[str, list[Score]]], size: str) -> Table:
    """Our accuracy beside the published numbers of the model of this size."""
    rows = []
    for place, method in enumerate(("base", *METHODS)):
        row = [TITLES[method]]
        for task, by_method in scores.items():
            found = by_method[method]
            row += [summary(found), over_seeds([score.accuracy_r1v for score in found])]
            row += [published(PUBLISHED[size, task][place]), every_seed(found)]
        rows.append(row)
    columns = ["method"]
    for task in scores:
        columns += [task, f"{task}, {R1V}", f"{task}, paper ({size})"]
        columns.append(f"{task}, every seed")
    return Table(
        title=f"Accuracy on the task that was trained on (%, greedy, {STRICT})",
        columns=columns,
        rows=rows,
        note=f"{OVER_SEEDS}; {OVER_CONTENTS}.",
    )


def comparison_table(
    scores: Mapping[str, Sequence[Score]],
    task: str,
    pairs: Sequence[tuple[str, str]] = PAIRS,
) -> Table:
    """Pairs of methods compared on the same questions."""
    rows = [
        [
            f"{TITLES.get(one.second, one.second)} - {TITLES.get(one.first, one.first)}",
            over_seeds(one.differences),
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
    """The same answers, graded strictly and by R1-V's grader."""
    rows = [
        [
            TITLES[method],
            task,
            percent(fmean(score.accuracy for score in found)),
            r1v_mean(found),
            percent(fmean(score.format for score in found)),
        ]
        for task, by_method in scores.items()
        for method, found in by_method.items()
    ]
    return Table(
        title="What the grader does to a score (%, mean over seeds)",
        columns=["method", "task", "strict", "R1-V's", "right format"],
        rows=rows,
    )


def draw(scores: dict[Task, dict[str, list[Score]]]) -> Figure:
    """Accuracy by method, one panel per task: a dot per seed, a line at the mean."""
    figure, panels = plt.subplots(1, len(scores), figsize=(8, 3.2), layout="constrained")
    for panel, (task, by_method) in zip(panels, scores.items(), strict=True):
        found = by_method.items()
        draw_dots(panel, {TITLES[name]: [s.accuracy for s in scores] for name, scores in found})
        panel.set(title=task, ylabel="accuracy, %", ylim=(0, 100))
    return figure


if __name__ == "__main__":
    main(SameTask, __doc__)
