"""Reading JSON, and writing files so that nothing is lost: whole or not at all."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from othink_jax.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises UserError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_json_lines(path: Path, *, errors: str = "strict") -> dict[int, dict[str, Any]]:
    """The JSON objects of a file that holds one a line, by the number of the line, from 1.

    Blank lines are skipped, and so is a byte-order mark. A whole number of more digits than Python
    reads (4300) is a Decimal.

    Args:
      path: of the file.
      errors: what is done about bytes that are not UTF-8, as of `open`: with `surrogateescape` they
        cost the text alone that they stand in, which then cannot be written.

    Raises:
      UserError: the file cannot be read, or a line is no JSON object.
    """
    rows = {}
    try:
        with path.open(encoding="utf-8-sig", errors=errors) as lines:
            # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows[number] = _json_object(line, f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    return rows


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{where} is not a JSON object")
    return content


def _whole(digits: str) -> int | Decimal:
    try:
        return int(digits)
    except ValueError:  # sys.set_int_max_str_digits
        return Decimal(digits)


def write_atomically(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def check_output_directory(path: Path) -> None:
    """Raise UserError if no directory can be made at `path`; makes none.

    Called before the work whose results go there, so that they are not lost for a mistyped name.
    """
    there = _nearest_existing(path)
    if not there.is_dir():
        raise UserError(f"{path} cannot be a directory: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: no permission for {there}")


def _nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_room(path: Path, size: int) -> None:
    """Raise UserError if the disk has not `size` bytes left for `path`, which need not be there."""
    there = _nearest_existing(path)
    free = shutil.disk_usage(there).free
    if free < size:
        raise UserError(f"{path} needs {decimal(size)}, but {there} has only {decimal(free)} free")


def check_model_directory(path: Path, *, force: bool) -> None:
    """Raise UserError if no model can be put at `path`; see `new_model_directory`.

    Called before the model is loaded, too.
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
    """A directory to fill, which appears at `path` when the block ends: whole, or not at all.

    Args:
      path: where it is to stand.
      size: bytes that will be written, at least.
      force: put it in the place of a model that stands there; of anything else never.

    Raises:
      UserError: something stands there, nothing can be written there, or the disk is too full.
    """
    check_model_directory(path, force=force)
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
