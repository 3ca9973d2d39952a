"""Starting a run, and resuming one."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any, TypeVar

import jax

from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.checkpoint.orbax_model import save_model
from othink_jax.checkpoint.tensors import in_memory
from othink_jax.config import ResumeConfig, RunRecord, TrainingConfig, changed_settings
from othink_jax.errors import UserError
from othink_jax.files import check_readable
from othink_jax.identity import code_name, find_code, source_digest
from othink_jax.training import processes
from othink_jax.training.loop import Trainer
from othink_jax.training.run_directory import RunDirectory

_Config = TypeVar("_Config", bound=TrainingConfig)


def start_run(trainer: type[Trainer[_Config]], config: _Config) -> Path:
    """Start a run in `config.out` and take it to its end; returns the run directory.

    Trained parameters and optimizer moments are float32 (the first moment: `mu_dtype`).
    `config.dtype` is the dtype of the computation, the reference and the frozen parameters.

    Raises:
      UserError: the settings, the model or the data are invalid; nothing is written.
      KeyboardInterrupt: the run was interrupted; it is saved.
    """
    directory = RunDirectory(config.out, writes=processes.first())
    directory.check_free()
    checkpoint = _load(config.model, config)
    made = trainer(config, checkpoint)
    told = processes.all_gather(dict(made.sources))
    if any(sources != told[0] for sources in told):
        raise UserError("the functions of this run are not the same in all of its processes")
    with directory.held():
        with directory.beginning(made.config, made.steps, trainer, made.sources):
            processes.barrier("it is being begun")
            if not all(processes.all_gather(directory.sees_beginning())):
                raise UserError(
                    f"not all processes of the run see {directory.path}, where each writes its part"
                    " of a checkpoint: give an --out on a file system that they share, or"
                    " gs://BUCKET/..."
                )
            if processes.first():
                save_model(
                    directory.reference,
                    in_memory(checkpoint.config, checkpoint.params),
                    companions=checkpoint.directory,
                )
        processes.barrier("it is begun")
        del checkpoint
        made.run(directory)
    return directory.path


def resume_run(
    trainer: type[Trainer[_Config]], settings: type[_Config], changes: ResumeConfig | Path
) -> Path:
    """Resume a run from its last intact checkpoint, with its own trainer, settings and reference.

    Args:
      trainer: trainer class of the method. If another class made the run, that one is imported; if
        it cannot be imported, it must be given here.
      settings: config class of the method.
      changes: the run directory, alone or with changed settings.

    Raises:
      UserError: there is no such run, part of it is damaged, or the code that made it has changed.
      KeyboardInterrupt: the run was interrupted; it is saved.
    """
    if not isinstance(changes, ResumeConfig):
        changes = ResumeConfig(resume=changes)
    directory = RunDirectory(changes.resume, writes=processes.first())
    check_readable(directory.path)
    record = directory.record(settings)
    trainer = _maker(trainer, record, changes)
    recorded: Any = record.config
    config: _Config = changes.applied(recorded)
    with directory.held():
        made = trainer(
            dataclasses.replace(
                config.with_absolute_paths(Path(record.directory or ".")), out=directory.path
            ),
            _load(directory.reference, config),
        )
        changed = changed_settings(recorded, config) | _changed_sources(record, made, changes)
        record = dataclasses.replace(
            record, config=config, total_steps=made.steps, sources=dict(made.sources)
        )
        made.run(directory, record=record, changed=changed)
    return directory.path


def _maker(
    given: type[Trainer[_Config]], record: RunRecord, changes: ResumeConfig
) -> type[Trainer[_Config]]:
    """The trainer class that made a run."""
    run = shlex.quote(str(changes.resume))
    found = given
    if record.trainer not in ("", code_name(given)):
        try:
            found = find_code(record.trainer)
        except ImportError as error:
            raise UserError(
                f"{run} was made by {record.trainer}, which cannot be imported ({error}): continue"
                " it where that class is, with othink_jax.training.runs.resume_run"
            ) from error
        if not (isinstance(found, type) and issubclass(found, Trainer)):
            raise UserError(f"{run} was made by {record.trainer}, which is no Trainer")
    if (
        record.trainer
        and not changes.allow_changed_source
        and source_digest(found) != record.trainer_digest
    ):
        raise UserError(
            f"the source of {record.trainer} is not what it was when {run} began: restore it, or"
            " give --allow-changed-source to continue with it as it is now"
        )
    return found


def _changed_sources(
    record: RunRecord, made: Trainer[Any], changes: ResumeConfig
) -> dict[str, list[str]]:
    """Old and new digests of the user's own functions that have changed, by name."""
    found = {
        name: [before, made.sources[name]]
        for name, before in record.sources.items()
        if made.sources[name] != before
    }
    if found and not changes.allow_changed_source:
        raise UserError(
            f"the source of {', '.join(found)} is not what it was when"
            f" {shlex.quote(str(changes.resume))} began: restore it, or give"
            " --allow-changed-source to continue with it as it is now"
        )
    return {f"source of {name}": [old[:12], new[:12]] for name, (old, new) in found.items()}


def _load(model: str | Path, config: TrainingConfig) -> Checkpoint:
    return load(
        model,
        compute=config.compute(jax.default_backend()),
        lazy=True,  # a full copy may not fit on a device or on the host
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
    )
