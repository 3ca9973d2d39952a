"""Images to patches: the same numbers as transformers, and clear words about bad files."""

import dataclasses
import io
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
