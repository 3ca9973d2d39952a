"""Images to patches: the same numbers as transformers, and clear words about bad files."""

import dataclasses
import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)

from experiments.soak.images import outcomes
from othink_jax.data.images import (
    ImageSettings,
    open_image,
    patch_positions,
    patchify,
    patchify_video,
    resized_shape,
    to_rgb,
)
from othink_jax.errors import UserError
from tests.tiny_processor import noise

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def make_settings(**changes: int) -> ImageSettings:
    values = {
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "min_pixels": 56 * 56,
        "max_pixels": 112 * 112,
    }
    return ImageSettings(**(values | changes), mean=MEAN, std=STD)


def reference(image: Image.Image, own: ImageSettings) -> tuple[np.ndarray, tuple[int, int]]:
    """Patches and grid of transformers' processor."""
    made = Qwen2VLImageProcessorPil(
        size={"shortest_edge": own.min_pixels, "longest_edge": own.max_pixels},
        patch_size=own.patch_size,
        temporal_patch_size=own.temporal_patch_size,
        merge_size=own.merge_size,
        image_mean=own.mean,
        image_std=own.std,
    )(image)
    _, rows, columns = made["image_grid_thw"][0]
    return made["pixel_values"], (int(rows), int(columns))


@settings(max_examples=300, deadline=None)
@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    low=st.integers(28 * 28, 200 * 200),
    spread=st.integers(0, 2_000_000),
)
def test_resized_shape_is_that_of_transformers(height, width, low, spread):
    assume(max(height, width) <= 200 * min(height, width))
    own = make_settings(min_pixels=low, max_pixels=low + spread)
    assert resized_shape(height, width, own) == smart_resize(height, width, 28, low, low + spread)


def test_hand_checked_shapes():
    own = make_settings()
    assert resized_shape(112, 112, own) == (112, 112)  # fits
    assert resized_shape(100, 60, own) == (112, 56)  # to the nearest multiples of 28
    assert resized_shape(28, 28, own) == (56, 56)  # grown to the least area
    assert resized_shape(1120, 1120, own) == (112, 112)  # shrunk to the greatest


@pytest.mark.parametrize(
    ("width", "height", "changes"),
    [
        (112, 112, {}),  # as it is
        (100, 60, {}),
        (31, 29, {}),  # grows
        (640, 480, {}),  # shrinks
        (640, 480, {"max_pixels": 401408}),
        (20, 1000, {}),  # narrow
        (90, 70, {"patch_size": 8, "merge_size": 3, "temporal_patch_size": 3}),
        (90, 70, {"merge_size": 1, "temporal_patch_size": 1}),
    ],
)
def test_patches_are_those_of_transformers(width, height, changes):
    own = make_settings(**changes)
    image = noise(width, height)
    patches, positions = patchify(image, own)
    expected, grid = reference(image, own)
    assert patches.dtype == np.float32
    assert positions.dtype == np.int32
    np.testing.assert_allclose(patches, expected, rtol=0, atol=1e-6)
    assert tuple(positions.max(axis=0) + 1) == grid


@pytest.mark.parametrize("normalisation", [(MEAN, STD), ((0.825,) * 3, (0.2,) * 3)])
def test_every_pixel_value_of_every_channel_is_that_of_transformers(normalisation):
    """Of Qwen2-VL and of the embedded model, whose values reach -4."""
    levels = np.resize(np.arange(256, dtype=np.uint8), (112, 112))
    image = Image.fromarray(np.stack([levels, levels, levels], axis=-1))
    mean, std = normalisation
    own = dataclasses.replace(make_settings(), mean=mean, std=std)
    patches, _ = patchify(image, own)
    expected, _ = reference(image, own)
    assert len(np.unique(patches)) == len(set(mean)) * 256
    np.testing.assert_allclose(patches, expected, rtol=0, atol=1e-6)


def test_a_patch_holds_the_pixels_of_its_row_and_column():
    image = noise(112, 56)
    own = make_settings()
    patches, positions = patchify(image, own)
    pixels = (np.asarray(image) / 255 - MEAN) / STD
    for patch, (row, column) in zip(patches, positions, strict=True):
        square = pixels[14 * row : 14 * row + 14, 14 * column : 14 * column + 14]
        channel_frame_row_column = patch.reshape(3, 2, 14, 14)
        for frame in range(2):
            np.testing.assert_allclose(
                channel_frame_row_column[:, frame], square.transpose(2, 0, 1), rtol=0, atol=1e-6
            )


def test_a_step_of_a_video_holds_two_frames_and_the_last_is_repeated():
    own, frames = make_settings(), [noise(84, 56, seed=number) for number in range(3)]
    steps, positions = patchify_video(frames, own)
    alone = [patchify(frame, own)[0].reshape(24, 3, 2, 196)[:, :, 0] for frame in frames]
    assert steps.shape == (2, 24, 1176)
    for step, pair in zip(steps, [(0, 1), (2, 2)], strict=True):
        for place, frame in enumerate(pair):
            held = step.reshape(24, 3, 2, 196)[:, :, place]
            np.testing.assert_array_equal(held, alone[frame])
    np.testing.assert_array_equal(positions, patch_positions(4, 6, merge=2))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [([], "it has 0 of 0 sizes"), ([(56, 56), (56, 84)], "it has 2 of 2 sizes")],
)
def test_the_frames_of_a_video_are_some_and_of_one_size(sizes, message):
    with pytest.raises(UserError, match=message):
        patchify_video([noise(*size) for size in sizes], make_settings())


def test_patches_are_ordered_window_by_window():
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)]
    np.testing.assert_array_equal(patch_positions(2, 4, merge=2), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "CMYK", "1", "YCbCr", "HSV"])
def test_opaque_modes_are_converted_as_transformers_does(mode):
    image = noise(56, 56).convert(mode)
    expected, _ = reference(image, make_settings())
    np.testing.assert_allclose(patchify(image, make_settings())[0], expected, rtol=0, atol=1e-6)


def test_what_is_transparent_lies_on_white():
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    red.putpixel((1, 0), (255, 0, 0, 51))  # a fifth opaque: 0.2 * red + 0.8 * white
    converted = to_rgb(red)
    assert converted.getpixel((0, 0)) == (255, 255, 255)
    assert converted.getpixel((1, 0)) == (255, 204, 204)
    assert to_rgb(Image.new("LA", (1, 1), (0, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_a_transparent_colour_of_a_png_lies_on_white(tmp_path, mode):
    image = Image.new(mode, (3, 1), 0)
    image.putpixel((1, 0), 1 if mode == "P" else (9, 9, 9))
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "a.png", transparency=0 if mode == "P" else (0, 0, 0))
    opened = open_image(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert [opened.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (9, 9, 9)]


def test_an_image_is_turned_as_its_exif_orientation_says(tmp_path):
    image = Image.new("RGB", (3, 2), "white")
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    opened = open_image(tmp_path / "a.png")
    assert opened.size == (2, 3)
    assert opened.getpixel((1, 0)) == (255, 0, 0)  # the top left corner went to the top right


def test_an_image_up_to_200_times_as_long_as_wide_is_taken():
    own = make_settings()
    assert resized_shape(200, 1, own)
    with pytest.raises(UserError, match=r"1x201 pixels is too narrow"):
        resized_shape(201, 1, own)


def test_bounds_that_contradict_are_refused():
    with pytest.raises(UserError, match="min_pixels must be > 0 and at most max_pixels"):
        make_settings(min_pixels=10_000, max_pixels=5_000)


def _encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no image at all",
        _encoded("PNG")[:3000],
        _encoded("JPEG")[:1500],
        _encoded("PNG")[:40] + b"\xff" * 400,
        _encoded("GIF")[:12],
    ],
    ids=["empty", "text", "cut png", "cut jpeg", "broken png", "cut gif"],
)
def test_a_broken_image_file_is_named(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"broken\.png cannot be read as an image"):
        open_image(path)


def test_a_missing_image_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no image .*absent\.png"):
        open_image(tmp_path / "absent.png")


def test_a_folder_is_no_image(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read as an image"):
        open_image(tmp_path)


# More than 8 bits a value


def chunk(name: bytes, content: bytes) -> bytes:
    checksum = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + checksum


def png(rows: np.ndarray, colour: int, transparent: bytes = b"") -> bytes:
    """A PNG file of 16 bits a value; colour type 0 is grey, 2 is RGB."""
    height, width = rows.shape[:2]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    between = chunk(b"tRNS", transparent) if transparent else b""
    parts = (chunk(b"IHDR", header), between, chunk(b"IDAT", zlib.compress(lines)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + chunk(b"IEND", b"")


def tiff(content: bytes, *, shape=(1, 3), bits=16, form=1, **tags: float) -> bytes:
    """A grey TIFF file; `form` is 1 for unsigned, 2 for signed, 3 for floating point numbers."""
    height, width = shape
    numbers = {"black": 262, "most": 281, "low": 340, "high": 341}
    held = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 277: 1, 278: height, 339: form}
    held |= {273: 0, 279: len(content)} | {numbers[name]: value for name, value in tags.items()}
    held[273] = 8 + 2 + 12 * len(held) + 4
    entries = b""
    for tag, value in sorted(held.items()):
        kind, packed = (
            (11, struct.pack("<f", value))
            if isinstance(value, float)
            else (4, struct.pack("<I", value))
        )
        entries += struct.pack("<HHI", tag, kind, 1) + packed
    return struct.pack("<2sHIH", b"II", 42, 8, len(held)) + entries + bytes(4) + content


def grey_of(content: bytes) -> list[int]:
    image = open_image(io.BytesIO(content))
    assert image.mode == "RGB"
    assert len(set(map(tuple, np.asarray(image).reshape(-1, 3).T))) == 1
    return np.asarray(image)[..., 0].ravel().tolist()


DEEP = np.array([[0, 0x8000, 0xFFFF]], np.uint16)
UNIT = np.array([[0, 0.5, 1]], np.float32)


@pytest.mark.parametrize(
    "content",
    [
        png(DEEP, 0),
        png(np.repeat(DEEP[..., None], 3, axis=2), 2),
        b"P5\n3 1\n65535\n" + DEEP.astype(">u2").tobytes(),
        b"P5\n3 1\n4095\n" + (DEEP >> 4).astype(">u2").tobytes(),
        b"Pf\n3 1\n-1.0\n" + UNIT.tobytes(),
        tiff(DEEP.tobytes()),
        tiff((0xFFFF - DEEP).tobytes(), black=0),
        tiff((DEEP >> 4).tobytes(), most=4095),  # 12 bits, stored as 16
        tiff(bytes([0x00, 0x08, 0x00, 0xFF, 0xF0]), bits=12),
        tiff(DEEP.tobytes(), most=50000),  # a statistic that is not true
        tiff((DEEP ^ 0x8000).tobytes(), form=2, low=-32768.0, high=32767.0),
        tiff((DEEP.astype(np.uint32) * 65537).tobytes(), bits=32, high=2**32 - 1),
        tiff(UNIT.tobytes(), bits=32, form=3),
        tiff((UNIT * 4 - 2).tobytes(), bits=32, form=3, low=-2.0, high=2.0),
        tiff((1 - UNIT).tobytes(), bits=32, form=3, black=0),
        tiff(np.array([-100, 0, 100], np.int8).tobytes(), bits=8, form=2, low=-100.0, high=100.0),
    ],
)  # fmt: skip
def test_a_deep_picture_is_that_of_8_bits(content):
    black, middle, white = grey_of(content)
    assert (black, white) == (0, 255)
    assert middle in (127, 128)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_and_8_bits_of_one_picture_are_the_same(kind):
    levels = np.asarray(noise(20, 10).convert("L"))
    made = []
    for values in (levels, levels.astype(np.uint16) * 257):
        buffer = io.BytesIO()
        Image.fromarray(values).save(buffer, kind)
        made.append(np.asarray(open_image(buffer)).astype(int))
    np.testing.assert_allclose(made[0], made[1], rtol=0, atol=0 if kind != "JPEG2000" else 1)


@pytest.mark.parametrize(
    "content",
    [
        tiff(np.array([-5, 0, 700], np.int16).tobytes(), form=2),
        tiff(DEEP.astype(np.uint32).tobytes(), bits=32),
        tiff((UNIT * 2).tobytes(), bits=32, form=3),
        tiff((UNIT * np.nan).tobytes(), bits=32, form=3),
        tiff(np.array([-5, 0, 7], np.int8).tobytes(), bits=8, form=2),
    ],
)
def test_a_deep_picture_that_does_not_say_its_scale_is_refused(content):
    with pytest.raises(UserError, match="nothing says what its values"):
        grey_of(content)


def test_a_picture_whose_values_contradict_their_range_is_refused():
    content = tiff((UNIT * 5).tobytes(), bits=32, form=3, low=0.0, high=2.0)
    with pytest.raises(UserError, match="0 to 5, are not in the range from 0 to 2 that its file"):
        grey_of(content)


def test_a_deep_picture_in_memory_is_scaled_by_its_mode():
    own = make_settings()
    deep, shallow = (
        Image.fromarray(np.asarray(noise(112, 112).convert("L")).astype(kind) * factor)
        for kind, factor in ((np.uint16, 257), (np.uint8, 1))
    )
    assert deep.mode == "I;16"
    np.testing.assert_array_equal(patchify(deep, own)[0], patchify(shallow, own)[0])
    with pytest.raises(UserError, match="nothing says what its values"):
        patchify(Image.fromarray(np.full((112, 112), 70_000, np.int32)), own)


def test_what_is_transparent_in_16_bits_lies_on_white():
    grey = png(np.array([[0x0102, 0x0103]], np.uint16), 0, struct.pack(">H", 0x0102))
    assert grey_of(grey) == [255, 1]
    colours = np.array([[[0x0102, 0x0304, 0x0506], [0, 0, 0]]], np.uint16)
    image = open_image(io.BytesIO(png(colours, 2, struct.pack(">3H", 0x0102, 0x0304, 0x0506))))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(255, 255, 255), (0, 0, 0)]


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("deep", [True, False])
def test_a_picture_of_any_depth_and_format_is_turned_once(tmp_path, name, deep):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(DEEP if deep else (DEEP >> 8).astype(np.uint8)).save(tmp_path / name, exif=exif)
    assert np.asarray(open_image(tmp_path / name))[..., 0].tolist() == [[0], [128], [255]]


# What must not be opened


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(UserError, match="cannot be read as an image: it is not a file"):
            open_image(name)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_read():
    buffer = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(buffer, "PNG")
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    with pytest.raises(UserError, match=r"it has 10000x9000 pixels, over 89478485 in all"):
        open_image(buffer)


def test_no_program_is_run_on_an_image():
    buffer = io.BytesIO()
    noise(8, 6).save(buffer, "EPS")  # Pillow gives it to Ghostscript
    with pytest.raises(UserError, match="its format is unknown"):
        open_image(buffer)


def test_mutated_images_are_read_or_refused():
    """The campaign of experiments/soak/images.py, in small."""
    seen = [outcome for outcome, _, _ in outcomes(seed=7, count=60)]
    assert [outcome for outcome in seen if not outcome.good] == []
    assert len(seen) == 60
