"""Weights & Biases: the rows and samples of a run, in one run there however often it goes on."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from othink_jax.config import TrainingConfig
from othink_jax.errors import first_line
from othink_jax.files import is_cloud
from othink_jax.training.samples import Samples

_ID = "wandb_id.txt"  # in the run directory: that of its run there


class Tracker:
    """A run of Weights & Biases; needs the extra `wandb`.

    What fails there (the network, a login that is missing) is said once and ends nothing.
    """

    def __init__(
        self, directory: Path, config: TrainingConfig, *, say: Callable[[str], None]
    ) -> None:
        """Begin a run there, or continue that of this directory.

        Args:
          directory: of the run.
          config: its settings.
          say: tells the user a line.
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
            # Where none are given, those stay that were written on its page.
            notes=config.notes or None,
            tags=list(config.tags) or None,
        )
        if known is None:
            file.write_text(self._run.id, encoding="utf-8")
        # Steps that a killed run makes once more are there already, and none can be written over.
        self._first = self._run.starting_step

    def add(self, numbers: Mapping[str, float], step: int) -> None:
        """Log the values of a step, by name."""
        if self._is_new(step):
            with self._forgiving():
                self._run.log(dict(numbers), step=step)

    def add_samples(self, samples: Samples) -> None:
        """Log completions as a table with their images."""
        if not self._is_new(samples.step):
            return
        with self._forgiving():
            import wandb

            images = [[wandb.Image(image) for image in images] for images in samples.images]
            columns, rows = samples.table(images)
            table = wandb.Table(columns=columns, data=rows)
            self._run.log({"samples": table}, step=samples.step)

    def close(self, *, failed: bool) -> None:
        """End the run there, as one that has failed or not."""
        if self._run is not None:
            with self._forgiving():
                self._run.finish(exit_code=int(failed))

    def _is_new(self, step: int) -> bool:
        return self._run is not None and step >= self._first

    @contextlib.contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever the library or the network come up with
            if not self._failed:
                self._say(
                    f"Weights & Biases failed: {first_line(error)}. The run goes on; what is"
                    f" missing there is in {self._directory}"
                )
            self._failed = True
