"""Reward functions: loaded from where they stand, called within limits, summed by weights."""

import dataclasses
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from othink_jax.config import RewardConfig
from othink_jax.errors import UserError
from othink_jax.rewards import Grade, GradingPool, RewardExample, Scores, load, measured
from othink_jax.training.run_rewards import figures, record, total

EXAMPLE = RewardExample(
    question="Where?", answer="4", solution="s", columns={"box": [1, 2]}, image_sizes=((8, 6),)
)


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file of functions, in the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def written(text: str, name: str = "own.py") -> Path:
        (tmp_path / name).write_text(textwrap.dedent(text))
        return tmp_path / name

    return written


WAYS = """
    import os, time
    import numpy as np
    from fractions import Fraction

    VALUES = {
        "bool": True, "whole": 2, "float": -0.5, "fraction": Fraction(1, 4), "text": "1",
        "float32": np.float32(0.25), "truth": np.bool_(True), "nothing": None,
        "nan": float("nan"), "inf": float("inf"), "large": 2e6,
    }

    def way(text, example):
        if text == "raise":
            raise KeyError("boxes")
        if text == "exit":
            raise SystemExit(3)
        if text == "sleep":
            time.sleep(600)
        if text == "die":
            os.abort()
        if text == "memory":
            return bool(bytearray(2 << 30))
        return VALUES[text]

    def told(text, example):
        assert (example.question, example.answer, example.solution) == ("Where?", "4", "s")
        assert example.shown_sizes == ()
        return sum(example.columns["box"]) + example.image_sizes[0][1]

    told.maximum = 10
"""


def test_values_and_each_way_to_have_none_stand_beside_each_other(write):
    write(WAYS)
    rewards = [load("own.py:way"), load("own.py:told")]
    assert [(reward.name, reward.maximum) for reward in rewards] == [("way", 1.0), ("told", 10.0)]
    expected = {
        "bool": 1.0,
        "raise": "KeyError: 'boxes'",
        "whole": 2.0,
        "sleep": "it took longer than 1 s",
        "float": -0.5,
        "nan": "ValueError: a reward must be finite, got nan",
        "die": "its process died",
        "fraction": 0.25,
        "inf": "ValueError: a reward must be finite, got inf",
        "memory": "MemoryError",
        "float32": 0.25,
        "large": "ValueError: a reward must lie within 1e+06 of 0, got 2e+06",
        "truth": 1.0,
        "text": "TypeError: a reward must be a number or a bool, got str",
        "nothing": "TypeError: a reward must be a number or a bool, got NoneType",
        "exit": "SystemExit: 3",
    }
    with GradingPool(timeout_s=1.0, rewards=rewards) as pool:
        scores = pool.score_all(list(expected), [EXAMPLE] * len(expected))
    for score, wanted in zip(scores, expected.values(), strict=True):
        value, error = (wanted, {}) if isinstance(wanted, float) else (0.0, {"way": wanted})
        assert score == Scores({"way": value, "told": 9.0}, error)


def test_a_source_that_changes_after_the_start_gives_no_values(write):
    file = write("def own(text, example): return 1")
    with GradingPool(rewards=[load("own.py:own")], workers=1) as pool:
        file.write_text("def own(text, example): return 2")
        (score,) = pool.score_all(["x"], [EXAMPLE])
    assert score.errors == {"own": "RuntimeError: the source has changed since the run began"}


def test_a_module_is_found_from_the_working_directory_and_a_file_finds_its_neighbours(write):
    write("def helped(): return 0.5", "its_helper.py")
    write("import its_helper\ndef own(text, example): return its_helper.helped()", "its_module.py")
    try:
        for path in ("its_module.py:own", "its_module:own"):
            assert load(path).function("", EXAMPLE) == 0.5
    finally:
        for name in ("its_helper", "its_module"):
            sys.modules.pop(name, None)


def test_a_file_hides_no_module_of_its_name_and_is_loaded_as_it_is_now(write):
    write("def own(text, example): return 1", "json.py")
    assert load("json.py:own").function("", EXAMPLE) == 1
    write("def own(text, example): return 2", "json.py")
    assert load("json.py:own").function("", EXAMPLE) == 2
    import json

    assert json.loads("1") == 1


def test_equal_files_in_two_folders_are_each_loaded_from_where_they_stand(write, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write("def own(text, example): return __file__", f"{folder}/own.py")
        assert load(f"{folder}/own.py:own").function("", EXAMPLE) == str(
            tmp_path / folder / "own.py"
        )


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("", "own.py:f", r"own\.py:f: own\.py has no f"),
        ("", "else.py:f", r"else\.py:f: there is no file else\.py"),
        ("", "no_such_module:f", "cannot be imported: ModuleNotFoundError: No module named 'no_su"),
        ("1 / 0", "own.py:f", "cannot be imported: ZeroDivisionError: division by zero"),
        ("f(", "own.py:f", r"cannot be imported: SyntaxError: '\(' was never closed"),
        ("exit(2)", "own.py:f", "cannot be imported: SystemExit: 2"),
        ("f = 3", "own.py:f", "is no function but int"),
        ("class f: pass", "own.py:f", "is no function but type"),
        ("def f(text): return 1", "own.py:f", r"take a text and an example, and takes \(text\)"),
        ("def f(a, b, c): return 1", "own.py:f", r"and takes \(a, b, c\)"),
        ("def f(a, b): return 1\nf.maximum = '1'", "own.py:f", "its maximum is '1', and no number"),
        ("", "no_such_name", "is not known: .*or one of accuracy, format"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(write, text, path, message):
    write(text)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert str(caught.value).startswith(f"--reward {path}")
    assert "\n" not in str(caught.value)


def test_what_is_given_is_read_with_weights_of_one_or_as_they_stand():
    config = RewardConfig(functions=["accuracy", "a=b/own.py:f=0.5", "pkg.mod:C.g=2e-1"])
    assert config.weights == {"accuracy": 1.0, "a=b/own.py:f": 0.5, "pkg.mod:C.g": 0.2}
    assert RewardConfig(format_weight=0.3).weights == {"accuracy": 1.0, "format": 0.3}


def test_a_relative_file_is_found_from_where_the_run_began(write, tmp_path):
    write("")
    config = RewardConfig(functions=("own.py:f=2", "else.py:g", "accuracy"))
    located = config.with_absolute_paths(tmp_path).functions
    assert located == (f"{tmp_path}/own.py:f=2", "else.py:g", "accuracy")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("accuracy=-1",), "accuracy: the weight must be a number from 0 to 1e\\+06, got -1"),
        (("accuracy=x",), "got x"),
        (("accuracy=nan",), "got nan"),
        (("accuracy=",), "got $"),
        (("accuracy=0", "format=0"), "at least one weight must be above 0"),
        (("own.py:f", "else.py:f"), "another function is called f too"),
        (("own.py:std",), "std is the name of another metric"),
        (("own.py:accuracy",), "accuracy is the name of another metric"),
        (("own.py",), "names no function"),
        (("own.py:",), "names no function"),
        (("",), "the name of the function is missing"),
    ],
)
def test_what_makes_no_reward_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        RewardConfig(functions=given)


def test_the_weight_of_eq_1_does_not_go_with_functions():
    with pytest.raises(UserError, match="give --reward format=2"):
        RewardConfig(functions=("accuracy",), format_weight=2.0)


GRADES = [Grade(1.0, 0.0), Grade(0.0, 1.0), Grade(1.0, 1.0)]
LATE = Scores({"own": 0.0}, {"own": "late"})
SCORES = [
    Scores({"own": 0.25}, {}),
    LATE,
    Scores({"own": 4.0}, {}),
]


def test_named_parts_of_eq_1_give_it_bit_for_bit():
    for alpha in (1.0, 0.3, 1 / 3):
        eq_1 = total(RewardConfig(format_weight=alpha), GRADES, SCORES)
        named = RewardConfig(functions=("accuracy", f"format={alpha}"))
        np.testing.assert_array_equal(total(named, GRADES, SCORES), eq_1)
        assert eq_1.dtype == total(named, GRADES, SCORES).dtype == np.float32


def test_the_reward_is_the_weighted_sum_of_what_is_named_and_of_nothing_else():
    config = RewardConfig(functions=("own.py:own=2", "format=0.5", "accuracy=0"))
    assert total(config, GRADES, SCORES).tolist() == [0.5, 0.5, 8.5]


def test_figures_go_by_name_over_all_processes(write):
    write("def own(text, example): return 1\nown.maximum = 4")
    rewards = [load("own.py:own")]
    other = Scores({"own": 2.0}, {})
    records = [record(rewards, [other, SCORES[2]]), record(rewards, [LATE, LATE])]
    assert records[1]["reasons"] == ["own: late"]
    assert figures(rewards, records) == {
        "reward_own": 1.5,
        "reward_own_full_share": 0.25,
        "reward_failed": 2,
    }
    assert record([], SCORES) == {} == figures([], [{}])


def test_a_test_is_measured_by_each_function_and_by_their_sum(write):
    write("def own(text, example): return 1\nown.maximum = 0.7")
    made = measured({"own.py:own": 1.0, "format": 0.1}, [load("own.py:own")], GRADES, SCORES)
    assert {name: one["failed"] for name, one in made.items()} == {
        "own": 1,
        "format": 0,
        "total": 1,
    }
    assert made["total"]["values"] == pytest.approx([0.25, 0.1, 4.1])
    # A value that is the maximum in float32 reaches it.
    for name, value in {"own": 0.7, "total": np.float32(0.7) + np.float32(0.1)}.items():
        assert made[name]["maximum"] == np.float32(value)


def test_an_example_travels_to_a_worker_as_it_is(write):
    columns = {"nested": [{"a": None, "b": [1.5, "ü\ud800", True]}]}
    example = dataclasses.replace(EXAMPLE, columns=columns, shown_sizes=((28, 56),))
    write(f"def same(text, example): return repr(example) == {repr(example)!a}")
    with GradingPool(rewards=[load("own.py:same")], workers=1) as pool:
        assert pool.score_all(["x"], [example]) == [Scores({"same": 1.0}, {})]
