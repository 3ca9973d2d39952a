"""Reward functions, from a completion's text and the example that it answers to a number.

A user's function is named by its location, `package.module:function` or `file.py:function`, and
every process that calls it loads it from there. It is never pickled. State that it keeps between
calls is not shared, because calls are spread over worker processes.
"""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import math
import numbers
import operator
import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from othink_jax.rewards.format import ANSWER_TAGS, AnswerFormat

# Rewards that the graders measure for every completion; see `verdict.Grade`.
GRADED = ("accuracy", "format")

# Largest magnitude of a reward: rewards are summed in float32, which cannot tell close values apart
# beyond it.
_LARGEST = 1e6
_LONGEST = 300  # characters of an error that are kept


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardExample:
    """The example that a completion answers, as reward functions see it."""

    question: str
    answer: str  # the ground truth
    solution: str | None = None  # target of supervised fine-tuning; None if unknown
    # Further columns of the row by name, those that hold plain data other than None: booleans,
    # finite numbers, texts, and lists and dicts of these and of None
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    image_sizes: tuple[tuple[int, int], ...] = ()  # width and height of each image, pixels
    shown_sizes: tuple[tuple[int, int], ...] = ()  # the same after resizing for the model
    answer_format: AnswerFormat = ANSWER_TAGS  # how the answer of a completion is marked

    def answer_in(self, text: str) -> str | None:
        """The answer of a completion, stripped; None if it has none."""
        return self.answer_format.extract(text)


# Fields of it that a stored prediction has beside the question and the ground truth.
EXAMPLE_FIELDS = ("solution", "columns", "image_sizes", "shown_sizes")
ANSWER_FORMAT = "answer_format"  # a further field, if it is not `ANSWER_TAGS`

RewardFunction = Callable[[str, RewardExample], float]


@dataclasses.dataclass(frozen=True)
class Reward:
    """A loaded reward function."""

    name: str  # of the function, for messages and metrics
    path: str  # the path or built-in name it was loaded by
    function: RewardFunction
    maximum: float  # its full value: its attribute `maximum`, or 1
    source: str  # SHA-256 of its source file


@dataclasses.dataclass(frozen=True)
class Scores:
    """Values of reward functions for one completion."""

    values: Mapping[str, float]  # by name of the function; 0 if it failed
    errors: Mapping[str, str]  # the reason, by name of each function that failed


def reward_name(path: str) -> str:
    """The name of the function at a path; for a built-in one, the path itself."""
    return path.rpartition(":")[2]


def load_reward(path: str, known: Mapping[str, RewardFunction]) -> Reward:
    """Load `package.module:function`, `file.py:function`, or a built-in function by its name.

    Args:
      path: a file is relative to the working directory, where a module may lie too.
      known: the built-in functions.

    Raises:
      ValueError: there is no such file, module or function, importing it fails, or it cannot be
        called as `function(text, example)`. The message is one line.
    """
    place, colon, name = path.rpartition(":")
    if not colon:
        if path not in known:
            names = ", ".join((*GRADED, *known))
            raise ValueError(
                f"--reward {path} is not known: give FILE.py:FUNCTION, MODULE:FUNCTION, or one of"
                f" {names}"
            )
        return _checked(path, path, known[path])
    try:
        module = _from_file(place) if place.endswith(".py") else _from_path(place)
    except FileNotFoundError as error:
        raise ValueError(f"--reward {path}: there is no file {place}") from error
    except (Exception, SystemExit) as error:  # a user's module can raise anything
        raise ValueError(f"--reward {path} cannot be imported: {last_line(error)}") from error
    try:
        function = operator.attrgetter(name)(module)
    except AttributeError as error:
        raise ValueError(f"--reward {path}: {place} has no {name}") from error
    return _checked(path, name, function)


def _checked(path: str, name: str, function: Any) -> Reward:
    # A callable object has no source that would tell whether it has changed.
    if not inspect.isfunction(function):
        raise ValueError(f"--reward {path} is no function but {type(function).__name__}")
    try:
        inspect.signature(function).bind("text", "example")
    except TypeError as error:
        raise ValueError(
            f"--reward {path} must take a text and an example, and takes"
            f" {inspect.signature(function)}"
        ) from error
    maximum = getattr(function, "maximum", 1.0)
    if isinstance(maximum, bool) or not isinstance(maximum, int | float):
        raise ValueError(f"--reward {path}: its maximum is {maximum!r}, and no number")
    if not math.isfinite(maximum):
        raise ValueError(f"--reward {path}: its maximum is {maximum}, and must be finite")
    file = inspect.getsourcefile(function)
    if file is None or not Path(file).is_file():
        raise ValueError(f"--reward {path}: nothing tells which file it stands in")
    source = hashlib.sha256(Path(file).read_bytes()).hexdigest()
    return Reward(name, path, function, float(maximum), source)


def _from_file(place: str) -> ModuleType:
    """Import a file; its folder is importable, as a script's, but shadows nothing installed."""
    file = Path(place).resolve()
    # A name from the content is the same wherever the file lies, and shadows no other module.
    name = f"{file.stem}_{hashlib.sha256(file.read_bytes()).hexdigest()[:12]}"
    loaded = sys.modules.get(name)
    if loaded is not None and loaded.__file__ == str(file):
        return loaded
    _add_to_path(str(file.parent))
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None  # never for a file that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _from_path(place: str) -> ModuleType:
    _add_to_path(os.getcwd())
    return importlib.import_module(place)


def _add_to_path(folder: str) -> None:
    if folder not in sys.path:
        sys.path.append(folder)


def why_all_failed(reward: Reward, scores: Sequence[Scores]) -> str | None:
    """The reason if a function failed on all of these completions, else None."""
    errors = [score.errors.get(reward.name) for score in scores]
    return errors[-1] if errors and all(errors) else None


def last_line(error: BaseException) -> str:
    """The last line of an error's traceback, as one line that can be printed."""
    text = "".join(traceback.format_exception_only(error)).rstrip()
    line = (text.splitlines() or [type(error).__name__])[-1]
    cut = line[:_LONGEST] + "..." * (len(line) > _LONGEST)
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in cut)


def call_reward(reward: Reward, text: str, example: RewardExample) -> float:
    """The value of a function for one completion: a number, or a bool as 0 or 1.

    Raises:
      TypeError: it is neither.
      ValueError: it is not finite, or further than a million from 0.
      BaseException: whatever the function raises.
    """
    value = reward.function(text, example)
    if not isinstance(value, numbers.Real | np.bool_):
        raise TypeError(f"a reward must be a number or a bool, got {type(value).__name__}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a reward must be finite, got {number}")
    if abs(number) > _LARGEST:
        raise ValueError(f"a reward must lie within {_LARGEST:g} of 0, got {number:g}")
    return number
