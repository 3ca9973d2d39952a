"""Checksums of the files in a directory, so that a flipped bit does not become a wrong number.

The file SHA256SUMS has the format of `sha256sum`, so `sha256sum --check SHA256SUMS` checks a
directory without this package.
"""

import concurrent.futures
import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from othink_jax.errors import UserError
from othink_jax.files import write_atomically

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)")
_AT_A_TIME = 4  # files hashed in parallel; hashlib releases the GIL


def sha256(file: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def write_sums(directory: Path, files: Iterable[Path] | None = None) -> None:
    """Write the checksums of `files` below `directory`; by default of all files there."""
    if files is None:
        files = (file for file in directory.rglob("*") if file.is_file() and file.name != SUMS)
    chosen = sorted(files)
    lines = [
        f"{digest}  {file.relative_to(directory).as_posix()}\n"
        for file, digest in zip(chosen, _all(chosen), strict=True)
    ]
    write_atomically(directory / SUMS, "".join(lines))


def check_sums(directory: Path) -> bool:
    """Compare the files of a directory with its checksums.

    Files without a checksum are ignored.

    Returns:
      Whether there are checksums.

    Raises:
      UserError: a file is absent or differs (all are named), or the list itself is damaged.
    """
    path = directory / SUMS
    if not path.is_file():
        return False
    recorded = _read(path)
    absent = [name for name in recorded if not (directory / name).is_file()]
    there = {name: directory / name for name in recorded if name not in absent}
    found = dict(zip(there, _all(there.values()), strict=True))
    changed = [name for name, digest in found.items() if digest != recorded[name]]
    faults = [*(f"{name} is absent" for name in absent), *(f"{name} differs" for name in changed)]
    if faults:
        raise UserError(
            f"{directory} is damaged, or was changed since it was written: {'; '.join(faults)}."
            f" To accept a file as it is, delete its line in {SUMS}"
        )
    return True


def _all(files: Iterable[Path]) -> Iterable[str]:
    with concurrent.futures.ThreadPoolExecutor(_AT_A_TIME) as threads:
        return list(threads.map(sha256, files))


def _read(path: Path) -> dict[str, str]:
    """Checksums by file name."""
    try:
        lines = path.read_bytes().decode().split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    # A truncated file ends in the middle of a line, or is empty.
    matches = [_LINE.fullmatch(line) for line in lines[:-1]]
    if not matches or lines[-1] or None in matches:
        raise UserError(f"{path} is damaged: it is no list of checksums")
    return {match[2]: match[1] for match in matches if match is not None}
