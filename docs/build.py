"""The API page, from the docstrings: `make docs`, or `python docs/build.py OUT`.

It is built only if every public name of the package has a docstring, its own or that of what it
overrides, and every array in a public signature has a shape.
"""

import argparse
import collections.abc
import importlib
import inspect
import pkgutil
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import othink_jax

_BARE = (jax.Array, np.ndarray)


def modules(package: types.ModuleType) -> list[types.ModuleType]:
    """A package and its public modules, in order."""
    names = [
        found.name
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not any(part.startswith("_") for part in found.name.split("."))
    ]
    return [package, *map(importlib.import_module, sorted(names))]


def faults(module: types.ModuleType) -> Iterator[str]:
    """Missing docstrings and shapes of the public names that a module defines, a line each."""
    if not inspect.getdoc(module):
        yield f"{module.__name__} has no docstring"
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        where = f"{module.__name__}.{name}"
        if inspect.isclass(value):
            yield from _of_class(value, where)
        elif inspect.isfunction(value):
            yield from _of_function(value, where)


def _of_class(found: type[Any], where: str) -> Iterator[str]:
    if not found.__dict__.get("__doc__"):
        yield f"{where} has no docstring"
    for name, value in vars(found).items():
        if isinstance(value, property):
            value = value.fget
        if isinstance(value, classmethod | staticmethod):
            value = value.__func__
        if inspect.isfunction(value) and not name.startswith("_"):
            yield from _of_function(value, f"{where}.{name}", getattr(found, name))


def _of_function(function: Any, where: str, seen: Any = None) -> Iterator[str]:
    """`seen` is the function as its class has it, which inherits a docstring."""
    if not inspect.getdoc(function if seen is None else seen):
        yield f"{where} has no docstring"
    for name, hint in _hints(function).items():
        if _has_bare_array(hint):
            yield f"{where}: {name} is an array of a shape that is not said"


def _hints(function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function)
    except NameError:  # a name that is there for type checkers alone
        return {}


def _has_bare_array(hint: Any) -> bool:
    if typing.get_origin(hint) is collections.abc.Callable:  # its own docstring says what it takes
        return False
    return hint in _BARE or any(map(_has_bare_array, typing.get_args(hint)))


def main() -> None:
    """Check, then write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="folder of the pages")
    out = parser.parse_args().out
    documented = modules(othink_jax)
    if found := [fault for module in documented for fault in faults(module)]:
        print(*found, sep="\n", file=sys.stderr)
        raise SystemExit(f"{len(found)} things are not said; no page is written")
    import pdoc

    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc(*(module.__name__ for module in documented), output_directory=out)
    print(out / "index.html")


if __name__ == "__main__":
    main()
