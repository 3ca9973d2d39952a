"""Weights & Biases tracking: rows and samples of a run, in one W&B run however often it resumes."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from othink_jax.config import TrainingConfig
from othink_jax.errors import first_line
from othink_jax.files import is_cloud
from othink_jax.training.samples import Samples

_ID = "wandb_id.txt"  # in the run directory: id of its W&B run


class Tracker:
    """A Weights & Biases run; needs the extra `wandb`.

    A failure of W&B (network, missing login) is reported once and does not end the training run.
    """

    def __init__(
        self, directory: Path, config: TrainingConfig, *, say: Callable[[str], None]
    ) -> None:
        """Start a W&B run, or continue the one of this directory.

        Args:
          directory: run directory.
          config: settings of the run.
          say: prints a line to the user.
        """
        self._directory, self._say, self._failed = directory, say, False
        self._run: Any = None
        self._first = 0
        with self._forgiving():
            self._open(config)

    def _open(self, config: TrainingConfig) -> None:
        import wandb

        file = self._directory / _ID
        known = file.read_text(encoding="utf-8").strip() if file.is_file() else None
        self._run = wandb.init(
            project="othink_jax",
            name=self._directory.name,
            dir=None if is_cloud(self._directory) else str(self._directory),
            id=known,
            resume="allow" if known else None,
            # None keeps the notes and tags that were written on the W&B page.
            notes=config.notes or None,
            tags=list(config.tags) or None,
        )
        if known is None:
            file.write_text(self._run.id, encoding="utf-8")
        # A killed run repeats steps that W&B has already, and W&B cannot overwrite a step.
        self._first = self._run.starting_step

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Log the values of a step, by name."""
        if self._is_new(step):
            with self._forgiving():
                self._run.log(dict(numbers), step=step)

    def add_samples(self, samples: Samples) -> None:
        """Log sample completions as a table with their images."""
        if not self._is_new(samples.step):
            return
        with self._forgiving():
            import wandb

            images = [[wandb.Image(image) for image in images] for images in samples.images]
            columns, rows = samples.table(images)
            table = wandb.Table(columns=columns, data=rows)
            self._run.log({"samples": table}, step=samples.step)

    def close(self, *, failed: bool) -> None:
        """Finish the W&B run, marked as failed or not."""
        if self._run is not None:
            with self._forgiving():
                self._run.finish(exit_code=int(failed))

    def _is_new(self, step: int) -> bool:
        return self._run is not None and step >= self._first

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # the library and the network may raise anything
            if not self._failed:
                self._say(
                    f"Weights & Biases failed: {first_line(error)}. The run goes on; what is"
                    f" missing there is in {self._directory}"
                )
            self._failed = True
