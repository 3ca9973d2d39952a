"""A synthetic task as a source of examples."""

import dataclasses
import hashlib
import operator
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex, cast, get_args

import numpy as np

from othink_jax.data.example import Example, solution_text
from othink_jax.data.synthetic import counting, diagrams, geometry, grounding, scenes
from othink_jax.data.synthetic.counting import CountingDifficulty, CountingProblem
from othink_jax.data.synthetic.geometry import GeometryDifficulty, GeometryProblem
from othink_jax.data.synthetic.grounding import GroundingDifficulty, GroundingProblem
from othink_jax.data.synthetic.splits import SPLITS, Split
from othink_jax.errors import UserError
from othink_jax.tasks import Task

Difficulty = CountingDifficulty | GeometryDifficulty | GroundingDifficulty
Problem = CountingProblem | GeometryProblem | GroundingProblem
# Named difficulties of each task: easy, default, hard.
LEVELS: Mapping[Task, Mapping[str, Difficulty]] = {
    "counting": counting.LEVELS,
    "geometry": geometry.LEVELS,
    "grounding": grounding.LEVELS,
}


def _checked(task: str, split: str) -> tuple[Task, Split]:
    if task not in get_args(Task):
        raise UserError(f"there is no task {task!r}; choose one of {', '.join(get_args(Task))}")
    if split not in SPLITS:
        raise UserError(f"task {task} has no split {split!r}; choose one of {', '.join(SPLITS)}")
    if split == "test-ood" and task != "counting":
        raise UserError(f"task {task} has no split test-ood; only counting has")
    return cast(Task, task), split


def _generator(task: Task, split: Split, seed: int, index: int) -> np.random.Generator:
    """Generator of one example: the same in every process, independent of other examples."""
    name = hashlib.blake2b(f"{task} {split}".encode(), digest_size=8).digest()
    return np.random.default_rng([int.from_bytes(name, "big"), seed, index])


def generate(
    task: str,
    split: str,
    index: int,
    *,
    seed: int = 0,
    difficulty: Difficulty | None = None,
) -> Example:
    """Example number `index` of a task's split; a function of its arguments alone.

    Raises:
      UserError: there is no such task or split, the seed is negative, or the difficulty is another
        task's.
    """
    problem = sample_problem(task, split, index, seed=seed, difficulty=difficulty)
    if isinstance(problem, GeometryProblem):
        image = diagrams.render(problem.diagram)
    else:
        image = scenes.render(problem.scene)
    answer = str(problem.answer)
    return Example(
        id=f"{task}-{split}-{seed}-{index}",
        images=(image,),
        question=problem.question,
        answer=answer,
        solution=solution_text(problem.steps, answer),
    )


def sample_problem(
    task: str,
    split: str,
    index: int,
    *,
    seed: int = 0,
    difficulty: Difficulty | None = None,
) -> Problem:
    """The problem of example number `index`, before rendering; raises as `generate` does."""
    task, split = _checked(task, split)
    if seed < 0:
        raise UserError(f"seed must be >= 0, got {seed}")
    rng = _generator(task, split, seed, index)
    level = difficulty or LEVELS[task]["default"]
    if task == "counting" and isinstance(level, CountingDifficulty):
        return counting.sample_problem(rng, split, level)
    if task == "geometry" and isinstance(level, GeometryDifficulty):
        return geometry.sample_problem(rng, split, level)
    if task == "grounding" and isinstance(level, GroundingDifficulty):
        return grounding.sample_problem(rng, split, level)
    raise UserError(f"task {task} takes a {task.capitalize()}Difficulty")


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
    """The first `size` examples of a task's split (a grain RandomAccessDataSource).

    Raises UserError as `generate` does, and when `size` is below 1.
    """

    task: str  # see config.Task
    split: str  # see splits.Split
    size: int
    _: dataclasses.KW_ONLY
    seed: int = 0
    difficulty: Difficulty | None = None  # the task's default if not given

    def __post_init__(self) -> None:
        _checked(self.task, self.split)
        if self.size < 1:
            raise UserError(f"a synthetic task needs at least one example, got size {self.size}")

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: SupportsIndex) -> Example:
        number = operator.index(index)
        if not 0 <= number < self.size:
            raise IndexError(f"index {number} of a source of {self.size} examples")
        return generate(self.task, self.split, number, seed=self.seed, difficulty=self.difficulty)

    def texts(self) -> Iterator[str]:
        """The settings that the examples are made from, which identify them."""
        yield repr(self)

    def further(self, index: int) -> Mapping[str, Any]:
        """Empty: an example has no row."""
        return {}
