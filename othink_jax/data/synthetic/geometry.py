"""Geometry reasoning: a drawn diagram, a text that names its angles, an answer in whole degrees.

The given measures appear only in the diagram. Answers are the bare number: `70`, not `70°`.
"""

import dataclasses
import functools

import numpy as np

from othink_jax.data.synthetic import diagrams
from othink_jax.data.synthetic.diagrams import Diagram
from othink_jax.data.synthetic.figures import KINDS, Givens, Kind
from othink_jax.data.synthetic.splits import Split, draw, pick
from othink_jax.errors import UserError

_PHRASES = (
    "{fact} What is angle {asked}?",
    "{fact} Find angle {asked}.",
    "{fact} What is the size of angle {asked}?",
)
_BY_NAME = {kind.name: kind for kind in KINDS}
# Neighbouring angles at a crossing of lines look alike near 90 degrees.
_CLOSE_TO_RIGHT = 15
_LEAST_ANSWER = 20  # degrees
_MAX_CONTENTS = 100  # tries before a difficulty is rejected
_CROSSINGS = ("corresponding", "alternate", "co-interior")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometryDifficulty:
    """Difficulty of the figures."""

    step: int = 5  # every angle of a problem is a multiple of it, degrees
    min_angle: int = 35  # smallest angle that holds a number, degrees
    kinds: tuple[str, ...] = tuple(_BY_NAME)  # names of `figures.KINDS`

    def __post_init__(self) -> None:
        if self.step not in (1, 2, 5, 10):
            raise UserError(f"difficulty: step must be 1, 2, 5 or 10 degrees, got {self.step}")
        if not 30 <= self.min_angle <= 45:
            raise UserError(f"difficulty: min_angle must be in [30, 45], got {self.min_angle}")
        if unknown := sorted(set(self.kinds) - set(_BY_NAME)):
            raise UserError(f"difficulty: no such kind of figure: {', '.join(unknown)}")
        if not self.kinds:
            raise UserError("difficulty: name at least one kind of figure")


LEVELS = {
    "easy": GeometryDifficulty(
        step=10, kinds=("corresponding", "alternate", "co-interior", "diameter", "bisected")
    ),
    "default": GeometryDifficulty(),
    "hard": GeometryDifficulty(step=1),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometryProblem:
    """A diagram and the question about it."""

    kind: Kind
    givens: Givens  # degrees
    diagram: Diagram
    question: str

    @property
    def answer(self) -> int:
        """The angle that is asked for, a whole number of degrees."""
        return round(self.kind.answer(*self.givens))

    @property
    def steps(self) -> str:
        """The derivation of the answer as text."""
        return self.kind.steps(*self.givens)

    @property
    def content(self) -> str:
        """See `content`."""
        return content(self.kind, self.givens)


def content(kind: Kind, givens: Givens) -> str:
    """The content that decides a problem's split: its kind and its given angles."""
    ordered = sorted(givens) if kind.symmetric else givens
    return f"figure {kind.name} " + ",".join(str(given) for given in ordered)


@functools.cache
def legal_givens(kind_name: str, step: int, min_angle: int) -> tuple[Givens, ...]:
    """All givens of a kind at a difficulty, in rising order."""
    kind = _BY_NAME[kind_name]
    grid = range(step * -(-min_angle // step), 180, step)
    candidates = [(a,) for a in grid] if kind.arity == 1 else [(a, b) for a in grid for b in grid]

    def legal(givens: Givens) -> bool:
        answer = kind.answer(*givens)
        return (
            answer % step == 0
            and _LEAST_ANSWER <= answer <= 180 - _LEAST_ANSWER
            and all(min_angle <= angle <= 180 - min_angle for angle in kind.roomy(*givens))
            and not (kind.name in _CROSSINGS and abs(givens[0] - 90) < _CLOSE_TO_RIGHT)
        )

    return tuple(givens for givens in candidates if legal(givens))


def sample_problem(
    rng: np.random.Generator, split: Split, difficulty: GeometryDifficulty
) -> GeometryProblem:
    """A problem whose content belongs to the split.

    Raises:
      UserError: the difficulty leaves the split nothing that can be drawn.
    """
    kinds = [kind for kind in KINDS if kind.name in difficulty.kinds for _ in range(kind.weight)]

    def propose(rng: np.random.Generator) -> tuple[str, tuple[Kind, Givens]]:
        kind = pick(rng, kinds)
        givens = pick(rng, legal_givens(kind.name, difficulty.step, difficulty.min_angle))
        return content(kind, givens), (kind, givens)

    for _ in range(_MAX_CONTENTS):
        kind, givens = draw(rng, split, propose)
        diagram = diagrams.lay_out(rng, kind.sketch(*givens))
        # A few narrow figures have no legible layout and are never shown.
        if diagram is not None:
            question = pick(rng, _PHRASES).format(fact=kind.fact, asked=kind.asked)
            return GeometryProblem(kind=kind, givens=givens, diagram=diagram, question=question)
    raise UserError(f"difficulty: no figure of the {split} split can be drawn legibly: widen it")
