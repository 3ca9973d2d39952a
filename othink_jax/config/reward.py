"""The settings of rewards."""

import dataclasses
import math
import re
from pathlib import Path

from othink_jax.config.checks import require
from othink_jax.config.data import DataConfig
from othink_jax.config.options import RewardOption
from othink_jax.tasks import Grader, Task

# Names that other metrics have, see `training.records`.
_TAKEN = ("accuracy", "format", "std", "failed", "total")
_FULL = "_full_share"
_MOST = 1e6  # largest weight; see `rewards.functions`
# The weight follows the last `=`, and holds no characters of a path.
_GIVEN = re.compile(r"(.+?)(?:=([^=:/]*))?", re.DOTALL)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """R = R_accuracy + format_weight * R_format (Eq. 1), or a weighted sum of functions."""

    # A reward function that replaces Eq. 1: `accuracy`, `format` or another name that `othink-jax
    # recipes` lists, or a Python function of a text and an example, as `file.py:function` or
    # `package.module:function`; and its weight, 1 if not given. May be given several times
    functions: RewardOption = ()
    format_weight: float = 1.0  # alpha of Eq. 1
    grader: Grader = "strict"  # `r1v` reproduces R1-V's published verdicts, quirks included
    # Task of a data set's questions. R1-V's grader has one rule for counting and one for geometry,
    # and must be told; the strict one treats both alike. For grounding, an answer is right if its
    # box has an IoU of at least 0.5 with the true box, in the same coordinates
    grade_as: Task | None = None
    # Wall-clock limit for one completion by one grader or function, seconds
    grading_timeout_s: float = 5.0
    # Number of processes that grade what the fast path cannot, and that call reward functions
    grading_workers: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "functions", tuple(self.functions))
        require(
            0 <= self.format_weight < math.inf,
            f"format_weight must be >= 0 and finite, got {self.format_weight}",
        )
        require(
            self.grading_timeout_s > 0,
            f"grading_timeout_s must be > 0, got {self.grading_timeout_s}",
        )
        require(
            self.grading_workers >= 1, f"grading_workers must be >= 1, got {self.grading_workers}"
        )
        if self.functions:
            require(
                self.format_weight == 1,
                "--format-weight belongs to Eq. 1, and --reward takes its place: give --reward"
                f" format={self.format_weight:g}",
            )
            check_rewards(self.functions)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each function by name or path, in the order given; those of Eq. 1 if none."""
        if not self.functions:
            return {"accuracy": 1.0, "format": self.format_weight}
        return dict(map(_read, self.functions))

    def with_absolute_paths(self, directory: Path) -> "RewardConfig":
        """This config, with relative files that exist in `directory` made absolute."""
        return dataclasses.replace(
            self,
            functions=tuple(
                str(directory / given) if _stands_in(directory, given) else given
                for given in self.functions
            ),
        )

    def task_of(self, data: DataConfig) -> Task | None:
        """Task of this data's questions, if it is known.

        Raises:
          UserError: the grader needs a task and none is known, or it has no rule for the task, or
            it cannot find answers that are marked in this way.
        """
        task = data.task or self.grade_as
        require(
            self.grader != "r1v" or task is not None,
            "--grader r1v with a --dataset needs --grade-as counting or --grade-as geometry",
        )
        require(
            self.grader != "r1v" or task != "grounding",
            "--grader r1v has no rule for grounding: leave it out",
        )
        require(
            self.grader != "r1v" or (data.answer_tag == "answer" and data.answer_pattern is None),
            "--grader r1v reads <answer> tags alone: no --answer-tag, no --answer-pattern",
        )
        return task


def check_rewards(given: tuple[str, ...]) -> None:
    """Raise UserError unless these can make a reward; whether they can be loaded is not checked.

    Args:
      given: at least one `NAME_OR_PATH` or `NAME_OR_PATH=WEIGHT`.
    """
    read = [_read(each) for each in given]
    names = [name_of(path) for path, _ in read]
    for (path, _), name in zip(read, names, strict=True):
        require(
            all(part.isidentifier() for part in name.split(".")) and not path.endswith(".py"),
            f"--reward {path} names no function: give FILE.py:FUNCTION, MODULE:FUNCTION, or a name"
            " that `othink-jax recipes` lists",
        )
        require(
            ":" not in path or not (name in _TAKEN or name.endswith(_FULL)),
            f"--reward {path}: {name} is the name of another metric; give the function another",
        )
        require(
            names.count(name) == 1,
            f"--reward {path}: another function is called {name} too, and metrics go by that name",
        )
    require(any(weight for _, weight in read), "--reward: at least one weight must be above 0")


def name_of(path: str) -> str:
    """Name of a function in the metrics: the last part of its path."""
    return path.rpartition(":")[2]


def _read(given: str) -> tuple[str, float]:
    """Parse `NAME_OR_PATH` or `NAME_OR_PATH=WEIGHT` into name or path, and weight."""
    match = _GIVEN.fullmatch(given)
    require(match is not None, "--reward: the name of the function is missing")
    assert match is not None
    path, weight = match.groups()
    try:
        number = 1.0 if weight is None else float(weight)
    except ValueError:
        number = math.nan
    require(
        0 <= number <= _MOST,
        f"--reward {path}: the weight must be a number from 0 to {_MOST:g}, got {weight}",
    )
    return path, number


def _stands_in(directory: Path, given: str) -> bool:
    file = _read(given)[0].rpartition(":")[0]
    return file.endswith(".py") and (directory / file).is_file()
