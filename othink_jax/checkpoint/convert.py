"""Conversion of any model to an Orbax, Hugging Face or PEFT directory, tensor by tensor."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from othink_jax.checkpoint import hf, orbax_model, peft
from othink_jax.checkpoint.load import load_processor, locate, stored_model, write_hf
from othink_jax.checkpoint.model_directory import check_model_directory, new_model_directory
from othink_jax.checkpoint.tensors import Tensors, cast, watched
from othink_jax.config import read_run, run_and_checkpoint
from othink_jax.digests import write_sums
from othink_jax.errors import UserError
from othink_jax.model.config import VLMConfig

Dtype = Literal["stored", "float32", "bfloat16", "float16"]  # of the written weights


def to_orbax(model: str | Path, out: Path, *, force: bool = False) -> None:
    """Write a model as a directory of Orbax parameters; every tensor keeps its stored dtype.

    Args:
      model: as for `load`.
      out: output directory, written atomically.
      force: replace an existing model.

    Raises:
      UserError: as `load` and `new_model_directory` do.
    """
    check_model_directory(out, force=force)
    directory, _, tensors = _open(model)
    with _progress("converting", tensors) as tensors:
        orbax_model.save_model(out, tensors, companions=directory, force=force)


def to_hf(
    model: str | Path,
    out: Path,
    *,
    dtype: Dtype = "stored",
    max_shard_size: int | str = "5GB",
    card: str | None = None,
    force: bool = False,
) -> None:
    """Write a model as a Hugging Face directory that transformers loads.

    Args:
      model: as for `load`.
      out: output directory, written atomically.
      dtype: dtype of the weights.
      max_shard_size: largest weight file, in bytes or such as `5GB`.
      card: text of the README.md beside the weights.
      force: replace an existing model.

    Raises:
      UserError: as `load` and `new_model_directory` do.
    """
    check_model_directory(out, force=force)
    directory, config, tensors = _open(model)
    if dtype != "stored":
        tensors = cast(tensors, dtype)
    with _progress("exporting", tensors) as tensors:
        write_hf(
            out,
            config,
            tensors,
            companions=directory,
            max_shard_size=max_shard_size,
            card=card,
            force=force,
        )


def to_adapter(
    model: str | Path,
    out: Path,
    *,
    dtype: Dtype = "stored",
    card: str | None = None,
    force: bool = False,
) -> None:
    """Write the adapters of a run as a directory that PEFT loads onto the run's base model.

    Args:
      model: the directory of a run that trains adapters.
      out: output directory, written atomically.
      dtype: dtype of the weights.
      card: text of the README.md beside them.
      force: replace an existing model or adapter.

    Raises:
      UserError: the run has no adapters, or as `new_model_directory` does.
    """
    check_model_directory(out, force=force)
    directory, run = locate(model)
    if run is None:
        raise UserError(f"{model} has no adapters: it is no run directory")
    adapters = orbax_model.run_adapters(run, hf.load_config(directory))
    if dtype != "stored":
        adapters = cast(adapters, dtype)
    settings = read_run(run_and_checkpoint(run)[0]).config
    with new_model_directory(out, size=adapters.total_nbytes, force=force) as unfinished:
        peft.save(unfinished, adapters, settings.lora, base=settings.model)
        write_sums(unfinished)
        if card is not None:
            (unfinished / "README.md").write_text(card, encoding="utf-8")


def _open(model: str | Path) -> tuple[Path, VLMConfig, Tensors]:
    directory, run = locate(model)
    config, tensors = stored_model(directory, run)
    load_processor(directory, config)  # do not write what cannot be loaded
    return directory, config, tensors


@contextlib.contextmanager
def _progress(title: str, tensors: Tensors) -> Iterator[Tensors]:
    """The tensors; their reads advance a progress bar on stderr, if that is a terminal."""
    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=tensors.total_nbytes)
        yield watched(tensors, lambda nbytes: progress.advance(task, nbytes))
