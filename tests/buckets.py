"""A local stand-in for Google's object store: what is written to `gs://` lies below a directory.

It has what sets a bucket apart from a disk. There are no directories beside the names of objects,
an object appears when all of it is written, and nothing can be renamed or appended to.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
from etils.epath import backend
from fsspec.registry import _registry
from orbax.checkpoint._src.path import gcs_utils

SETTING = "TEST_BUCKETS"  # the environment variable that names the directory


class Buckets(fsspec.AbstractFileSystem):
    """`gs://BUCKET/NAME` as the file BUCKET/NAME of the directory."""

    protocol = ("gs", "gcs")
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> str:
        path = os.fspath(path)
        for prefix in ("gs://", "gcs://", root() + "/"):
            path = path.removeprefix(prefix)
        return path.strip("/")

    def _local(self, path: Any) -> str:
        return f"{root()}/{self._strip_protocol(path)}"

    def ls(self, path: Any, detail: bool = True, **_: Any) -> list[Any]:
        own = self._strip_protocol(path)
        local = Path(self._local(path))
        if local.is_file():
            return [self.info(path)] if detail else [own]
        names = sorted(os.listdir(local)) if _holds_objects(local) else []
        names = [name for name in names if _holds_objects(local / name)]
        if not names:
            raise FileNotFoundError(path)
        found = [f"{own}/{name}" for name in names]
        return [self.info(each) for each in found] if detail else found

    def info(self, path: Any, **_: Any) -> dict[str, Any]:
        own, local = self._strip_protocol(path), Path(self._local(path))
        if not _holds_objects(local):
            raise FileNotFoundError(path)
        kind = "file" if local.is_file() else "directory"
        size = local.stat().st_size if kind == "file" else 0
        return {"name": own, "size": size, "type": kind}

    def exists(self, path: Any, **_: Any) -> bool:
        return _holds_objects(Path(self._local(path)))

    def isdir(self, path: Any) -> bool:
        return self.exists(path) and Path(self._local(path)).is_dir()

    def isfile(self, path: Any) -> bool:
        return Path(self._local(path)).is_file()

    def mkdir(self, path: Any, **_: Any) -> None:
        pass

    def makedirs(self, path: Any, exist_ok: bool = False) -> None:
        pass

    def rm_file(self, path: Any) -> None:
        os.remove(self._local(path))

    def rm(self, path: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        local = Path(self._local(path))
        if not _holds_objects(local):
            raise FileNotFoundError(path)
        if local.is_file():
            local.unlink()
        elif recursive:
            for file in sorted(file for file in local.rglob("*") if file.is_file()):
                file.unlink()
        else:
            raise IsADirectoryError(path)

    def mv(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("nothing can be renamed in a bucket")

    rename = mv_file = mv

    def _open(self, path: Any, mode: str = "rb", **options: Any) -> Any:
        assert "a" not in mode, "nothing can be appended to in a bucket"
        local = self._local(path)
        if "r" in mode:
            return open(local, "rb")
        os.makedirs(os.path.dirname(local), exist_ok=True)
        return _Upload(local)

    def cp_file(self, source: Any, target: Any, **_: Any) -> None:
        self.pipe_file(target, self.cat_file(source))

    def created(self, path: Any) -> Any:
        return None

    modified = created


class _Upload(io.BytesIO):
    """An object that is there when it is closed, and not before."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def close(self) -> None:
        if not self.closed:
            unfinished = Path(f"{root()}/.upload-{os.getpid()}-{id(self)}")
            unfinished.write_bytes(self.getvalue())
            unfinished.replace(self._path)
        super().close()


def _holds_objects(place: Path) -> bool:
    return place.is_file() or (place.is_dir() and any(file.is_file() for file in place.rglob("*")))


def root() -> str:
    return os.environ[SETTING]


def install(directory: Path, patch: Callable[[Any, str, Any], None] = setattr) -> None:
    """Let `gs://` lead there, in fsspec, in epath and in Orbax.

    Args:
      directory: made if it is not there.
      patch: sets an attribute of a module.
    """
    directory.mkdir(parents=True, exist_ok=True)
    os.environ[SETTING] = str(directory)
    for name in Buckets.protocol:
        fsspec.register_implementation(name, Buckets, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()

    def store(path: str) -> dict[str, Any]:
        bucket, name = gcs_utils.parse_gcs_path(path, add_trailing_slash=False)
        return {"driver": "file", "path": f"{directory}/{bucket}/{name}"}

    patch(gcs_utils, "get_kvstore_for_gcs", store)
    patch(gcs_utils, "is_hierarchical_namespace_enabled", lambda path: False)


def uninstall() -> None:
    """Undo what `install` does to fsspec and to epath."""
    for name in Buckets.protocol:
        _registry.pop(name, None)
    backend.fsspec_backend._get_filesystem.cache_clear()
