"""The checkpoints of a training run, by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from othink_jax.errors import UserError, first_line


class TrainingStore:
    """The `checkpoints/` folder of a run: numbered steps, each whole or absent.

    A step holds the training state (a pytree of arrays) and the progress of everything that is not
    an array (a JSON object: position in the data, counters).
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
            item_names=("state", "progress"),
        )

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Save in the background; a step that is already there is left alone."""
        if step == self.latest_step():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """State and progress of `step` (the latest if not given), in the structure of `like`.

        `like` is a pytree of arrays or `jax.ShapeDtypeStruct`, whose shardings say where it is read
        to. Raises UserError if there is no
        checkpoint, or a damaged one.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise UserError(f"no checkpoint in {self._manager.directory}: nothing to resume from")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise damaged(self._manager.directory / str(step), error) from error
        return restored.state, restored.progress

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def damaged(place: Any, error: Exception) -> UserError:
    """One line for whatever Orbax raises, which depends on the damage."""
    return UserError(f"{place} is damaged: {first_line(error)[:300]}")
