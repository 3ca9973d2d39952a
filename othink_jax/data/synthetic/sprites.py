"""Sprites of the things in a scene, each drawn once and cached.

Each is drawn at four times its size and reduced, with light from the upper left and a soft shadow
on the ground.
"""

import dataclasses
import functools

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw, ImageFilter

SHAPES = ("sphere", "cube", "cylinder")
OOD_SHAPES = ("car", "bus", "plane")
COLOURS = {
    "red": (222, 32, 36),
    "green": (28, 158, 50),
    "blue": (36, 72, 222),
    "yellow": (245, 205, 24),
    "purple": (148, 40, 190),
    "cyan": (44, 208, 220),
}
SIZES = {"small": 18, "large": 28}  # width of the thing, pixels
VARIANTS = 6  # three widths (one pixel apart) times two views

_OVERSAMPLE = 4
_MARGIN = 3  # pixels around the thing, for its shadow
_DARK = (40, 40, 46)
_GLASS = (225, 235, 242)


@dataclasses.dataclass(frozen=True)
class Sprite:
    """A thing as it is pasted into a scene."""

    image: Image.Image  # RGBA, shadow included
    mask: Bool[np.ndarray, "height width"]  # true where the thing itself is, without its shadow


@functools.cache
def sprite(shape: str, colour: str, size: str, variant: int) -> Sprite:
    """The sprite of one thing; `variant` in [0, VARIANTS) varies its width and view a little."""
    width = SIZES[size] + variant % 3 - 1
    side = (width + 2 * _MARGIN) * _OVERSAMPLE
    canvas = Image.new("RGBA", (side, side))
    box = (_MARGIN * _OVERSAMPLE, (_MARGIN + width) * _OVERSAMPLE)
    _PAINTERS[shape](canvas, box, COLOURS[colour], variant // 3)
    thing = canvas.reduce(_OVERSAMPLE)
    mask = np.asarray(thing.getchannel("A")) >= 128
    return Sprite(Image.alpha_composite(_shadow(mask), thing), mask)


def _shadow(mask: Bool[np.ndarray, "height width"]) -> Image.Image:
    rows, columns = np.nonzero(mask)
    shade = Image.new("L", mask.shape[::-1])
    bottom, left, right = int(rows.max()), int(columns.min()), int(columns.max())
    ImageDraw.Draw(shade).ellipse((left + 1, bottom - 4, right + 2, bottom + 2), fill=120)
    black = Image.new("RGBA", mask.shape[::-1])
    black.putalpha(shade.filter(ImageFilter.GaussianBlur(1.2)))
    return black


def _tone(colour: tuple[int, int, int], brightness: float) -> tuple[int, int, int]:
    """A tone of the colour: towards black below 1, towards white above."""
    if brightness <= 1:
        red, green, blue = (round(c * brightness) for c in colour)
    else:
        red, green, blue = (round(c + (255 - c) * (brightness - 1)) for c in colour)
    return red, green, blue


def _shaded(
    colour: tuple[int, int, int], brightness: Float[np.ndarray, "height width"]
) -> Image.Image:
    """An image whose pixels are tones of one colour."""
    base = np.asarray(colour, np.float64)
    dark, light = np.minimum(brightness, 1)[..., None], np.maximum(brightness - 1, 0)[..., None]
    pixels = base * dark + (255 - base) * light
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


_Box = tuple[int, int]
_Colour = tuple[int, int, int]


def _sphere(canvas: Image.Image, box: _Box, colour: _Colour, view: int) -> None:
    low, high = box
    y, x = (np.mgrid[: high - low, : high - low] + 0.5) / (high - low) * 2 - 1
    z = np.sqrt(np.maximum(1 - x**2 - y**2, 0))
    diffuse = np.maximum(-0.5 * x - 0.6 * y + 0.62 * z, 0)
    highlight = np.maximum(-0.33 * x - 0.4 * y + 0.85 * z, 0) ** (40 if view else 25)
    ball = Image.new("L", (high - low, high - low))
    ImageDraw.Draw(ball).ellipse((0, 0, high - low - 1, high - low - 1), fill=255)
    canvas.paste(_shaded(colour, 0.45 + 0.6 * diffuse + 0.7 * highlight), (low, low), ball)


def _cube(canvas: Image.Image, box: _Box, colour: _Colour, view: int) -> None:
    low, high = box
    width = high - low
    pen = ImageDraw.Draw(canvas)
    # The front edge lies left or right of the middle, so that the two sides differ.
    edge = low + round(width * (0.6 if view else 0.4))
    back = low + high - edge
    top, upper = low, low + round(width * 0.25)
    middle, lower = low + round(width * 0.45), high - round(width * 0.18)
    faces = (
        (((back, top), (high, upper), (edge, middle), (low, upper)), 1.3),
        (((low, upper), (edge, middle), (edge, high), (low, lower)), 0.95),
        (((edge, middle), (high, upper), (high, lower), (edge, high)), 0.6),
    )
    for corners, brightness in faces:
        pen.polygon(corners, fill=(*_tone(colour, brightness), 255))


def _cylinder(canvas: Image.Image, box: _Box, colour: _Colour, view: int) -> None:
    low, high = box
    inset = round((high - low) * 0.1)
    left, right = low + inset, high - inset
    cap = round((high - low) * (0.34 if view else 0.28))
    x = (np.arange(right - left) + 0.5) / (right - left) * 2 - 1
    across = 0.5 + 0.55 * np.maximum(-0.45 * x + 0.85 * np.sqrt(1 - x**2), 0)
    side = Image.new("L", (right - left, high - low))
    pen = ImageDraw.Draw(side)
    pen.rectangle((0, cap // 2, right - left, high - low - cap // 2), fill=255)
    pen.ellipse((0, high - low - cap, right - left - 1, high - low - 1), fill=255)
    canvas.paste(_shaded(colour, np.tile(across, (high - low, 1))), (left, low), side)
    lid = (left, low, right - 1, low + cap)
    ImageDraw.Draw(canvas).ellipse(lid, fill=(*_tone(colour, 1.35), 255))


def _scaled(
    box: _Box, points: tuple[tuple[float, float], ...], mirrored: int
) -> list[tuple[float, float]]:
    low, high = box
    return [
        (low + (1 - x if mirrored else x) * (high - low), low + y * (high - low)) for x, y in points
    ]


def _car(canvas: Image.Image, box: _Box, colour: _Colour, view: int) -> None:
    pen = ImageDraw.Draw(canvas)
    cabin = ((0.18, 0.52), (0.32, 0.24), (0.68, 0.24), (0.82, 0.52))
    window = ((0.29, 0.5), (0.37, 0.31), (0.63, 0.31), (0.71, 0.5))
    body = ((0, 0.5), (0.9, 0.5), (1, 0.58), (1, 0.78), (0, 0.78))
    pen.polygon(_scaled(box, cabin, view), fill=(*_tone(colour, 1.15), 255))
    pen.polygon(_scaled(box, window, view), fill=(*_GLASS, 255))
    pen.polygon(_scaled(box, body, view), fill=(*_tone(colour, 0.9), 255))
    _wheels(pen, box, ((0.24, 0.8), (0.76, 0.8)), 0.13)


def _bus(canvas: Image.Image, box: _Box, colour: _Colour, view: int) -> None:
    pen = ImageDraw.Draw(canvas)
    body = ((0, 0.16), (0.94, 0.16), (1, 0.4), (1, 0.84), (0, 0.84))
    pen.polygon(_scaled(box, body, view), fill=(*_tone(colour, 0.95), 255))
    roof = ((0, 0.16), (0.94, 0.16), (0.95, 0.23), (0, 0.23))
    pen.polygon(_scaled(box, roof, view), fill=(*_tone(colour, 1.35), 255))
    for left in (0.08, 0.38, 0.68):
        pane = ((left, 0.3), (left + 0.22, 0.3), (left + 0.22, 0.52), (left, 0.52))
        pen.polygon(_scaled(box, pane, view), fill=(*_GLASS, 255))
    _wheels(pen, box, ((0.22, 0.85), (0.78, 0.85)), 0.12)


def _plane(canvas: Image.Image, box: _Box, colour: _Colour, view: int) -> None:
    pen = ImageDraw.Draw(canvas)
    wings = ((0.62, 0.5), (0.34, 0.02), (0.2, 0.02), (0.36, 0.5), (0.2, 0.98), (0.34, 0.98))
    tail = ((0.16, 0.5), (0.06, 0.26), (0, 0.26), (0.04, 0.5), (0, 0.74), (0.06, 0.74))
    pen.polygon(_scaled(box, wings, view), fill=(*_tone(colour, 0.8), 255))
    pen.polygon(_scaled(box, tail, view), fill=(*_tone(colour, 0.7), 255))
    trunk = ((0, 0.45), (0.8, 0.38), (0.94, 0.43), (1, 0.5), (0.94, 0.57), (0.8, 0.62), (0, 0.55))
    pen.polygon(_scaled(box, trunk, view), fill=(*_tone(colour, 1.2), 255))


def _wheels(
    pen: ImageDraw.ImageDraw, box: _Box, centres: tuple[tuple[float, float], ...], radius: float
) -> None:
    reach = radius * (box[1] - box[0])
    for x, y in _scaled(box, centres, 0):
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(*_DARK, 255))


_PAINTERS = {
    "sphere": _sphere,
    "cube": _cube,
    "cylinder": _cylinder,
    "car": _car,
    "bus": _bus,
    "plane": _plane,
}
