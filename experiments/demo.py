"""The main workflow from end to end, on the embedded model.

Claim: GRPO-D on synthetic counting scenes makes the embedded Qwen2-VL a better counter.
Command: make demo   (or: python -m experiments.demo)
Cost: minutes on two CPU cores; see experiments/README.md.
Shows: accuracy before and after on counting (same task) and geometry (cross task), on test
    questions whose content no training example had, and a report of the run.
"""

import dataclasses
import datetime
import json
import shlex
from pathlib import Path
from typing import Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from experiments.demo_figure import draw_figure, evaluation_directory
from experiments.lab.scales import TASKS
from othink_jax import cli

_STAGES = ("before", "after")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The demo's settings; everything else is the preset `tiny`."""

    task: Literal["counting", "geometry"] = "counting"  # task to train on
    steps: int = 150  # updates
    seed: int = 42
    count: int = 1000  # test questions per task
    out: Path | None = None  # run directory; a new one under runs/ if not given


def run_command(console: Console, *words: str) -> None:
    """Show a command and run it, as a user would in a shell."""
    console.print(f"\n$ othink-jax {shlex.join(words)}", style="bold", markup=False, soft_wrap=True)
    cli.run(words)


def evaluate_both(console: Console, model: str, run: Path, stage: str, config: DemoConfig) -> None:
    """Evaluate a model on both tasks, into the run's directory."""
    for task in TASKS:
        run_command(
            console,
            *("evaluate", model, "--preset", "tiny", "--task", task, "--split", "test"),
            *("--count", str(config.count), "--stage", stage),
            *("--out", str(evaluation_directory(run, stage, task))),
        )


def results_table(run: Path, config: DemoConfig) -> Table:
    """Accuracy before and after, with 95% intervals."""
    table = Table(title="Accuracy on unseen test questions (95% interval)")
    for column in ("test task", "", *_STAGES):
        table.add_column(column)
    for task in TASKS:
        cells = []
        for stage in _STAGES:
            path = evaluation_directory(run, stage, task) / "result.json"
            result: dict[str, Any] = json.loads(path.read_text())
            low, high = result["interval"]
            cells.append(f"{result['accuracy']:.1%} ({low:.1%} to {high:.1%})")
        table.add_row(task, "trained on" if task == config.task else "cross task", *cells)
    return table


def main() -> None:
    config = tyro.cli(DemoConfig, description=__doc__)
    console = Console()
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    run = config.out or Path("runs") / f"demo-{stamp}"
    evaluate_both(console, "tiny", run, "before", config)
    run_command(
        console,
        *("grpo", "--model", "tiny", "--task", config.task, "--steps", str(config.steps)),
        *("--seed", str(config.seed), "--out", str(run)),
    )
    evaluate_both(console, str(run), run, "after", config)
    console.print(results_table(run, config))
    run_command(console, "report", str(run))
    print(draw_figure(run))


if __name__ == "__main__":
    main()
