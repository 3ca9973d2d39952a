"""Writing files so that nothing is lost: whole or not at all, and where it is possible."""

import os
from pathlib import Path

from othink_jax.errors import UserError


def write_atomically(path: Path, text: str) -> None:
    """Write `path` whole or not at all."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def check_output_directory(path: Path) -> None:
    """Raise UserError if no directory can be made at `path`; makes none.

    Called before the work whose results go there, so that they are not lost for a mistyped name.
    """
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{path} cannot be a directory: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: no permission for {there}")
