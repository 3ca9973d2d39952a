"""The checkpoints of a run: the last ones, and the one of the best validation."""

from typing import Any

from othink_jax.checkpoint.store import TrainingStore
from othink_jax.config import RUN_BEST, TrainingConfig
from othink_jax.training.layout import DiskLayout
from othink_jax.training.parallel import Parallel
from othink_jax.training.recovery import restore_last_intact
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.state import TrainState


class Checkpoints:
    """Saves and restores the training states of a run."""

    def __init__(
        self,
        directory: RunDirectory,
        config: TrainingConfig,
        parallel: Parallel,
        layout: DiskLayout,
    ) -> None:
        """Open the checkpoints of a run.

        Args:
          directory, config: directory and settings of the run.
          parallel: devices of the run.
          layout: on-disk layout of a state.
        """
        self._parallel = parallel
        self._layout = layout
        self._last = TrainingStore(directory.checkpoints, keep=config.keep_checkpoints)
        self._best = None
        if config.validation.used:
            self._best = TrainingStore(directory.checkpoints / RUN_BEST, keep=1)

    @property
    def latest_step(self) -> int:
        """Step of the last checkpoint; 0 if there is none."""
        return self._last.latest_step() or 0

    def save(self, step: int, state: TrainState, progress: dict[str, Any], *, better: bool) -> None:
        """Store a state, and a second time if it is the best so far."""
        held = self._held(state)
        self._last.save(step, held, progress)
        if better and self._best is not None:
            # First finish the one to resume from, in case an interruption comes between the two.
            self._last.wait()
            self._best.save(step, held, progress)

    def restore(self) -> tuple[tuple[TrainState, dict[str, Any]] | None, list[str]]:
        """Restore the last intact state to the devices, with its progress."""
        found, notes = restore_last_intact(
            self._last, self._parallel.checkpoint_shapes(self._layout.shapes)
        )
        if found is None:
            return None, notes
        state, progress = found
        return (self._parallel.place_restored(self._layout.from_disk(state)), progress), notes

    def mend_best(
        self, step: int, state: TrainState, progress: dict[str, Any], best: int
    ) -> str | None:
        """Store the best state if an interruption prevented that; returns a message about it.

        Args:
          step, state, progress: checkpoint that the run resumes from.
          best: step of the best validation up to then.
        """
        if self._best is None or self._best.latest_step() == best:
            return None
        if best == step:
            self._best.save(step, self._held(state), progress)
            return f"the checkpoint of step {step} is the best one so far, and is stored as such"
        return f"the best validation was that of step {best}, and its checkpoint is gone"

    def _held(self, state: TrainState) -> TrainState:
        """A state of the devices in its on-disk layout."""
        return self._layout.to_disk(self._parallel.unreplicate(state))

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._last.close()
        if self._best is not None:
            self._best.close()
