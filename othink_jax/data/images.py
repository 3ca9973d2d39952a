"""Patches of images and videos in numpy and PIL, as by the image processor of Qwen2-VL."""

import dataclasses
import io
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import numpy as np
from jaxtyping import Float, Int
from PIL import Image, ImageOps, UnidentifiedImageError

from othink_jax.data.depth import in_eight_bits, is_deep
from othink_jax.errors import UserError, first_line, quoted
from othink_jax.files import as_path, is_cloud

_MAX_ASPECT_RATIO = 200  # as in transformers


def open_image(file: str | Path | io.BytesIO) -> Image.Image:
    """Read an image fully, as 8-bit RGB, turned upright by its EXIF orientation.

    If there are several frames, the first is read.

    Raises:
      UserError: the file is missing or not a regular file, is not an image, has more pixels than
        `PIL.Image.MAX_IMAGE_PIXELS`, or nothing states the range of its values.
    """
    if isinstance(file, io.BytesIO):
        return _read(file, "the image")
    name = quoted(str(file))
    try:
        if is_cloud(file):
            return _read(io.BytesIO(as_path(file).read_bytes()), name)
        if not stat.S_ISREG(os.stat(file).st_mode):  # a pipe or a device may never end
            raise UserError(f"{name} cannot be read as an image: it is not a file")
        # No path for Pillow: it would memory-map a TIFF file and rotate it wrongly (version 13).
        with open(file, "rb") as opened:
            return _read(opened, name)
    except FileNotFoundError:
        raise UserError(f"there is no image {name}") from None
    except OSError as error:
        raise UserError(f"{name} cannot be read as an image: {error.strerror}") from error
    except ValueError as error:  # no file can have this name
        raise UserError(f"{name} cannot be read as an image: {quoted(str(error))}") from error


def _read(file: IO[bytes], name: str) -> Image.Image:
    try:
        with Image.open(file, formats=_formats()) as image:
            _check_size(image)
            ImageOps.exif_transpose(image, in_place=True)
            rgb = to_rgb(image)
            return rgb.copy() if rgb is image else rgb
    except UnidentifiedImageError:
        raise UserError(f"{name} cannot be read as an image: its format is unknown") from None
    except Exception as error:  # decoders can raise anything on a broken file
        reason = quoted(first_line(error))
        raise UserError(f"{name} cannot be read as an image: {reason}") from error


def _formats() -> list[str]:
    """All formats of Pillow except EPS, for which it would run a program on the file."""
    Image.init()
    return [name for name in Image.ID if name != "EPS"]


def _check_size(image: Image.Image) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise UserError(f"it has {image.width}x{image.height} pixels, over {limit} in all")


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB; transparent parts are composited onto white.

    Raises:
      UserError: it has more than 8 bits per value, and nothing states their range.
    """
    transparency = image.info.get("transparency")
    if is_deep(image):
        image = in_eight_bits(image)
    elif isinstance(transparency, tuple) and max(transparency) > 255:
        # The transparent colour still has 16 bits: Pillow reduces only the pixels to 8.
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in transparency)
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image if image.mode == "RGB" else image.convert("RGB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """The entries of preprocessor_config.json that shape the patches."""

    patch_size: int  # side of a patch, pixels
    temporal_patch_size: int  # frames per patch; an image is repeated to fill them
    merge_size: int  # side of a merge window, patches
    min_pixels: int  # bounds of height x width after resizing
    max_pixels: int
    mean: tuple[float, float, float]  # of red, green and blue in [0, 1]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 0 < self.min_pixels <= self.max_pixels:
            raise UserError(
                f"min_pixels must be > 0 and at most max_pixels, got {self.min_pixels} and"
                f" {self.max_pixels}"
            )

    @property
    def patch_dim(self) -> int:
        """Values per patch, C."""
        return 3 * self.temporal_patch_size * self.patch_size**2


def resized_shape(height: int, width: int, settings: ImageSettings) -> tuple[int, int]:
    """Height and width in multiples of a merge window's side, within the pixel bounds.

    The aspect ratio is kept as closely as possible.

    Raises:
      UserError: one side is over 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise UserError(
            f"an image of {width}x{height} pixels is too narrow: one side may be at most"
            f" {_MAX_ASPECT_RATIO} times the other"
        )
    unit = settings.patch_size * settings.merge_size
    rows, columns = round(height / unit) * unit, round(width / unit) * unit
    if rows * columns > settings.max_pixels:
        shrink = math.sqrt(height * width / settings.max_pixels)
        rows = max(unit, math.floor(height / shrink / unit) * unit)
        columns = max(unit, math.floor(width / shrink / unit) * unit)
    elif rows * columns < settings.min_pixels:
        grow = math.sqrt(settings.min_pixels / (height * width))
        rows = math.ceil(height * grow / unit) * unit
        columns = math.ceil(width * grow / unit) * unit
    return rows, columns


def patchify(
    image: Image.Image, settings: ImageSettings
) -> tuple[Float[np.ndarray, "K C"], Int[np.ndarray, "K 2"]]:
    """Normalised patches (float32) in merge-window order, and the row and column of each (int32).

    An image is a video of one frame; see `patchify_video`.
    """
    steps, positions = patchify_video([image], settings)
    return steps[0], positions


def patchify_video(
    frames: Sequence[Image.Image], settings: ImageSettings
) -> tuple[Float[np.ndarray, "steps K C"], Int[np.ndarray, "K 2"]]:
    """Normalised patches (float32) of each time step, and the row and column of each (int32).

    Each frame is resized (bicubic), scaled to [0, 1] and normalised. `temporal_patch_size`
    consecutive frames make a step; the last frame is repeated to fill the last step. The values of
    a patch are ordered channel, frame, row, column; patches are in merge-window order.

    Raises:
      UserError: there is no frame, or the frames differ in size or are too narrow.
    """
    sizes = {frame.size for frame in frames}
    if len(sizes) != 1:
        raise UserError(
            f"a video needs frames, all of one size, but it has {len(frames)} of {len(sizes)} sizes"
        )
    ((width, height),) = sizes
    height, width = resized_shape(height, width, settings)
    cut = [_patches_of_frame(frame, height, width, settings) for frame in frames]
    count, size = settings.temporal_patch_size, settings.patch_size
    cut += cut[-1:] * (-len(cut) % count)
    rows, columns = height // size, width // size
    # step, frame, patch, channel, pixels
    steps = np.stack(cut).reshape(-1, count, rows * columns, 3, size**2)
    return (
        steps.transpose(0, 2, 3, 1, 4).reshape(len(steps), rows * columns, -1),
        patch_positions(rows, columns, settings.merge_size),
    )


def _patches_of_frame(
    frame: Image.Image, height: int, width: int, settings: ImageSettings
) -> Float[np.ndarray, "K 3 size size"]:
    """Normalised patches in merge-window order; values are ordered channel, row, column."""
    frame = to_rgb(frame)
    if frame.size != (width, height):
        frame = frame.resize((width, height), Image.Resampling.BICUBIC)
    # One multiplication and one subtraction per value: scaling and normalisation are folded.
    scale = (1.0 / (255.0 * np.asarray(settings.std))).astype(np.float32)
    shift = (np.asarray(settings.mean) / np.asarray(settings.std)).astype(np.float32)
    pixels = np.asarray(frame, np.float32) * scale - shift
    size, merge = settings.patch_size, settings.merge_size
    unit = size * merge
    cut = pixels.reshape(height // unit, merge, size, width // unit, merge, size, 3)
    # window row, window column, patch row, patch column, channel, pixel row, pixel column
    return cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, size, size)


def patch_positions(rows: int, columns: int, merge: int) -> Int[np.ndarray, "K 2"]:
    """Row and column of each patch of a grid, in merge-window order (int32)."""
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), axis=-1)
    windows = grid.reshape(rows // merge, merge, columns // merge, merge, 2)
    return windows.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)
