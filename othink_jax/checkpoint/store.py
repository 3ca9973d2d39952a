"""Checkpoints of a training run, written by Orbax."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from othink_jax.digests import check_sums, write_sums
from othink_jax.errors import UserError, first_line
from othink_jax.files import absolute, check_room, is_cloud, move

# Name of the folder that Orbax fills and then renames.
_UNFINISHED = "*.orbax-checkpoint-tmp*"
# Holds timestamps and the kinds of items; Orbax adds the last timestamp after all else.
_WRITTEN_LAST = "_CHECKPOINT_METADATA"


class TrainingStore:
    """The `checkpoints/` folder of a run: numbered steps, each complete or absent.

    A step holds the training state (a pytree of arrays), the progress of everything that is not an
    array (a JSON object: position in the data, counters), and the checksums of its files.
    """

    def __init__(self, directory: Path, *, keep: int) -> None:
        self._directory = absolute(directory)
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                create=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
            ),
            item_names=("state", "progress"),
        )

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Save in the background; does nothing if `step` is the latest step already.

        Raises:
          UserError: the disk has no room for the state.
          OSError, ValueError: writing the previous step has failed meanwhile (Orbax's).
        """
        if step == self.latest_step():
            return
        self._manager.wait_until_finished()  # a pending save takes space, and then frees some
        check_room(self._directory / str(step), sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), progress=ocp.args.JsonSave(progress)
            ),
        )

    def _write_sums(self) -> None:
        """Write a step's checksums: called after its files, before its folder gets its name.

        Not in a bucket: every file would be fetched again, and the bucket has checksums of its own.
        """
        if jax.process_index() == 0 and not is_cloud(self._directory):
            for folder in self._directory.glob(_UNFINISHED):
                files = (file for file in folder.rglob("*") if file.is_file())
                write_sums(folder, (file for file in files if file.name != _WRITTEN_LAST))

    def latest_step(self) -> int | None:
        """The latest stored step; None if there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All stored steps, the latest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def restore(self, like: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """State and progress of `step` (the latest if not given), in the structure of `like`.

        Args:
          like: a pytree of arrays or `jax.ShapeDtypeStruct`, with the shardings of the result.
          step: one of `steps`.

        Raises:
          UserError: there is no checkpoint, or Orbax cannot read it; see also `fault`.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise UserError(f"no checkpoint in {self._directory}: nothing to resume from")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
                ),
            )
        except Exception as error:
            raise damaged(self._directory / str(step), error) from error
        return restored.state, restored.progress

    def fault(self, step: int) -> str | None:
        """Error message of a step whose checksums do not match; None if they do."""
        try:
            check_sums(self._directory / str(step))
        except UserError as error:
            return str(error)
        return None

    def place(self, step: int) -> Path:
        """Path that `set_aside` moves a step to: in `damaged/`, beside the folder."""
        return self._directory.with_name("damaged") / str(step)

    def set_aside(self, step: int) -> None:
        """Move a damaged step to `place`, out of the way of the others."""
        move(self._directory / str(step), self.place(step))  # replaces an earlier one

    def reload(self) -> None:
        """Read again which steps are stored."""
        self._manager.reload()

    def wait(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait until everything is on disk, then close Orbax's manager."""
        self.wait()
        self._manager.close()


def damaged(place: Any, error: Exception) -> UserError:
    """A one-line error for whatever Orbax raises, which depends on the damage."""
    return UserError(f"{place} is damaged: {first_line(error)[:300]}")
