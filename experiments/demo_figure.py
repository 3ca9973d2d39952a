"""A demo run in one figure: first test questions, accuracy before and after, training curves.

Command: python -m experiments.demo_figure runs/demo-... [--out F.png]
Cost: a few seconds. The demo draws it too, into its run directory.
"""

import dataclasses
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tyro
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.experiment import as_command
from experiments.lab.scales import TASKS
from othink_jax.data.synthetic import generate
from othink_jax.files import read_json, read_json_lines
from othink_jax.report.curves import smooth, smoothing_window
from othink_jax.rewards import extract_answer

_SHOWN = 4  # test questions: the first ones, right or wrong
_BEFORE, _AFTER, _RIGHT, _WRONG = "#9aa3af", "#2b5c8a", "#1a7f37", "#b42318"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FigureConfig:
    """Input and output of the figure."""

    run: tyro.conf.Positional[Path]  # run directory of `make demo`
    out: Path | None = None  # figure.png in the run directory if not given


def evaluation_directory(run: Path, stage: str, task: str) -> Path:
    """Directory of the demo's evaluation of a stage (`before` or `after`) on a task."""
    return run / "evaluations" / f"{stage}-{task}"


def _draw_question(axes: Axes, task: str, before: dict[str, Any], after: dict[str, Any]) -> None:
    """A test image with its question, and the two answers to it."""
    index = int(before["id"].rpartition("-")[2])
    axes.imshow(generate(task, "test", index).images[0])
    axes.set_axis_off()
    axes.set_title("\n".join(textwrap.wrap(before["question"], 30)), loc="center", fontsize=9)
    for line, (stage, prediction) in enumerate((("before", before), ("after", after))):
        said = extract_answer(prediction["model_output"]) or "nothing"
        axes.text(
            0.5,
            -0.05 - 0.12 * line,
            f"{stage}: {said} {'✓' if prediction['correct'] else '✗'}",
            color=_RIGHT if prediction["correct"] else _WRONG,
            transform=axes.transAxes,
            ha="center",
            va="top",
        )
    axes.text(
        0.5,
        -0.29,
        f"truth: {before['ground_truth']}",
        transform=axes.transAxes,
        ha="center",
        va="top",
    )


def _draw_accuracies(axes: Axes, run: Path, trained_on: str) -> None:
    names = []
    for place, task in enumerate(TASKS):
        for shift, stage, colour in ((-0.19, "before", _BEFORE), (0.19, "after", _AFTER)):
            result = read_json(evaluation_directory(run, stage, task) / "result.json")
            accuracy, (low, high) = result["accuracy"], result["interval"]
            axes.bar(place + shift, accuracy, 0.36, color=colour, label=None if place else stage)
            axes.errorbar(
                place + shift,
                accuracy,
                [[accuracy - low], [high - accuracy]],
                color="#111827",
                capsize=3,
            )
            axes.text(place + shift, high + 0.02, f"{accuracy:.0%}", ha="center")
        names.append(f"{task}\n({'trained on' if task == trained_on else 'cross task'})")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylim(0, 1)
    axes.set_title("Accuracy on unseen questions")
    axes.legend(ncols=2, loc="upper right")


def _column(rows: list[dict[str, Any]], name: str) -> Float[np.ndarray, " n"]:
    return np.array([row[name] for row in rows], np.float64)


def _draw_curve(axes: Axes, rows: list[dict[str, Any]], name: str, label: str, colour: str) -> None:
    steps, values = _column(rows, "step"), _column(rows, name)
    axes.plot(steps, values, ".", color=colour, alpha=0.3, markersize=4, markeredgewidth=0)
    axes.plot(steps, smooth(values, smoothing_window(len(rows))), color=colour, label=label)


def draw_figure(run: Path, out: Path | None = None) -> Path:
    """Draw the figure of a demo run and return its path.

    Raises:
      UserError: a file of the run is missing or broken.
    """
    trained_on = read_json(run / "config.json")["config"]["data"]["task"]
    metrics = list(read_json_lines(run / "metrics.jsonl").values())
    answers = [
        read_json_lines(evaluation_directory(run, s, trained_on) / "predictions.jsonl").values()
        for s in ("before", "after")
    ]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=(1, 1.05), hspace=0.06)
        upper, lower = parts
        for axes, pair in zip(upper.subplots(1, _SHOWN), zip(*answers, strict=True), strict=False):
            _draw_question(axes, trained_on, *pair)
        bars, reward, kl = lower.subplots(1, 3)
        _draw_accuracies(bars, run, trained_on)
        _draw_curve(reward, metrics, "reward_accuracy", "accuracy", _AFTER)
        _draw_curve(reward, metrics, "reward_format", "format", "#c2661f")
        reward.set_ylim(0, 1.02)
        reward.set_title("Parts of the reward (Eq. 1)")
        reward.legend(loc="lower right")
        _draw_curve(kl, metrics, "kl", "KL to the base, nats per token", _AFTER)
        kl.plot(
            _column(metrics, "step"),
            _column(metrics, "beta"),
            color="#c2661f",
            label="its weight β",
        )
        kl.set_ylim(bottom=0)
        kl.set_title("KL (Eq. 5) and its weight (Eq. 3)")
        kl.legend(loc="upper left")
        for axes in (reward, kl):
            axes.set_xlabel("step")
        out = out or run / "figure.png"
        figure.savefig(out, dpi=150)
    return out


def main() -> None:
    arguments = tyro.cli(FigureConfig, description=__doc__)
    print(draw_figure(arguments.run, arguments.out))


if __name__ == "__main__":
    as_command("demo_figure", main)
