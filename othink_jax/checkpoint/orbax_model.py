"""The parameters of a model as an Orbax checkpoint, read and written tensor by tensor."""

import asyncio
import concurrent.futures
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import type_handlers

from othink_jax.checkpoint.hf import copy_companions
from othink_jax.checkpoint.keymap import adapter_entries, tied_head
from othink_jax.checkpoint.model_directory import new_model_directory
from othink_jax.checkpoint.store import damaged
from othink_jax.checkpoint.tensors import Index, Tensors, adapted, nested, overlaid
from othink_jax.config import (
    RUN_BEST,
    RUN_CHECKPOINTS,
    RUN_REFERENCE,
    read_run,
    run_and_checkpoint,
)
from othink_jax.digests import check_sums, write_sums
from othink_jax.errors import UserError
from othink_jax.families import Entry, entries
from othink_jax.files import absolute
from othink_jax.model.config import VLMConfig

PARAMS = "params"  # the Orbax folder inside a model directory
_THREAD = concurrent.futures.ThreadPoolExecutor(1)  # for reads


def save_model(directory: Path, tensors: Tensors, *, companions: Path, force: bool = False) -> None:
    """Write a model directory: Orbax parameters, configuration, tokenizer, and checksums of all.

    Args:
      directory: output directory, written atomically.
      tensors: the parameters; the file holds unrolled layers, whatever the source holds.
      companions: a model directory whose other files are copied, see `hf.copy_companions`.
      force: replace an existing model.

    Raises:
      UserError: as `new_model_directory` does.
    """
    registry = type_handlers.create_type_handler_registry(
        (Entry, _OneByOne(tensors)), (jax.Array, type_handlers.ArrayHandler())
    )
    # Only this process writes, however many others there are.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix=f"process_{jax.process_index()}",
    )
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=registry, multiprocessing_options=alone
    )
    unread = nested({entry: entry for entry in tensors.dtypes})
    with new_model_directory(directory, size=tensors.total_nbytes, force=force) as unfinished:
        copy_companions(companions, unfinished, tensors)
        with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
            checkpointer.save(unfinished.absolute() / PARAMS, args=ocp.args.PyTreeSave(unread))
        write_sums(unfinished)


class _OneByOne(type_handlers.NumpyHandler):
    """Orbax handler of entries: each tensor is read when its turn comes, and written at once."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self._tensors = tensors

    async def serialize(
        self, values: Sequence[Any], infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[ocp.future.Future]:
        args = args or [ocp.SaveArgs()] * len(values)
        for entry, info, arg in zip(values, infos, args, strict=True):
            tensor = self._tensors.read(entry, ())
            for written in await super().serialize([tensor], [info], [arg]):
                written.result()
        return []


def stored_tensors(directory: Path, config: VLMConfig) -> Tensors:
    """The parameters of a model directory.

    Raises:
      UserError: they are damaged, or a tensor is missing, unknown or of another shape.
    """
    wanted = entries(config)
    if config.tie_word_embeddings:
        return _stored(absolute(directory) / PARAMS, (), wanted, optional=[tied_head(config)])
    return _stored(absolute(directory) / PARAMS, (), wanted)


def run_tensors(directory: Path, config: VLMConfig) -> Tensors:
    """The parameters of a run's checkpoint; before there is one, those of the reference.

    Frozen parameters are read from the reference. Adapters are merged into it, in float32. Raises
    as `stored_tensors` does.

    Args:
      directory: a run, for its last checkpoint, or one of its checkpoints.
      config: the model's config.
    """
    run, _ = run_and_checkpoint(directory)
    place = _params_of(directory)
    if place is None:
        return stored_tensors(run / RUN_REFERENCE, config)
    settings, everything = read_run(run).config, entries(config)
    if settings.train == "all":
        return _stored(*place, everything)
    reference = stored_tensors(run / RUN_REFERENCE, config)
    if settings.train == "lora":
        return adapted(reference, run_adapters(directory, config), settings.lora.scale)
    text = [entry for entry in everything if entry.path[0] == "text"]
    return overlaid(reference, _stored(*place, text))


def run_adapters(directory: Path, config: VLMConfig) -> Tensors:
    """The adapters of a run's last checkpoint, or of one of its checkpoints.

    Raises:
      UserError: the run has none, or they are damaged.
    """
    run, _ = run_and_checkpoint(directory)
    settings, place = read_run(run).config, _params_of(directory)
    if settings.train != "lora":
        raise UserError(f"{run} has no adapters: it was trained with --train {settings.train}")
    if place is None:
        raise UserError(f"{run} has no adapters yet: it has no checkpoint")
    return _stored(*place, adapter_entries(config, settings.lora.lora_rank))


def last_step(run: Path) -> int | None:
    """The step of a run's last checkpoint; None before there is one."""
    return _last_step(run / RUN_CHECKPOINTS)


def _last_step(folder: Path) -> int | None:
    return max(ocp.utils.checkpoint_steps(folder), default=None)


def _params_of(directory: Path) -> tuple[Path, tuple[str, ...]] | None:
    """Path and keys of a checkpoint's parameters, of a run its last one's; None if there is none.

    Raises:
      UserError: its files do not match their checksums, or there is no best checkpoint.
    """
    run, name = run_and_checkpoint(directory)
    folder = absolute(run) / RUN_CHECKPOINTS
    if name == RUN_BEST:
        folder = folder / RUN_BEST
    step = name if name and name != RUN_BEST else _last_step(folder)
    if step is None and name == RUN_BEST:
        raise UserError(f"{run} has no best checkpoint: it has not been validated")
    if step is None:
        return None
    checkpoint = folder / str(step)
    check_sums(checkpoint)
    return checkpoint / "state", ("params",)


def _stored(
    place: Path, keys: tuple[str, ...], wanted: Sequence[Entry], *, optional: Sequence[Entry] = ()
) -> Tensors:
    """Tensors that Orbax stored in `place` under `keys`: all `wanted`, and none but `optional`."""
    metadata = _metadata(place, keys)
    optional = [entry for entry in optional if _name(entry.path) in metadata]
    expected = {_name(entry.path): entry for entry in (*wanted, *optional)}
    faults = [
        *(f"unknown {name}" for name in metadata if name not in expected),
        *(f"missing {name}" for name in expected if name not in metadata),
        *(
            f"{name} is {tuple(metadata[name].shape)}, not {entry.shape}"
            for name, entry in expected.items()
            if name in metadata and tuple(metadata[name].shape) != entry.shape
        ),
    ]
    if faults:
        raise UserError(f"{place} does not fit its config.json: {'; '.join(faults)}")
    dtypes = {entry: np.dtype(metadata[name].dtype) for name, entry in expected.items()}

    # Opening takes 30 ms, so it is done once.
    readers = functools.cache(lambda: _open(place, keys, dtypes))

    def read(entry: Entry, index: Index) -> np.ndarray:
        try:
            return readers()[entry]()[index]
        except Exception as error:
            raise damaged(place, error) from error

    return Tensors(dtypes=dtypes, read=read)


def _metadata(place: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    """Shape and dtype of each stored tensor, by its name."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        try:
            metadata = checkpointer.metadata(place).item_metadata
            if metadata is None:
                raise UserError(f"{place} is damaged: there is nothing in it that Orbax can read")
            stored = metadata.tree
            for key in keys:
                stored = stored[key]
            return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(stored)}
        except UserError:
            raise
        except Exception as error:
            raise damaged(place, error) from error


class _Later(type_handlers.NumpyHandler):
    """Orbax handler that restores functions: each reads its tensor when it is called."""

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[Any] | None = None
    ) -> Sequence[Any]:
        args = args or [ocp.RestoreArgs()] * len(infos)
        read = super().deserialize

        def later(info: Any, arg: Any) -> Callable[[], np.ndarray]:
            # In a thread of its own: this one already runs an event loop while Orbax saves.
            return lambda: _THREAD.submit(asyncio.run, read([info], [arg])).result()[0]

        return [later(info, arg) for info, arg in zip(infos, args, strict=True)]


def _open(
    place: Path, keys: tuple[str, ...], dtypes: Mapping[Entry, np.dtype]
) -> dict[Entry, Callable[[], np.ndarray]]:
    """The reader of each tensor."""
    shapes = {entry: jax.ShapeDtypeStruct(entry.shape, dtype) for entry, dtype in dtypes.items()}
    wanted: Any = nested(shapes)
    for key in reversed(keys):
        wanted = {key: wanted}
    # As numpy arrays: the stored shardings name devices that this machine may not have.
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    registry = type_handlers.create_type_handler_registry(
        (np.ndarray, _Later()), (jax.Array, type_handlers.ArrayHandler())
    )
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with ocp.Checkpointer(handler) as checkpointer:
        found = checkpointer.restore(
            place,
            args=ocp.args.PyTreeRestore(item=wanted, restore_args=as_numpy, partial_restore=True),
        )
    for key in keys:
        found = found[key]
    return {entry: _leaf(found, entry) for entry in dtypes}


def _leaf(tree: Any, entry: Entry) -> Any:
    for key in entry.path:
        tree = tree[key]
    return tree


def _name(path: Sequence[Any]) -> str:
    """Dotted name of a path of plain keys, or of JAX's key-path entries."""
    keys = (getattr(key, "key", key) for key in path)
    return ".".join(map(str, keys))
