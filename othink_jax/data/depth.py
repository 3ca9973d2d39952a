"""Images of more than 8 bits per value, scaled to 8 bits by the depth that their file states.

Pillow keeps the values of a deep grey image as they are and clips them on conversion to RGB: a
16-bit image becomes all white, one with values in [0, 1] all black.
"""

import numpy as np
from jaxtyping import Num
from PIL import Image, TiffImagePlugin

from othink_jax.errors import UserError

Range = tuple[float, float]

_SIXTEEN_BITS: Range = (0, 2**16 - 1)
# Formats whose deep values Pillow scales to 16 bits, whatever depth the file has.
_SCALED = ("JPEG2000", "PNG", "PPM")
# Tags of TIFF 6.0
_BITS, _WHITE_IS_ZERO, _MAX, _FORMAT, _SMIN, _SMAX = 258, 262, 281, 339, 340, 341
_UNSIGNED, _SIGNED = 1, 2  # of SampleFormat


def is_deep(image: Image.Image) -> bool:
    """Whether the values of an image must be scaled to 8 bits."""
    signed = image.mode == "L" and _tag(image, _FORMAT) == _SIGNED
    return image.mode.startswith(("I", "F")) or signed


def in_eight_bits(image: Image.Image) -> Image.Image:
    """A deep image in mode L, or LA if one of its values means transparency.

    Raises:
      UserError: nothing states the range of its values, or the values lie outside it.
    """
    values = _values(image)
    low, high = _range(image, values)
    if not (low < high and low <= values.min() and values.max() <= high):
        raise UserError(
            f"its values, {values.min():g} to {values.max():g}, are not in the range from {low:g}"
            f" to {high:g} that its file states"
        )
    # float64, as float32 cannot hold 32-bit integers; in place, as there may be 89 million values.
    levels: np.ndarray = values.astype(np.float64 if image.mode == "I" else np.float32)
    levels -= low
    levels *= 255 / (high - low)
    grey = np.rint(levels, out=levels).astype(np.uint8)
    if _tag(image, _WHITE_IS_ZERO) == 0:  # Pillow inverts only 8-bit values
        grey = 255 - grey
    shown = Image.fromarray(grey)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        opaque = np.where(values == transparent, 0, 255).astype(np.uint8)
        shown.putalpha(Image.fromarray(opaque))
    return shown


def _values(image: Image.Image) -> Num[np.ndarray, "rows columns"]:
    values = np.asarray(image)
    # Pillow has no unsigned 32-bit mode and no signed 8-bit mode.
    if image.mode == "I" and _tag(image, _FORMAT) == _UNSIGNED:
        return values.view(np.uint32)
    return values.view(np.int8) if image.mode == "L" else values


def _range(image: Image.Image, values: Num[np.ndarray, "rows columns"]) -> Range:
    """The values of black and of white."""
    stated = _of_tiff(image, values)
    if stated is not None:
        return stated
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _SCALED):
        return _SIXTEEN_BITS
    if image.mode == "F" and values.min() >= 0 and values.max() <= 1:
        return 0, 1
    raise UserError(
        f"nothing says what its values, {values.min():g} to {values.max():g}, are scaled to: save"
        " it with 8 bits a value"
    )


def _of_tiff(image: Image.Image, values: Num[np.ndarray, "rows columns"]) -> Range | None:
    """The range that TIFF tags state; None if they state none."""
    low, high, bits = _tag(image, _SMIN), _tag(image, _SMAX), _tag(image, _BITS)
    if bits is None:
        return None
    if _tag(image, _FORMAT) == _UNSIGNED and image.mode != "F":
        # The maximum is only a statistic (TIFF 6.0, page 37), unless it is the greatest value of a
        # smaller depth: 12 bits are often stored as 16.
        most = _tag(image, _MAX) or high or 0
        if most in [2**depth - 1 for depth in range(8, int(bits))] and values.max() <= most:
            return 0, most
        if bits <= 16:
            return 0, 2 ** int(bits) - 1
        low = low or 0
    return None if low is None or high is None else (low, high)


def _tag(image: Image.Image, tag: int) -> float | None:
    """The first value of a TIFF tag; None if the image has no such tag."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    held = image.tag_v2.get(tag, _UNSIGNED if tag == _FORMAT else None)
    return held[0] if isinstance(held, tuple) else held
