"""The API page: nothing public is left without a docstring, no array without a shape."""

import importlib.util
import sys
import types
from pathlib import Path

import pytest

import othink_jax

_FILE = Path(__file__).parents[1] / "docs" / "build.py"


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("docs_build", _FILE)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_every_public_name_has_a_docstring_and_every_array_a_shape(build):
    found = [fault for module in build.modules(othink_jax) for fault in build.faults(module)]
    assert found == []


SOURCE = '''
import numpy as np
from collections.abc import Callable
from jaxtyping import Float


class Kept:
    """Says what it is."""

    def told(self, x: Float[np.ndarray, "n"]) -> None:
        """Says what it does."""

    def untold(self) -> None: ...

    @property
    def bare(self) -> tuple[np.ndarray, int]:
        """Of no shape."""


class Silent:
    pass


class Heir(Kept):
    """Its docstring is its own, those of its methods may be inherited."""

    def told(self, x: Float[np.ndarray, "n"]) -> None: ...


def bare(x: list[np.ndarray]) -> None:
    """Of no shape."""


def calls(function: Callable[[np.ndarray], None]) -> None:
    """What it takes is said there."""


def _private(x: np.ndarray) -> None: ...
'''


def test_what_is_not_said_is_named(build, monkeypatch):
    module = types.ModuleType("made")
    monkeypatch.setitem(sys.modules, "made", module)
    exec(SOURCE, module.__dict__)
    shapeless = "is an array of a shape that is not said"
    assert list(build.faults(module)) == [
        "made has no docstring",
        "made.Kept.untold has no docstring",
        f"made.Kept.bare: return {shapeless}",
        "made.Silent has no docstring",
        f"made.bare: x {shapeless}",
    ]


def test_the_pages_are_written_only_if_all_is_said(build, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["build.py", str(tmp_path / "pages")])
    monkeypatch.setattr(build, "faults", lambda module: iter(["something"]))
    with pytest.raises(SystemExit, match="no page is written"):
        build.main()
    assert "something" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()
    monkeypatch.setattr(build, "faults", lambda module: iter(()))
    monkeypatch.setattr(
        build, "modules", lambda package: [importlib.import_module("othink_jax.rl")]
    )
    build.main()
    assert "grpo_loss" in (tmp_path / "pages" / "othink_jax" / "rl.html").read_text()
