"""Names and digests of code, so that a run is continued by the code that made it, or not at all."""

import functools
import hashlib
import importlib
import inspect
import operator
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_OURS = Path(__file__).parent
_INSTALLED = tuple(
    Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")
)
_PLAIN = (str, bytes, int, float, complex, bool, type(None))


def code_name(thing: Any) -> str:
    """Import path of a class or a function, as `package.module:name`."""
    return f"{thing.__module__}:{thing.__qualname__}"


def find_code(name: str) -> Any:
    """The object at `package.module:name`.

    Raises:
      ImportError: it cannot be imported: the module is a script, or the name is local to a
        function.
    """
    module, _, attribute = name.partition(":")
    if module == "__main__" or "<" in attribute:
        raise ImportError(f"{name} stands in a script or inside a function")
    try:
        return operator.attrgetter(attribute)(importlib.import_module(module))
    except AttributeError as error:
        raise ImportError(str(error)) from error


def source_digest(thing: Any) -> str:
    """Digest of the source files of a class or a function, and of the values it closes over.

    The files are those of the class, of its bases and of the functions that they hold. Installed
    packages and this one are excluded: a run records their versions. Closures of one function
    differ by the values that they capture.
    """
    made = hashlib.sha256()
    for part in _parts(thing, {}):
        made.update(f"{len(part)} {part}".encode())
    return made.hexdigest()


def _parts(thing: Any, seen: dict[int, Any]) -> Iterator[str]:
    """Texts that change when the code does; `seen` keeps objects alive, so that ids stay unique."""
    if isinstance(thing, _PLAIN):
        yield repr(thing)
    elif id(thing) in seen:
        return
    elif isinstance(thing, set | frozenset):  # in an order that is the same in every process
        yield from sorted(" ".join(_parts(value, dict(seen))) for value in thing)
    elif isinstance(thing, list | tuple):
        seen[id(thing)] = thing
        for value in thing:
            yield from _parts(value, seen)
    elif isinstance(thing, dict):
        seen[id(thing)] = thing
        for key, value in thing.items():
            yield repr(key)
            yield from _parts(value, seen)
    elif isinstance(thing, staticmethod | classmethod):
        yield from _parts(thing.__func__, seen)
    elif isinstance(thing, functools.partial):
        yield from _parts((thing.func, thing.args, thing.keywords), seen)
    elif inspect.isclass(thing):
        seen[id(thing)] = thing
        yield from _file_of(thing)
        if not _is_installed(thing):
            yield from _parts((thing.__bases__, list(vars(thing).values())), seen)
    elif inspect.isfunction(thing):
        seen[id(thing)] = thing
        yield from _file_of(thing)
        if not _is_installed(thing):
            cells = thing.__closure__ or ()
            enclosed = [cell.cell_contents for cell in cells if _is_filled(cell)]
            yield from _parts((enclosed, thing.__defaults__, thing.__kwdefaults__), seen)
    else:
        yield code_name(type(thing))


def _file_of(thing: Any) -> Iterator[str]:
    yield code_name(thing)
    if not _is_installed(thing):
        file = _source(thing)
        yield hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else ""


def _is_installed(thing: Any) -> bool:
    file = _source(thing)
    return file is None or any(file.is_relative_to(place) for place in (_OURS, *_INSTALLED))


def _source(thing: Any) -> Path | None:
    try:
        file = inspect.getsourcefile(thing)
    except TypeError:  # built into the interpreter
        return None
    return None if file is None or not Path(file).is_file() else Path(file).resolve()


def _is_filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:  # the variable is not yet assigned
        return False
    return True
