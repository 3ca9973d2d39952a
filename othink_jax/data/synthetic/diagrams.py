"""Legible layout and rendering of geometry figures."""

import collections
import dataclasses
import functools
import math
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float
from PIL import Image, ImageDraw, ImageFont

from othink_jax.data.synthetic.figures import Mark, Point, Sketch

IMAGE_SIDE = 112  # pixels
_OVERSAMPLE = 4
_VALUE_SIZE, _NAME_SIZE = 14, 13  # font sizes; digits are 10 pixels high, capitals 9
_LINE = 1.5  # width of a line, pixels
_ARC_RADIUS = 9.0  # of the arc that marks an angle, pixels
_CLEARANCE = 2.0  # least distance of a text from a line, pixels
_EDGE = 1.0  # least distance of a text from the edge of the paper, pixels
_DOTS = 40  # points per line that are tested against the texts
_LAYOUT_TRIES = 16
_INK, _VALUE_INK = (24, 24, 28), (20, 60, 200)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A text on the paper."""

    text: str
    centre: Point  # pixels
    is_value: bool  # the text of an angle; otherwise the name of a point


@dataclasses.dataclass(frozen=True, kw_only=True)
class Diagram:
    """A sketch placed on paper, in pixels, y downwards: the whole input of `render`."""

    points: Mapping[str, Point]
    segments: tuple[tuple[str, str], ...]
    marks: tuple[Mark, ...]
    radius: float | None  # of a circle around O, pixels
    texts: tuple[Text, ...]
    paper: int  # grey value of the background


@functools.cache
def _glyphs(text: str, is_value: bool) -> Image.Image:
    """The ink of a text as a mask, cut to its size."""
    font = ImageFont.load_default(_VALUE_SIZE if is_value else _NAME_SIZE)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    mask = Image.new("L", (right - left, bottom - top))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask


def lay_out(rng: np.random.Generator, sketch: Sketch) -> Diagram | None:
    """Turn, mirror, scale and place a sketch with every text legible; None if no try succeeds.

    Texts keep off each other, off every line and inside the paper; the measure of an angle lies
    between its two sides and nearer to its vertex than to any other corner.
    """
    for _ in range(_LAYOUT_TRIES):
        points, radius = _on_paper(rng, sketch)
        texts = _texts(sketch, points)
        if _legible(sketch, points, radius, texts):
            return Diagram(
                points=points,
                segments=sketch.segments,
                marks=sketch.marks,
                radius=radius,
                texts=texts,
                paper=int(rng.integers(236, 256)),
            )
    return None


def _on_paper(rng: np.random.Generator, sketch: Sketch) -> tuple[dict[str, Point], float | None]:
    """Pixel coordinates of the points after a random motion, and the circle's radius."""
    turn, mirror = rng.random() * 2 * math.pi, 1 if rng.random() < 0.5 else -1
    cos, sin = math.cos(turn), math.sin(turn)
    turned = np.array(list(sketch.points.values())) * (mirror, 1) @ ((cos, sin), (-sin, cos))
    if sketch.radius is None:
        low, high = turned.min(axis=0), turned.max(axis=0)
    else:
        low, high = np.full(2, -sketch.radius), np.full(2, sketch.radius)
    margin = rng.uniform(9, 17)
    scale = (IMAGE_SIDE - 2 * margin) / (high - low).max()
    room = IMAGE_SIDE - 2 * margin - (high - low) * scale
    origin = margin + room * rng.random(2) - low * scale
    placed = (origin + turned * scale).tolist()
    points = {name: (x, y) for name, (x, y) in zip(sketch.points, placed, strict=True)}
    return points, None if sketch.radius is None else sketch.radius * scale


def _bearing(origin: Point, target: Point) -> float:
    return math.atan2(target[1] - origin[1], target[0] - origin[0])


def sector(mark: Mark, points: Mapping[str, Point]) -> tuple[float, float]:
    """Start and opening of the marked angle, radians, in pixel coordinates."""
    origin = points[mark.vertex]
    first, second = (_bearing(origin, points[arm]) for arm in mark.arms)
    opening = (second - first) % (2 * math.pi)
    if opening <= math.pi:
        return first, opening
    return second, 2 * math.pi - opening


def _texts(sketch: Sketch, points: Mapping[str, Point]) -> tuple[Text, ...]:
    values = tuple(
        Text(text=mark.text, centre=_value_centre(mark, points), is_value=True)
        for mark in sketch.marks
    )
    names = tuple(
        Text(text=name, centre=_name_centre(name, sketch, points), is_value=False)
        for name in points
        if not name.startswith("_")
    )
    return values + names


def _value_centre(mark: Mark, points: Mapping[str, Point]) -> Point:
    start, opening = sector(mark, points)
    size = _glyphs(mark.text, True).size
    return _wedged(points[mark.vertex], start, opening, size, _ARC_RADIUS + 1)


def _name_centre(name: str, sketch: Sketch, points: Mapping[str, Point]) -> Point:
    """Centre of a point's name: outside the circle, or amid the widest gap between its lines."""
    here, size = points[name], _glyphs(name, False).size
    if sketch.radius is not None and name != "O":
        return _wedged(here, _bearing(points["O"], here) - math.pi / 2, math.pi, size, 0)
    bearings = sorted(
        _bearing(here, points[other])
        for pair in sketch.segments
        for other in pair
        if other != name and (name in pair or _between(here, points[pair[0]], points[pair[1]]))
    )
    turned = [*bearings[1:], bearings[0] + 2 * math.pi]
    opening, start = max((b - a, a) for a, b in zip(bearings, turned, strict=True))
    return _wedged(here, start, opening, size, 0)


def _wedged(
    vertex: Point, start: float, opening: float, size: tuple[int, int], least: float
) -> Point:
    """Centre of a text on the bisector of a sector, as near to the vertex as its sides allow.

    The text also keeps `least` pixels away from the vertex itself.
    """
    width, height = size
    middle = start + opening / 2
    along = abs(math.cos(middle)) * width / 2 + abs(math.sin(middle)) * height / 2
    distance = max(least, _CLEARANCE + _LINE / 2) + along
    if opening < math.pi:
        reach = max(
            abs(math.sin(side)) * width / 2 + abs(math.cos(side)) * height / 2
            for side in (start, start + opening)
        )
        distance = max(distance, (reach + _CLEARANCE + _LINE / 2) / math.sin(opening / 2))
    return vertex[0] + distance * math.cos(middle), vertex[1] + distance * math.sin(middle)


def _between(point: Point, first: Point, second: Point) -> bool:
    """Whether the point lies on the segment, within a hundredth of a pixel."""
    return abs(math.dist(point, first) + math.dist(point, second) - math.dist(first, second)) < 1e-2


def _legible(
    sketch: Sketch, points: Mapping[str, Point], radius: float | None, texts: tuple[Text, ...]
) -> bool:
    ends = collections.Counter(name for pair in sketch.segments for name in pair)
    corners = {mark.vertex for mark in sketch.marks} | {name for name in ends if ends[name] > 1}
    for mark, text in zip(sketch.marks, texts, strict=False):
        if min(corners, key=lambda name: math.dist(points[name], text.centre)) != mark.vertex:
            return False
    centres = np.array([text.centre for text in texts])
    halves = np.array([_glyphs(text.text, text.is_value).size for text in texts]) / 2
    if (np.minimum(centres - halves, IMAGE_SIDE - centres - halves) < _EDGE).any():
        return False
    apart = np.abs(centres[:, None] - centres) - halves[:, None] - halves
    np.einsum("iij->ij", apart)[:] = np.inf
    if (apart.max(axis=-1) < _CLEARANCE).any():
        return False
    dots = _line_dots(sketch, points, radius)
    away = np.abs(dots[:, None] - centres) - halves
    return bool((away.max(axis=-1) >= _CLEARANCE).all())


def _line_dots(
    sketch: Sketch, points: Mapping[str, Point], radius: float | None
) -> Float[np.ndarray, "dots 2"]:
    """Points along every line of the figure, a few pixels apart."""
    ends = np.array([(points[a], points[b]) for a, b in sketch.segments])
    share = np.linspace(0, 1, _DOTS)[:, None, None]
    dots = (ends[:, 0] * (1 - share) + ends[:, 1] * share).reshape(-1, 2)
    if radius is None:
        return dots
    turn = np.linspace(0, 2 * np.pi, 4 * _DOTS)[:, None]
    ring = np.array(points["O"]) + radius * np.concatenate([np.cos(turn), np.sin(turn)], axis=1)
    return np.concatenate([dots, ring])


def render(diagram: Diagram) -> Image.Image:
    """The picture of a diagram, RGB, IMAGE_SIDE by IMAGE_SIDE pixels."""
    picture = Image.new("RGB", (IMAGE_SIDE, IMAGE_SIDE), (diagram.paper,) * 3)
    picture.paste(_INK, mask=_lines(diagram))
    for text in diagram.texts:
        glyphs = _glyphs(text.text, text.is_value)
        left = round(text.centre[0] - glyphs.width / 2)
        top = round(text.centre[1] - glyphs.height / 2)
        picture.paste(_VALUE_INK if text.is_value else _INK, (left, top), glyphs)
    return picture


def _lines(diagram: Diagram) -> Image.Image:
    """The ink of lines, arcs and circle as a mask."""
    side = IMAGE_SIDE * _OVERSAMPLE
    large = Image.new("L", (side, side))
    pen = ImageDraw.Draw(large)
    width = round(_LINE * _OVERSAMPLE)
    for first, second in diagram.segments:
        ends = (diagram.points[name] for name in (first, second))
        pen.line([(x * _OVERSAMPLE, y * _OVERSAMPLE) for x, y in ends], fill=255, width=width)
    for mark in diagram.marks:
        start, opening = sector(mark, diagram.points)
        degrees = math.degrees(start), math.degrees(start + opening)
        arc = _box(diagram.points[mark.vertex], _ARC_RADIUS)
        pen.arc(arc, *degrees, fill=255, width=width * 2 // 3)
    if diagram.radius is not None:
        centre = diagram.points["O"]
        pen.ellipse(_box(centre, diagram.radius), outline=255, width=width)
        pen.ellipse(_box(centre, 1.5 * _LINE), fill=255)
    return large.reduce(_OVERSAMPLE)


def _box(centre: Point, radius: float) -> tuple[float, float, float, float]:
    """The square around a circle, in oversampled pixels."""
    low_x, low_y, high_x, high_y = (
        (coordinate + offset) * _OVERSAMPLE for offset in (-radius, radius) for coordinate in centre
    )
    return low_x, low_y, high_x, high_y
