"""Orbax checkpoints: the state of a training run, and a model by itself."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from othink_jax.checkpoint.hf import copy_companions
from othink_jax.errors import UserError

PARAMS = "params"  # the Orbax folder inside a model directory
RUN_REFERENCE = "reference"  # the model directory inside a run directory
RUN_CHECKPOINTS = "checkpoints"  # the training states inside a run directory


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

        `like` is a pytree of arrays or `jax.ShapeDtypeStruct`. Raises UserError if there is no
        checkpoint.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise UserError(f"no checkpoint in {self._manager.directory}: nothing to resume from")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), progress=ocp.args.JsonRestore()
            ),
        )
        return restored.state, restored.progress

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_model(directory: Path, params: Any, *, companions: Path) -> None:
    """Write a model directory: Orbax parameters, with configuration and tokenizer beside them.

    Args:
      directory: must not exist; it appears whole or not at all.
      params: nested dict of arrays.
      companions: a model directory whose other files are copied.
    """
    if directory.exists():
        raise UserError(f"{directory} exists already; give another place or remove it first")
    unfinished = directory.with_name(f".{directory.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    copy_companions(companions, unfinished)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(unfinished.absolute() / PARAMS, params)
    unfinished.rename(directory)


def load_params(directory: Path, like: Any) -> Any:
    """Parameters of a model directory, in the structure, shapes and dtypes of `like`.

    Raises:
      UserError: they are damaged or of another structure or shape.
    """
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with _as_user_error(directory), ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(directory.absolute() / PARAMS, abstract)


@contextlib.contextmanager
def _as_user_error(directory: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError, KeyError) as error:  # what Orbax raises, by the kind of damage
        reason = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
        raise UserError(
            f"{directory} holds no parameters that fit its config.json: {reason}"
        ) from error


def load_run_params(run: Path, like: Any) -> Any:
    """Parameters of a run's last checkpoint, in the structure, shapes and dtypes of `like`.

    Before the first checkpoint they are those of the reference. Raises as `load_params` does.
    """
    steps = ocp.utils.checkpoint_steps(run / RUN_CHECKPOINTS)
    if not steps:
        return load_params(run / RUN_REFERENCE, like)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    state = run.absolute() / RUN_CHECKPOINTS / str(max(steps)) / "state"
    with _as_user_error(run), ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(
            state, args=ocp.args.PyTreeRestore(item={"params": abstract}, partial_restore=True)
        )["params"]
