"""A synthetic task as a source of examples."""

import hashlib
from typing import cast, get_args

import numpy as np

from othink_jax.config import Task
from othink_jax.data.example import Example, solution_text
from othink_jax.data.synthetic import counting, diagrams, geometry, scenes
from othink_jax.data.synthetic.counting import CountingDifficulty
from othink_jax.data.synthetic.geometry import GeometryDifficulty
from othink_jax.data.synthetic.splits import SPLITS, Split
from othink_jax.errors import UserError

Difficulty = CountingDifficulty | GeometryDifficulty


def _checked(task: str, split: str) -> tuple[Task, Split]:
    if task not in get_args(Task):
        raise UserError(f"there is no task {task!r}; choose one of {', '.join(get_args(Task))}")
    if split not in SPLITS:
        raise UserError(f"task {task} has no split {split!r}; choose one of {', '.join(SPLITS)}")
    if split == "test-ood" and task != "counting":
        raise UserError(f"task {task} has no split test-ood; only counting has")
    return cast(Task, task), split


def _generator(task: Task, split: Split, seed: int, index: int) -> np.random.Generator:
    """The same numbers in every process, and independent ones for every example."""
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
        UserError: there is no such task or split, or the difficulty belongs to the other task.
    """
    task, split = _checked(task, split)
    rng = _generator(task, split, seed, index)
    problem: counting.CountingProblem | geometry.GeometryProblem
    if task == "counting":
        level = difficulty or counting.LEVELS["default"]
        if not isinstance(level, CountingDifficulty):
            raise UserError("task counting takes a CountingDifficulty")
        problem = counting.sample_problem(rng, split, level)
        image = scenes.render(problem.scene)
    else:
        level = difficulty or geometry.LEVELS["default"]
        if not isinstance(level, GeometryDifficulty):
            raise UserError("task geometry takes a GeometryDifficulty")
        problem = geometry.sample_problem(rng, split, level)
        image = diagrams.render(problem.diagram)
    answer = str(problem.answer)
    return Example(
        id=f"{task}-{split}-{seed}-{index}",
        images=(image,),
        question=problem.question,
        answer=answer,
        solution=solution_text(problem.steps, answer),
    )


class SyntheticSource:
    """The first `size` examples of a task's split (a grain RandomAccessDataSource)."""

    def __init__(
        self,
        task: str,
        split: str,
        size: int,
        *,
        seed: int = 0,
        difficulty: Difficulty | None = None,
    ) -> None:
        """Raises UserError as `generate` does."""
        self._task, self._split = _checked(task, split)
        self._size = size
        self._seed, self._difficulty = seed, difficulty

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        return generate(
            self._task, self._split, index, seed=self._seed, difficulty=self._difficulty
        )
