"""JSON reading and atomic writing of files, on disk and in buckets.

A path is on disk, or is `gs://BUCKET/...`. A bucket holds objects. Each object is written
atomically, but nothing can be renamed, appended to or locked, and directories exist only as
prefixes of object names. A write that ends with a rename on disk ends in a bucket with an object
that is written last.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import filelock
from rich.filesize import decimal

from othink_jax.errors import UserError, first_line

_CLOUD = "gs://"
# An address, also after `pathlib` has collapsed its `//`.
_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+):/+(.*)", re.DOTALL)
# Without one of these a directory is no model, so they are removed first and written last.
CONFIGS = ("config.json", "adapter_config.json")
PROBE = ".probe"  # object that is written to test whether the bucket is writable
_CHUNK = 2**24  # bytes that are copied at a time
_REWRITTEN_S = 30.0  # seconds between rewrites of a growing file in a bucket


def as_path(name: str | os.PathLike[str]) -> Path:
    """A path on disk, or one in a bucket: `gs://BUCKET/...`.

    Raises:
      UserError: `name` is another kind of address, or the package for buckets is missing.
    """
    address = _ADDRESS.fullmatch(os.fspath(name))
    if address is None:
        return Path(name)
    if address[1] + "://" != _CLOUD:
        raise UserError(f"{name} is an address that cannot be read: give a path, or {_CLOUD}...")
    import fsspec
    from etils import epath

    try:
        fsspec.get_filesystem_class("gcs")
    except ImportError as error:
        raise UserError(
            f"{_CLOUD} needs the package gcsfs: pip install 'othink_jax[cloud]'"
        ) from error
    return cast(Path, epath.Path(_CLOUD + address[2]))  # has the part of Path's API used here


def is_cloud(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith(_CLOUD)


def check_readable(path: Path) -> None:
    """Raise UserError if a bucket does not answer, or denies access; its content is irrelevant."""
    if is_cloud(path):
        try:
            path.exists()
        except Exception as error:  # the library, the network or the cloud may raise anything
            raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def absolute(path: Path) -> Path:
    """The path made independent of the working directory."""
    return path if is_cloud(path) else path.absolute()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError if the file holds none."""
    try:
        content = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} has no {path.name}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object")
    return content


def read_json_lines(path: Path, *, errors: str = "strict") -> dict[int, dict[str, Any]]:
    """JSON objects of a JSONL file, by line number, from 1.

    Blank lines and a byte-order mark are skipped. An integer with more digits than Python parses
    (4300) becomes a Decimal.

    Args:
      path: the file.
      errors: handling of bytes that are not UTF-8, as in `open`. With `surrogateescape` they affect
        only the strings that contain them, which then cannot be written.

    Raises:
      UserError: the file cannot be read, or a line is no JSON object.
    """
    rows = {}
    try:
        with text_of(path, encoding="utf-8-sig", errors=errors) as lines:
            # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    rows[number] = _json_object(line, f"{path}, line {number}")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text: {error}") from error
    return rows


def text_of(path: Path, *, encoding: str = "utf-8", errors: str = "strict") -> io.TextIOWrapper:
    """Open a file for reading text, as `open` does."""
    return io.TextIOWrapper(cast(Any, path.open("rb")), encoding=encoding, errors=errors)


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
    """Write `path` atomically."""
    if is_cloud(path):
        path.write_bytes(text.encode())
        return
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


class GrowingFile:
    """A file to append to. In a bucket it is rewritten every half minute, and by `flush`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content: bytes | None = None  # of a file in a bucket, once it is read
        self._written = time.monotonic()

    def read(self) -> bytes:
        """The whole content; empty if there is no such file."""
        if self._content is not None:
            return self._content
        content = self._path.read_bytes() if self._path.exists() else b""
        if is_cloud(self._path):
            self._content = content
        return content

    def replace(self, content: bytes) -> None:
        """Replace the whole content."""
        if is_cloud(self._path):
            self._content = content
            self.flush()
            return
        unfinished = self._path.with_name(f".{self._path.name}.unfinished")
        unfinished.write_bytes(content)
        os.replace(unfinished, self._path)

    def append(self, content: bytes) -> None:
        """Append `content`. On a disk it is synced when this returns."""
        if is_cloud(self._path):
            self._content = self.read() + content
            if time.monotonic() - self._written > _REWRITTEN_S:
                self.flush()
            return
        with self._path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def flush(self) -> None:
        """Write pending content of a file in a bucket."""
        if self._content is not None:
            self._path.write_bytes(self._content)
            self._written = time.monotonic()


def lock_of(path: Path) -> filelock.BaseFileLock:
    """A non-blocking lock; for a path in a bucket, among the processes of this machine only."""
    if is_cloud(path):
        name = hashlib.sha256(os.fspath(path).encode()).hexdigest()
        path = Path(tempfile.gettempdir()) / f"othink_jax-{name[:16]}.lock"
    return filelock.FileLock(path, blocking=False)


def is_locked(path: Path) -> bool | None:
    """Whether the lock of a path is held now; None if unknown.

    It is unknown if the lock file cannot be opened, and in a bucket, where another machine may hold
    the lock. Nothing is written. The check itself holds the lock for a moment.
    """
    lock = lock_of(path)
    try:
        if Path(lock.lock_file).exists():
            with lock:
                pass
    except filelock.Timeout:
        return True
    except OSError:  # owned by another user, or on a read-only disk
        return None
    return None if is_cloud(path) else False


def remove(path: Path) -> None:
    """Remove a directory and its content, if it exists."""
    if is_cloud(path):
        for name in CONFIGS:
            (path / name).unlink(missing_ok=True)
        cast(Any, path).rmtree(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def move(source: Path, target: Path) -> None:
    """Move a directory. In a bucket it may be in both places until the move is complete."""
    remove(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if not is_cloud(source):
        source.rename(target)
        return
    for file in _files_below(source):
        copy_file(file, target / file.relative_to(source))
    remove(source)


def _files_below(directory: Path) -> Iterator[Path]:
    for place in directory.iterdir():
        if place.is_dir():
            yield from _files_below(place)
        else:
            yield place


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file."""
    with source.open("rb") as content, target.open("wb") as out:
        shutil.copyfileobj(content, out, _CHUNK)


@contextlib.contextmanager
def on_disk(directory: Path, patterns: Sequence[str]) -> Iterator[Path]:
    """A directory on disk with the matching files of `directory`, for libraries that need a disk.

    It is `directory` itself if that is on disk.
    """
    if not is_cloud(directory):
        yield directory
        return
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) / directory.name
        place.mkdir()
        for pattern in patterns:
            for file in directory.glob(pattern):
                copy_file(file, place / file.name)
        yield place


def check_output_directory(path: Path) -> None:
    """Raise UserError if no directory can be created at `path`; creates none.

    Called before the work, so that a mistyped name does not lose its results.
    """
    if is_cloud(path):
        probe = path / PROBE
        try:
            probe.write_bytes(b"")
            probe.unlink(missing_ok=True)  # another process of the run may have removed it
        except Exception as error:  # the library, the network or the cloud may raise anything
            raise UserError(f"{path} cannot be written: {first_line(error)}") from error
        return
    there = _nearest_existing(path)
    if not there.is_dir():
        raise UserError(f"{path} cannot be a directory: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: no permission for {there}")


def _nearest_existing(path: Path) -> Path:
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def check_room(path: Path, size: int) -> None:
    """Raise UserError if the disk of `path` has fewer than `size` bytes free; `path` may be absent.

    A bucket has no limit.
    """
    if is_cloud(path):
        return
    there = _nearest_existing(path)
    free = shutil.disk_usage(there).free
    if free < size:
        raise UserError(f"{path} needs {decimal(size)}, but {there} has only {decimal(free)} free")
