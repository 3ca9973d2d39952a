"""Scenes of counting and grounding: their things, layout and rendering."""

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageDraw

from othink_jax.data.synthetic.sprites import VARIANTS, Sprite, sprite
from othink_jax.errors import UserError

IMAGE_SIDE = 112  # pixels
Backdrop = Literal["studio", "outdoors"]

# Least distance of two centres, as a share of the sum of the two widths. It keeps most layouts
# within the allowed occlusion, so that the exact check seldom has to refuse one.
_SPACING = 0.34
_BANDS = 4  # horizontal bands of the picture, in which things are read from left to right
_PLACE_TRIES = 60  # per thing, before the layout starts over
_LAYOUT_TRIES = 200
_ARRANGE_TRIES = 20  # draws of other things if some have no layout
_SKIES = ((196, 214, 232), (222, 214, 200), (206, 206, 222))
_GROUNDS = ((172, 186, 150), (206, 190, 158), (168, 168, 168))

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneDifficulty:
    """Difficulty of the scenes."""

    min_objects: int = 1
    max_objects: int = 9
    max_occlusion: float = 0.35  # largest share of a thing's area that others may hide
    clutter: int = 12  # largest number of small grey marks on the ground

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects <= 12:
            raise UserError(
                "difficulty: need 1 <= min_objects <= max_objects <= 12 (more do not fit), got"
                f" {self.min_objects} and {self.max_objects}"
            )
        if not 0 <= self.max_occlusion < 1:
            raise UserError(
                f"difficulty: max_occlusion must be in [0, 1), got {self.max_occlusion}"
            )
        if self.clutter < 0:
            raise UserError(f"difficulty: clutter must be >= 0, got {self.clutter}")


class Look(NamedTuple):
    """Appearance of a thing."""

    shape: str
    colour: str
    size: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A thing at its position."""

    look: Look
    x: int  # centre, pixels from the left
    y: int  # centre, pixels from the top
    variant: int  # see `sprites.sprite`

    @property
    def sprite(self) -> Sprite:
        """The sprite that shows it."""
        return sprite(*self.look, self.variant)

    @property
    def corner(self) -> tuple[int, int]:
        """Left and top of its sprite."""
        side = self.sprite.image.width
        return self.x - side // 2, self.y - side // 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """The whole input of `render`; equal scenes give equal pictures."""

    items: tuple[Item, ...]  # in reading order: bands from top to bottom, each from left to right
    backdrop: Backdrop
    clutter: int  # small grey marks on the ground
    texture: int  # seed of backdrop and marks


def content(looks: tuple[Look, ...]) -> str:
    """The content that decides a scene's split: its things, without positions or question."""
    return "scene " + ",".join(sorted(" ".join(look) for look in looks))


def arrange(
    rng: np.random.Generator,
    draw_things: Callable[[], tuple[_T, tuple[Look, ...]]],
    difficulty: SceneDifficulty,
    backdrop: Backdrop,
) -> tuple[_T, Scene]:
    """Draw things until they have a layout; return the question drawn with them, and the scene.

    Args:
      draw_things: draws from `rng` the question and the looks of the things.

    Raises:
      UserError: the difficulty asks for more things than fit, or `draw_things` raises.
    """
    for _ in range(_ARRANGE_TRIES):
        asked, looks = draw_things()
        scene = place(
            rng,
            looks,
            max_occlusion=difficulty.max_occlusion,
            clutter=difficulty.clutter,
            backdrop=backdrop,
        )
        if scene is not None:
            return asked, scene
    raise UserError(
        f"difficulty: {difficulty.max_objects} objects do not fit with so little overlap"
    )


def place(
    rng: np.random.Generator,
    looks: tuple[Look, ...],
    *,
    max_occlusion: float,
    clutter: int,
    backdrop: Backdrop,
) -> Scene | None:
    """Put the things on the ground so that at most `max_occlusion` of each one's area is hidden.

    Returns None if no such layout is found: there are too many things for the ground.
    """
    for _ in range(_LAYOUT_TRIES):
        items = _scatter(rng, looks)
        if items is None or (len(items) > 1 and visible(items).min() < 1 - max_occlusion):
            continue
        return Scene(
            items=tuple(sorted(items, key=lambda item: (item.y * _BANDS // IMAGE_SIDE, item.x))),
            backdrop=backdrop,
            clutter=int(rng.integers(clutter + 1)),
            texture=int(rng.integers(2**32)),
        )
    return None


def _scatter(rng: np.random.Generator, looks: tuple[Look, ...]) -> list[Item] | None:
    """Things at random places whose centres are not too close, or None if one found no place."""
    items: list[Item] = []
    widths: list[int] = []
    for look in looks:
        variant = int(rng.integers(VARIANTS))
        width = sprite(*look, variant).image.width
        half = width // 2
        for x, y in rng.integers(half, IMAGE_SIDE - half, (_PLACE_TRIES, 2)).tolist():
            if all(
                (x - item.x) ** 2 + (y - item.y) ** 2 >= (_SPACING * (width + other)) ** 2
                for item, other in zip(items, widths, strict=True)
            ):
                items.append(Item(look=look, x=x, y=y, variant=variant))
                widths.append(width)
                break
        else:
            return None
    return items


def back_to_front(items: tuple[Item, ...] | list[Item]) -> list[int]:
    """Indices in the order of drawing: things lower in the picture are nearer."""

    def depth(index: int) -> tuple[int, int]:
        item = items[index]
        return item.corner[1] + item.sprite.image.height, item.x

    return sorted(range(len(items)), key=depth)


def id_buffer(items: tuple[Item, ...] | list[Item]) -> Int[np.ndarray, "height width"]:
    """int16: the index of the thing that each pixel shows, -1 for the ground."""
    buffer = np.full((IMAGE_SIDE, IMAGE_SIDE), -1, np.int16)
    for index in back_to_front(items):
        item = items[index]
        (left, top), mask = item.corner, item.sprite.mask
        window = buffer[top : top + mask.shape[0], left : left + mask.shape[1]]
        window[mask] = index
    return buffer


def visible(items: tuple[Item, ...] | list[Item]) -> Float[np.ndarray, " items"]:
    """The share of each thing's area that no other thing hides."""
    buffer = id_buffer(items)
    shown = np.bincount(buffer[buffer >= 0], minlength=len(items))
    return shown / np.array([np.count_nonzero(item.sprite.mask) for item in items])


def render(scene: Scene) -> Image.Image:
    """The picture of a scene, RGB, IMAGE_SIDE by IMAGE_SIDE pixels."""
    picture = _ground(scene)
    for index in back_to_front(scene.items):
        item = scene.items[index]
        thing = item.sprite.image
        picture.paste(thing, item.corner, thing)
    return picture


def _ground(scene: Scene) -> Image.Image:
    """Mottled backdrop with a few small grey marks."""
    rng = np.random.default_rng(scene.texture)
    if scene.backdrop == "studio":
        # Low-frequency mottle around a light grey, brighter at the top.
        mottle = rng.integers(-12, 13, (7, 7, 1)) + np.linspace(12, -12, 7)[:, None, None]
        coarse = np.clip(mottle + rng.integers(188, 216), 0, 255).repeat(3, axis=2)
    else:
        sky, land = _SKIES[rng.integers(3)], _GROUNDS[rng.integers(3)]
        rows = np.arange(14)[:, None, None] < rng.integers(3, 7)
        coarse = np.where(rows, np.array(sky), np.array(land)) + rng.integers(-9, 10, (14, 14, 1))
    picture = Image.fromarray(coarse.astype(np.uint8)).resize(
        (IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.BICUBIC
    )
    pen = ImageDraw.Draw(picture)
    for x, y, run, rise, tone in rng.integers(
        (0, 0, -4, -4, 120), (IMAGE_SIDE, IMAGE_SIDE, 5, 5, 160), (scene.clutter, 5)
    ).tolist():
        pen.line((x, y, x + run, y + rise), fill=(tone, tone, tone))
    return picture
