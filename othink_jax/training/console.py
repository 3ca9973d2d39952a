"""Live monitoring of a run: a progress bar, TensorBoard event files, Weights & Biases."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from othink_jax.config import TrainingConfig
from othink_jax.files import is_cloud
from othink_jax.markup import cell_in_markdown
from othink_jax.training.events import EventFile
from othink_jax.training.samples import Samples
from othink_jax.training.tracking import Tracker

# Metrics of the progress line with their formats, by kind of run.
_COLUMNS = {
    "grpo": {
        "reward": "reward {:.2f}",
        "kl": "KL {:.3f}",
        "beta": "beta {:.3f}",
        "completion_length": "len {:.0f}",
        "tokens_per_second": "{:.0f} tok/s",
    },
    "sft": {
        "loss": "loss {:.3f}",
        "grad_norm": "grad {:.2f}",
        "learning_rate": "lr {:.1e}",
        "tokens_per_second": "{:.0f} tok/s",
    },
}


def summary(row: Mapping[str, Any], kind: str, further: Sequence[str] = ()) -> str:
    """Progress line of a step: its main metrics.

    Args:
      row: row of metrics.jsonl.
      kind: kind of run.
      further: additional metrics, shown after the first one.
    """
    first, *others = _COLUMNS[kind].items()
    columns = dict([first, *((name, f"{name} {{:.2f}}") for name in further), *others])
    return " ".join(form.format(row[name]) for name, form in columns.items() if name in row)


class Monitor:
    """Shows rows and samples of a run in the terminal, in TensorBoard and in Weights & Biases.

    TensorBoard files are written if the extra `tensorboard` is installed and the run directory is
    on a disk, not in a bucket. Only one process of a run shows anything.
    """

    def __init__(
        self,
        directory: Path,
        config: TrainingConfig,
        *,
        total: int,
        done: int,
        further: Sequence[str] = (),
        shown: bool = True,
    ) -> None:
        """Start monitoring a run.

        Args:
          directory: run directory.
          config: settings of the run.
          total: total number of steps.
          done: steps already done.
          further: additional metrics of the progress line.
          shown: whether this process shows anything.
        """
        self._console = Console(stderr=True, quiet=not shown)
        self._progress = Progress(
            BarColumn(bar_width=8),  # the whole line fits into 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task(config.kind, total=total, completed=done, figures="")
        self._kind, self._total, self._further = config.kind, total, further
        self._events = self._open_events(directory, config, done) if shown else None
        self._tracker: Tracker | None = None
        if config.wandb and shown:
            self._tracker = Tracker(directory, config, say=self.say)

    def _open_events(self, directory: Path, config: TrainingConfig, done: int) -> EventFile | None:
        if is_cloud(directory):
            return None
        try:
            events = EventFile.of_now(directory / "tensorboard")
        except ImportError:
            return None
        events.begin(done + 1)
        labels = {"notes": config.notes, "tags": ", ".join(config.tags)}
        lines = [f"| {name} | {cell_in_markdown(text)} |" for name, text in labels.items() if text]
        if lines:
            events.add_text("run", "\n".join(["| | |", "|---|---|", *lines]), done)
        return events

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()
        if self._events is not None:
            self._events.close()
        if self._tracker is not None:
            self._tracker.close(failed=error is not None)

    def say(self, line: str) -> None:
        """Print a line as it is, unwrapped, so that a command in it can be pasted."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def stop(self) -> None:
        """End the progress bar; later lines are printed below it."""
        self._progress.stop()

    def show(self, row: Mapping[str, Any], samples: Samples | None = None) -> None:
        """Show a step's row of metrics, and its samples; samples of another step are left out."""
        step = row["step"]
        figures = summary(row, self._kind, self._further)
        self._progress.update(self._task, completed=step, figures=figures)
        every = max(1, self._total // 20)
        if not self._console.is_terminal and (step % every == 0 or step == self._total):
            self.say(f"step {step}/{self._total}  {figures}")
        numbers = {
            name: value
            for name, value in row.items()
            if name != "step" and not isinstance(value, str)
        }
        for watcher in (self._events, self._tracker):
            if watcher is not None:
                watcher.add(numbers, step)
                if samples is not None and samples.step == step:
                    watcher.add_samples(samples)
