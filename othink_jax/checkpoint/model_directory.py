"""Atomic writing of a model directory."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from othink_jax.errors import UserError
from othink_jax.files import (
    CONFIGS,
    check_output_directory,
    check_room,
    copy_file,
    is_cloud,
    remove,
)


def check_model_directory(path: Path, *, force: bool) -> None:
    """Raise UserError if no model can be written to `path`; see `new_model_directory`.

    Also called before the model is loaded.
    """
    check_output_directory(path)
    if not path.exists() or not any(path.iterdir()):
        return
    if not force:
        raise UserError(f"{path} is not empty: give another place, or --force to replace it")
    weights = (path / "params").is_dir() or any(path.glob("*.safetensors"))
    configs = (path / name for name in ("config.json", "adapter_config.json"))
    described = any(config.is_file() for config in configs)
    if not weights or not described or (path / "metrics.jsonl").exists():
        raise UserError(f"{path} is not empty and no model: --force replaces models only")


@contextlib.contextmanager
def new_model_directory(path: Path, *, size: int, force: bool = False) -> Iterator[Path]:
    """A directory to fill, which appears at `path` when the block ends: complete, or not at all.

    For a bucket, it is filled on disk and then copied, its config last.

    Args:
      path: the final place of the directory.
      size: least number of bytes that will be written.
      force: replace an existing model; anything else is never replaced.

    Raises:
      UserError: `path` is not empty or cannot be written, or the disk is too full.
    """
    check_model_directory(path, force=force)
    if is_cloud(path):
        with tempfile.TemporaryDirectory() as temporary:
            check_room(Path(temporary), size)
            yield Path(temporary)
            remove(path)
            files = [file for file in Path(temporary).rglob("*") if file.is_file()]
            for file in sorted(files, key=lambda file: file.name in CONFIGS):
                copy_file(file, path / file.relative_to(temporary))
        return
    check_room(path, size)
    unfinished = path.with_name(f".{path.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    replaced = path.with_name(f".{path.name}.replaced")
    if path.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        path.rename(replaced)
    unfinished.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)
