"""Pre-training corpus of the embedded models: questions and answers about synthetic images.

Counting, geometry and grounding questions come with three styles of response, a mix of careful and
careless ones as in text on the web:

    direct  <answer>3</answer>
    look    <think>quick look</think> <answer>3</answer>
    steps   <think>1 red sphere 2 blue cube 3 red cube</think> <answer>3</answer>

Direct and stepwise responses are right. The first part of the training shows only these, so that
the model learns to see. Then quick looks join, and most responses are quick looks. A quick look is
hasty: with probability `hasty_error` its answer is wrong in a systematic way (it misses one object;
it reads an angle ten degrees too large; it puts a box ten pixels aside). So the model ends up
preferring a style that often fails, although it can do better. This is engineered headroom, which
reinforcement learning finds. `hasty_error=0` gives a calibrated model without it.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from othink_jax.config import TINY_TEMPLATE
from othink_jax.data.example import solution_text
from othink_jax.data.synthetic import counting, diagrams, geometry, grounding, scenes, sprites
from othink_jax.data.synthetic.counting import CountingDifficulty, CountingProblem, Selection
from othink_jax.data.synthetic.geometry import GeometryDifficulty, GeometryProblem
from othink_jax.data.synthetic.source import Problem
from othink_jax.data.synthetic.splits import Split, pick
from othink_jax.errors import UserError

QUICK_LOOK = "quick look"  # the whole thinking of a hasty response
SPLIT: Split = "train"  # every content shown here belongs to the tasks' training split
_SIDE = 112  # pixels of every image
_SHARES = ("steps_style", "direct_style", "looks_from", "hasty_error", "easy_until")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """Mixture of the corpus. The shares of kinds need not add up to one."""

    counting: float = 0.28
    geometry: float = 0.32
    describe: float = 0.16
    compare: float = 0.02
    locate: float = 0.03
    read: float = 0.16
    arithmetic: float = 0.08
    grounding: float = 0.0  # the embedded model has seen none
    steps_style: float = 0.25  # share of stepwise responses, once there are quick looks
    direct_style: float = 0.15  # share of direct ones; the rest are quick looks
    looks_from: float = 0.75  # share of the training before quick looks begin
    hasty_error: float = 0.5  # probability that the answer of a quick look is wrong
    easy_until: float = 0.12  # initial share of the training with mostly easy scenes and figures

    def __post_init__(self) -> None:
        for name in _SHARES:
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.steps_style + self.direct_style > 1:
            raise UserError("steps_style and direct_style must not add up to more than 1")


DEFAULT = CorpusConfig()


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusItem:
    """One sample: images, user turn and assistant turn."""

    kind: str  # the field of CorpusConfig that holds its share
    images: tuple[Image.Image, ...]
    question: str  # the whole user turn
    response: str  # the whole assistant turn, without its end token
    style: str | None = None  # direct, look or steps, if the kind has styles


_Make = Callable[[np.random.Generator, CorpusConfig, bool], CorpusItem]


def sample(
    rng: np.random.Generator, *, config: CorpusConfig = DEFAULT, progress: float = 1.0
) -> CorpusItem:
    """One sample at `progress` in [0, 1] of the training; easy ones come first."""
    easy = progress < config.easy_until and rng.random() < 0.8
    if progress < config.looks_from:
        config = dataclasses.replace(config, steps_style=0.7, direct_style=0.3)
    shares = np.array([getattr(config, kind) for kind in _KINDS])
    kind = list(_KINDS)[rng.choice(len(shares), p=shares / shares.sum())]
    return _KINDS[kind](rng, config, easy)


def corpus_texts(count: int, seed: int) -> Iterator[str]:
    """The texts of `count` samples, for training a tokenizer."""
    for index in range(count):
        item = sample(np.random.default_rng([seed, index]))
        yield "system\nYou are a helpful assistant."
        yield f"user\n{item.question}"
        yield f"assistant\n{item.response}"


def _styled(
    rng: np.random.Generator, config: CorpusConfig, steps: str, right: object, hasty: object
) -> tuple[str, str]:
    """A random style and a response in it."""
    style = rng.random()
    if style < config.steps_style:
        return "steps", solution_text(steps, str(right))
    if style < config.steps_style + config.direct_style:
        return "direct", f"<answer>{right}</answer>"
    wrong = rng.random() < config.hasty_error
    return "look", solution_text(QUICK_LOOK, str(hasty if wrong else right))


def draw_scene(rng: np.random.Generator, easy: bool = False) -> CountingProblem:
    """A scene of the training split."""
    difficulty: CountingDifficulty = counting.LEVELS["easy" if easy else "default"]
    return counting.sample_problem(rng, SPLIT, difficulty)


def draw_figure(rng: np.random.Generator, easy: bool = False) -> GeometryProblem:
    """A figure of the training split; half have angles in steps of one degree instead of five.

    At the default difficulty the split has only some 300 contents, which a model memorises: then it
    halves the angles it has seen halved, and no others.
    """
    level = "easy" if easy else pick(rng, ("default", "hard"))
    difficulty: GeometryDifficulty = geometry.LEVELS[level]
    return geometry.sample_problem(rng, SPLIT, difficulty)


def _counting(rng: np.random.Generator, config: CorpusConfig, easy: bool) -> CorpusItem:
    problem = draw_scene(rng, easy)
    hasty = max(problem.answer - 1, 0)
    return _asked("counting", rng, config, problem, scenes.render(problem.scene), hasty)


def _geometry(rng: np.random.Generator, config: CorpusConfig, easy: bool) -> CorpusItem:
    problem = draw_figure(rng, easy)
    hasty = problem.answer + 10
    return _asked("geometry", rng, config, problem, diagrams.render(problem.diagram), hasty)


def _grounding(rng: np.random.Generator, config: CorpusConfig, easy: bool) -> CorpusItem:
    level = grounding.LEVELS["easy" if easy else "default"]
    problem = grounding.sample_problem(rng, SPLIT, level)
    hasty = grounding.written(_aside(problem.box))
    return _asked("grounding", rng, config, problem, scenes.render(problem.scene), hasty)


def _asked(
    kind: str,
    rng: np.random.Generator,
    config: CorpusConfig,
    problem: Problem,
    image: Image.Image,
    hasty: object,
) -> CorpusItem:
    """A problem of a task, with a response in a random style."""
    style, response = _styled(rng, config, problem.steps, problem.answer, hasty)
    return CorpusItem(
        kind=kind,
        images=(image,),
        question=TINY_TEMPLATE.format(question=problem.question),
        response=response,
        style=style,
    )


def _aside(box: grounding.Box) -> grounding.Box:
    """The box shifted ten pixels to the right, or to the left if there is no room."""
    left, top, right, bottom = box
    shift = 10 if right + 10 <= _SIDE else -10
    return left + shift, top, right + shift, bottom


def _describe(rng: np.random.Generator, config: CorpusConfig, easy: bool) -> CorpusItem:
    scene = draw_scene(rng, easy).scene
    return CorpusItem(
        kind="describe",
        images=(scenes.render(scene),),
        question="Describe the image.",
        response=counting.enumerate_looks([item.look for item in scene.items]),
    )


def _compare(rng: np.random.Generator, config: CorpusConfig, easy: bool) -> CorpusItem:
    scene = draw_scene(rng, easy).scene
    first = Selection(colour=pick(rng, scene.items).look.colour)
    others = [colour for colour in sprites.COLOURS if colour != first.colour]
    second = Selection(colour=pick(rng, others))
    if rng.random() < 0.5:  # the first is in the scene: if never swapped, mostly yes
        first, second = second, first
    count, other = (
        sum(selection.matches(item.look) for item in scene.items) for selection in (first, second)
    )
    return CorpusItem(
        kind="compare",
        images=(scenes.render(scene),),
        question=f"Are there more {first.plural} than {second.plural}?",
        response="yes" if count > other else "no",
    )


def _locate(rng: np.random.Generator, config: CorpusConfig, easy: bool) -> CorpusItem:
    scene = draw_scene(rng, easy).scene
    item = pick(rng, scene.items)
    alike = [
        other
        for other in scene.items
        if (other.look.colour, other.look.shape) == (item.look.colour, item.look.shape)
    ]
    leftmost = min(alike, key=lambda other: other.x)
    column = ("left", "middle", "right")[min(3 * leftmost.x // _SIDE, 2)]
    row = ("top", "middle", "bottom")[min(3 * leftmost.y // _SIDE, 2)]
    which = "the" if len(alike) == 1 else "the leftmost"
    return CorpusItem(
        kind="locate",
        images=(scenes.render(scene),),
        question=f"Where is {which} {item.look.colour} {item.look.shape}?",
        response=f"{row} {column}",
    )


def _read(rng: np.random.Generator, config: CorpusConfig, easy: bool) -> CorpusItem:
    diagram = draw_figure(rng, easy).diagram
    readings = [
        mark.text if mark.vertex.startswith("_") else f"{mark.vertex} {mark.text}"
        for mark in diagram.marks
    ]
    return CorpusItem(
        kind="read",
        images=(diagrams.render(diagram),),
        question="Read the angles in the image.",
        response=" ".join(sorted(readings)),
    )


def _arithmetic(rng: np.random.Generator, config: CorpusConfig, easy: bool) -> CorpusItem:
    b, a = sorted(int(value) for value in rng.integers(10, 151, 2))
    sums = [
        (f"{a}+{b}", a + b),
        (f"{a}-{b}", a - b),
        (f"180-{a}", 180 - a),
        (f"90-{a % 80}", 90 - a % 80),
        (f"{2 * (a % 80)}/2", a % 80),
    ]
    text, value = pick(rng, sums)
    return CorpusItem(kind="arithmetic", images=(), question=f"{text}=?", response=f"{value}")


_KINDS: dict[str, _Make] = {
    "counting": _counting,
    "geometry": _geometry,
    "describe": _describe,
    "compare": _compare,
    "locate": _locate,
    "read": _read,
    "arithmetic": _arithmetic,
    "grounding": _grounding,  # last, so that a corpus without it has the same samples
}
