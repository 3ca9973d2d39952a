"""Visual counting: CLEVR-like scenes and questions about how many things there are."""

import dataclasses
import functools

import numpy as np

from othink_jax.data.synthetic import scenes, sprites
from othink_jax.data.synthetic.scenes import Backdrop, Look, Scene, SceneDifficulty
from othink_jax.data.synthetic.splits import Split, draw, pick

_TOTAL_PHRASES = (
    "How many different items are there in the image?",
    "How many objects are there?",
    "How many objects can you see?",
    "Count the objects in the image.",
)
_SUBSET_PHRASES = (
    "How many {things} are there?",
    "How many {things} can you see?",
    "How many {things} are in the image?",
    "Count the {things}.",
)
# Attributes that a question names, each repeated by its frequency. No question of `test-ood` names
# a shape: training has no words for its shapes, and the shift under test is in the images.
_NAMED: tuple[tuple[str, ...], ...] = (
    *((),) * 10,
    *(("colour",),) * 4,
    *(("size",),) * 2,
    *(("shape",),) * 3,
    ("colour", "shape"),
)
_OOD_NAMED = tuple(named for named in _NAMED if "shape" not in named)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountingDifficulty(SceneDifficulty):
    """Difficulty of the scenes: one to nine things, unless another range is given."""


LEVELS = {
    "easy": CountingDifficulty(max_objects=3, max_occlusion=0.1, clutter=4),
    "default": CountingDifficulty(),
    "hard": CountingDifficulty(min_objects=5, max_objects=12, max_occlusion=0.5, clutter=25),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Attributes of the things that a question is about; None matches any."""

    shape: str | None = None
    colour: str | None = None
    size: str | None = None

    def matches(self, look: Look) -> bool:
        """Whether a thing with this look is selected."""
        return all(
            wanted is None or wanted == had
            for wanted, had in zip((self.shape, self.colour, self.size), look, strict=True)
        )

    @property
    def singular(self) -> str:
        """Such as `small object` or `red sphere`."""
        return " ".join(word for word in (self.size, self.colour, self.shape or "object") if word)

    @property
    def plural(self) -> str:
        """Such as `small objects` or `red spheres`."""
        return f"{self.singular}s"


@dataclasses.dataclass(frozen=True, kw_only=True)
class CountingProblem:
    """A scene and the question about it."""

    scene: Scene
    selection: Selection
    question: str

    @property
    def answer(self) -> int:
        """The number of selected things."""
        return len(self.selected)

    @property
    def selected(self) -> list[Look]:
        """The looks of the things asked for, in reading order."""
        looks = (item.look for item in self.scene.items)
        return [look for look in looks if self.selection.matches(look)]

    @property
    def content(self) -> str:
        """See `scenes.content`."""
        return scenes.content(tuple(item.look for item in self.scene.items))

    @property
    def steps(self) -> str:
        """The things asked for, numbered in reading order."""
        return enumerate_looks(self.selected)


def enumerate_looks(looks: list[Look]) -> str:
    """Such as `1 red sphere 2 blue cube`, or `none`."""
    numbered = (f"{n} {look.colour} {look.shape}" for n, look in enumerate(looks, start=1))
    return " ".join(numbered) or "none"


def sample_looks(
    rng: np.random.Generator, count: int, selection: Selection, selected: int, ood: bool = False
) -> tuple[Look, ...]:
    """`count` looks of which exactly `selected` match the selection."""
    looks: list[Look] = []
    while len(looks) < count:
        look = _random_look(rng, ood)
        if len(looks) < selected:
            look = Look(
                selection.shape or look.shape,
                selection.colour or look.colour,
                selection.size or look.size,
            )
        elif selection.matches(look):
            continue
        looks.append(look)
    return tuple(looks)


def sample_question(rng: np.random.Generator, ood: bool = False) -> tuple[Selection, str]:
    """The things to ask for, and the wording of the question."""
    named = pick(rng, _OOD_NAMED if ood else _NAMED)
    if not named:
        return Selection(), pick(rng, _TOTAL_PHRASES)
    look = _random_look(rng, ood)._asdict()
    selection = Selection(**{attribute: look[attribute] for attribute in named})
    return selection, pick(rng, _SUBSET_PHRASES).format(things=selection.plural)


def sample_problem(
    rng: np.random.Generator, split: Split, difficulty: CountingDifficulty
) -> CountingProblem:
    """A problem whose scene belongs to the split.

    Raises:
      UserError: the difficulty asks for more things than fit, or leaves the split no scene.
    """
    ood = split == "test-ood"
    propose = functools.partial(_propose, difficulty=difficulty, ood=ood)

    def draw_things() -> tuple[tuple[Selection, str], tuple[Look, ...]]:
        return propose(rng)[1] if ood else draw(rng, split, propose)

    backdrop: Backdrop = "outdoors" if ood else "studio"
    (selection, question), scene = scenes.arrange(rng, draw_things, difficulty, backdrop)
    return CountingProblem(scene=scene, selection=selection, question=question)


def _propose(
    rng: np.random.Generator, *, difficulty: CountingDifficulty, ood: bool
) -> tuple[str, tuple[tuple[Selection, str], tuple[Look, ...]]]:
    selection, question = sample_question(rng, ood)
    count = int(rng.integers(difficulty.min_objects, difficulty.max_objects + 1))
    # Uniform, so that no answer is a good guess: a scene of random looks seldom has many matches.
    selected = count if selection == Selection() else int(rng.integers(count + 1))
    looks = sample_looks(rng, count, selection, selected, ood)
    return scenes.content(looks), ((selection, question), looks)


_COLOURS, _SIZES = tuple(sprites.COLOURS), tuple(sprites.SIZES)


def _random_look(rng: np.random.Generator, ood: bool) -> Look:
    shapes = sprites.OOD_SHAPES if ood else sprites.SHAPES
    return Look(pick(rng, shapes), pick(rng, _COLOURS), pick(rng, _SIZES))
