"""Visual grounding: CLEVR-like scenes, the description of one thing, and the box around it."""

import dataclasses

import numpy as np

from othink_jax.data.synthetic import scenes
from othink_jax.data.synthetic.counting import Selection, sample_looks
from othink_jax.data.synthetic.scenes import IMAGE_SIDE, Look, Scene, SceneDifficulty
from othink_jax.data.synthetic.splits import Split, draw, pick

Box = tuple[int, int, int, int]  # left, top, right, bottom: edges, pixels of the image

_PHRASES = (
    "Where is the {thing}?",
    "Find the {thing}.",
    "Find the {thing} in the image.",
)
# Attributes that a question names, each repeated by its frequency.
_NAMED: tuple[tuple[str, ...], ...] = (
    *(("colour", "shape"),) * 6,
    *(("size", "colour", "shape"),) * 2,
    ("colour",),
    ("shape",),
)
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "middle", "right")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundingDifficulty(SceneDifficulty):
    """Difficulty of the scenes: one to six things, unless another range is given."""

    max_objects: int = 6


LEVELS = {
    "easy": GroundingDifficulty(max_objects=2, max_occlusion=0.1, clutter=4),
    "default": GroundingDifficulty(),
    "hard": GroundingDifficulty(min_objects=4, max_objects=10, max_occlusion=0.5, clutter=25),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroundingProblem:
    """A scene and the one thing in it that is asked for."""

    scene: Scene
    selection: Selection
    question: str

    @property
    def target(self) -> int:
        """Index of the thing among the scene's."""
        (found,) = (
            index
            for index, item in enumerate(self.scene.items)
            if self.selection.matches(item.look)
        )
        return found

    @property
    def box(self) -> Box:
        """The bounding box of the visible part of the thing."""
        rows, columns = np.nonzero(scenes.id_buffer(self.scene.items) == self.target)
        left, top = int(columns.min()), int(rows.min())
        return left, top, int(columns.max()) + 1, int(rows.max()) + 1

    @property
    def answer(self) -> str:
        """The box as `[left,top,right,bottom]`."""
        return written(self.box)

    @property
    def content(self) -> str:
        """See `scenes.content`."""
        return scenes.content(tuple(item.look for item in self.scene.items))

    @property
    def steps(self) -> str:
        """The vertical and horizontal third of the picture that holds the centre of the box."""
        left, top, right, bottom = self.box
        row, column = (
            words[3 * (low + high) // (2 * IMAGE_SIDE)]
            for words, low, high in ((_ROWS, top, bottom), (_COLUMNS, left, right))
        )
        return f"{row} {column}"


def written(box: Box) -> str:
    """A box as a text: `[left,top,right,bottom]`."""
    return f"[{','.join(map(str, box))}]"


def sample_problem(
    rng: np.random.Generator, split: Split, difficulty: GroundingDifficulty
) -> GroundingProblem:
    """A problem whose scene belongs to the split.

    Raises:
      UserError: the difficulty asks for more things than fit, or leaves the split no scene.
    """

    def propose(rng: np.random.Generator) -> tuple[str, tuple[Selection, tuple[Look, ...]]]:
        (look,) = sample_looks(rng, 1, Selection(), 1)
        selection = Selection(**{name: getattr(look, name) for name in pick(rng, _NAMED)})
        count = int(rng.integers(difficulty.min_objects, difficulty.max_objects + 1))
        looks = sample_looks(rng, count, selection, 1)
        return scenes.content(looks), (selection, looks)

    selection, scene = scenes.arrange(
        rng, lambda: draw(rng, split, propose), difficulty, backdrop="studio"
    )
    question = pick(rng, _PHRASES).format(thing=selection.singular)
    return GroundingProblem(scene=scene, selection=selection, question=question)
