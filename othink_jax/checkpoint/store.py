"""Orbax checkpoints: the state of a training run, and a model by itself."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from othink_jax.checkpoint.hf import copy_companions
from othink_jax.errors import UserError
from othink_jax.files import new_model_directory

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
            raise _damaged(self._manager.directory / str(step), error) from error
        return restored.state, restored.progress

    def close(self) -> None:
        """Wait until everything is on disk."""
        self._manager.wait_until_finished()
        self._manager.close()


def save_model(directory: Path, params: Any, *, companions: Path, force: bool = False) -> None:
    """Write a model directory: Orbax parameters, with configuration and tokenizer beside them.

    Args:
      directory: appears whole or not at all.
      params: nested dict of arrays.
      companions: a model directory whose other files are copied.
      force: replace a model that is there.

    Raises:
      UserError: as `files.new_model_directory` does.
    """
    with new_model_directory(directory, size=nbytes(params), force=force) as unfinished:
        copy_companions(companions, unfinished)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(unfinished.absolute() / PARAMS, params)


def nbytes(params: Any) -> int:
    """Bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


def load_params(directory: Path, like: Any, *, as_stored: bool = False) -> Any:
    """Parameters of a model directory, in the structure, shapes and dtypes of `like`.

    With `as_stored`, the dtypes are those they are stored in.

    Raises:
      UserError: they are damaged, or a tensor is missing, unknown or of another shape.
    """
    return _read(directory.absolute() / PARAMS, (), like, as_stored)


def load_run_params(run: Path, like: Any, *, as_stored: bool = False) -> Any:
    """Parameters of a run's last checkpoint, as `load_params` gives them.

    Before the first checkpoint they are those of the reference. Raises as `load_params` does.
    """
    steps = ocp.utils.checkpoint_steps(run / RUN_CHECKPOINTS)
    if not steps:
        return load_params(run / RUN_REFERENCE, like, as_stored=as_stored)
    place = run.absolute() / RUN_CHECKPOINTS / str(max(steps)) / "state"
    return _read(place, ("params",), like, as_stored)


def _read(place: Path, keys: tuple[str, ...], like: Any, as_stored: bool) -> Any:
    """The subtree under `keys` of what Orbax stored in `place`, on the default device."""
    # Not the stored sharding: it names devices that this machine may not have.
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(place).item_metadata
            if metadata is None:
                raise UserError(f"{place} is damaged: there is nothing in it that Orbax can read")
            stored = metadata.tree
            for key in keys:
                stored = stored[key]
            # Orbax would stop at the first fault, and with reads under way.
            _check_fit(place, _shapes(stored), _shapes(like))
            dtypes = {
                name: leaf.dtype for name, leaf in _named(stored if as_stored else like).items()
            }
            abstract = jax.tree.map_with_path(
                lambda path, leaf: jax.ShapeDtypeStruct(
                    leaf.shape, dtypes[_name(path)], sharding=device
                ),
                like,
            )
            for key in reversed(keys):
                abstract = {key: abstract}
            found = checkpointer.restore(
                place,
                args=ocp.args.PyTreeRestore(
                    item=abstract,
                    # Without them the item's dtypes and shardings are passed over in silence.
                    restore_args=ocp.checkpoint_utils.construct_restore_args(abstract),
                    partial_restore=True,
                ),
            )
        except UserError:
            raise
        except Exception as error:
            raise _damaged(place, error) from error
    for key in keys:
        found = found[key]
    return found


def _damaged(place: Any, error: Exception) -> UserError:
    """One line for whatever Orbax raises, which depends on the damage."""
    reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
    return UserError(f"{place} is damaged: {reason}")


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _named(tree: Any) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    return {name: tuple(leaf.shape) for name, leaf in _named(tree).items()}


def _check_fit(
    place: Path, stored: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]]
) -> None:
    faults = [
        *(f"unknown {name}" for name in stored if name not in wanted),
        *(f"missing {name}" for name in wanted if name not in stored),
        *(
            f"{name} is {stored[name]}, not {shape}"
            for name, shape in wanted.items()
            if stored.get(name, shape) != shape
        ),
    ]
    if faults:
        raise UserError(f"{place} does not fit its config.json: {'; '.join(faults)}")
