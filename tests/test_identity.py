"""Code by its name and a digest of its source."""

import functools
import importlib
import os
import subprocess
import sys

import pytest

from othink_jax.identity import code_name, find_code, source_digest
from othink_jax.rl import kl_k1, kl_k2
from othink_jax.training.grpo import GRPOTrainer


def make(factor, **more):
    class Made:
        loss = staticmethod(functools.partial(print, **more))

        def scaled(self, x):
            return factor * x

    return Made


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module of one's own, and imports it as it is now."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text):
        (tmp_path / "own_code.py").write_text(text)
        importlib.invalidate_caches()
        sys.modules.pop("own_code", None)
        sys.dont_write_bytecode = True
        return importlib.import_module("own_code")

    yield write
    sys.modules.pop("own_code", None)


def test_a_name_is_found_again():
    assert code_name(GRPOTrainer) == "othink_jax.training.grpo:GRPOTrainer"
    assert find_code("othink_jax.training.grpo:GRPOTrainer") is GRPOTrainer
    assert find_code("othink_jax.training.grpo:GRPOTrainer.step") is GRPOTrainer.step


@pytest.mark.parametrize(
    "name", ["no_such_module:x", "othink_jax.rl:no_such_name", "__main__:x", "a:f.<locals>.b"]
)
def test_what_cannot_be_imported_is_an_import_error(name):
    with pytest.raises(ImportError):
        find_code(name)


def test_a_changed_source_is_another_digest(module):
    before = source_digest(module("class Own:\n    x = 1\n").Own)
    assert source_digest(module("class Own:\n    x = 1\n").Own) == before
    assert source_digest(module("class Own:\n    x = 2\n").Own) != before
    assert source_digest(module("helper = 3\nclass Own:\n    x = 1\n").Own) != before


def test_a_class_is_told_by_the_source_of_its_bases(module):
    first = module("class Base:\n    x = 1\n").Base
    second = module("class Base:\n    x = 2\n").Base
    assert source_digest(type("Own", (first,), {})) != source_digest(type("Own", (second,), {}))


def test_what_a_function_encloses_tells_its_classes_apart():
    assert source_digest(make(2)) == source_digest(make(2))
    assert source_digest(make(2)) != source_digest(make(3))
    assert source_digest(make(kl_k1)) != source_digest(make(kl_k2))
    assert source_digest(make(2, end="")) != source_digest(make(2, end="\n"))
    assert source_digest(make((None, 1))) != source_digest(make((1, None)))
    assert source_digest(make(None, end="")) != source_digest(make(None))
    assert source_digest(make(None)) != source_digest(make(2))


def both(one, other):
    def made():
        return one, other

    return made


def test_nothing_is_a_value_that_can_be_enclosed():
    assert source_digest(both(None, 1)) != source_digest(both(1, None))


def test_the_digest_of_a_set_is_the_same_in_every_process(tmp_path):
    (tmp_path / "own.py").write_text(
        "def make(words):\n    def has(x):\n        return x in words\n    return has\n"
    )
    program = (
        "import own\nfrom othink_jax.identity import source_digest\n"
        "print(source_digest(own.make(set('alpha beta gamma delta epsilon zeta'.split()))))\n"
        "print(source_digest(own.make(set('alpha beta'.split()))))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={
                **os.environ,
                "PYTHONHASHSEED": str(seed),
                "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            },
        ).stdout
        for seed in range(3)
    }
    (said,) = found
    assert len(set(said.split())) == 2


def test_values_that_hold_themselves_have_an_end():
    endless = [1]
    endless.append(endless)
    assert source_digest(make(endless)) == source_digest(make(endless))
