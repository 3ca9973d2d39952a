"""Files and chats of every kind, from our processor to our logits, against transformers'."""

import functools

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import load_image

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.load import load, load_processor
from othink_jax.data.images import open_image
from othink_jax.data.processing import PadTo
from othink_jax.model.vlm import merge
from tests.model_cases import close
from tests.parity_cases import CHATS, film, turn, write_random_model
from tests.peers import PeerProcessor, load_peer
from tests.tiny_processor import noise

TOLERANCE = 2e-5  # of logits whose spread is about one
# One shape for all prompts, so that the model is compiled once.
PAD = PadTo(prompt_tokens=256, image_slots=7, patches=256)


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen3_vl"])
def directory(tmp_path_factory, request):
    return write_random_model(tmp_path_factory.mktemp("model"), family=request.param)


@pytest.fixture(scope="module")
def logits_of(directory):
    """Our logits at every token of a batch."""
    ours = load(directory)

    @jax.jit
    def run(params, prompts):
        model = merge(ours.graphdef, params)
        return model.logits(model.prefill(prompts)[0])

    return functools.partial(run, ours.params)


@pytest.fixture(scope="module")
def peer(directory):
    return load_peer(directory)


def processor_of(directory, **bounds):
    return load_processor(directory, hf.load_config(directory), **bounds)


def check_prompt(prompt, chat, processor, peer):
    """Tokens, pixel values and positions; returns transformers' inputs."""
    inputs = processor(chat)
    np.testing.assert_array_equal(prompt.tokens, inputs["input_ids"][0])
    visuals = [pixels for _, pixels, _ in processor.visuals(chat)]
    assert bool(visuals) == bool(prompt.patches)
    if visuals:
        close(np.concatenate(prompt.patches), torch.cat(visuals), 1e-6, "pixel values")
    grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
    positions, deltas = peer.model.get_rope_index(
        inputs["input_ids"], inputs["mm_token_type_ids"], **grids
    )
    np.testing.assert_array_equal(prompt.positions, positions[:, 0])
    assert prompt.positions.max() + 1 == deltas.item() + len(prompt.tokens)
    return inputs


def check_logits(own, inputs, peer):
    expected = peer(**inputs).logits[0]
    assert 0.3 < expected.std() < 3
    close(own[: len(expected)], expected, TOLERANCE, "logits")


@pytest.mark.parametrize("name", CHATS)
def test_a_chat_is_to_our_model_what_it_is_to_transformers(name, directory, peer, logits_of):
    processor = processor_of(directory)
    prompt = processor.encode_chat(CHATS[name])
    inputs = check_prompt(prompt, CHATS[name], PeerProcessor(directory), peer)
    check_logits(logits_of(processor.batch([prompt], pad=PAD))[0], inputs, peer)


def test_a_mixed_batch_gives_each_prompt_what_it_gets_alone(directory, peer, logits_of):
    processor = processor_of(directory)
    encoded = [processor.encode_chat(chat) for chat in CHATS.values()]
    for own, chat in zip(logits_of(processor.batch(encoded)), CHATS.values(), strict=True):
        check_logits(own, PeerProcessor(directory)(chat), peer)


@pytest.mark.parametrize(
    ("bounds", "windows"),
    [
        ({"min_pixels": 28 * 28, "max_pixels": 28 * 28}, 1),  # one merge window
        ({"min_pixels": 28 * 28, "max_pixels": 50_000}, 4),  # nothing to do
        ({"min_pixels": 100 * 100, "max_pixels": 50_000}, 16),  # grown
        ({"min_pixels": 28 * 28, "max_pixels": 3_000}, 2),  # shrunk
    ],
)
def test_pixel_bounds_work_as_in_transformers(bounds, windows, directory, peer, logits_of):
    chat = [turn(noise(60, 50), film(60, 50, 3), "How many?")]
    processor = processor_of(directory, **bounds)
    prompt = processor.encode_chat(chat)
    assert [len(patches) for patches in prompt.patches] == [4 * windows] * 3
    inputs = check_prompt(prompt, chat, PeerProcessor(directory, **bounds), peer)
    check_logits(logits_of(processor.batch([prompt], pad=PAD))[0], inputs, peer)


def test_image_files_of_every_kind_are_read_as_transformers_reads_them(
    tmp_path, directory, peer, logits_of
):
    """All but what is transparent: see `test_what_is_transparent_lies_on_white`."""
    for number, mode in enumerate(["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"]):
        kind = "tiff" if mode == "CMYK" else "png"
        noise(56, 56, seed=number).convert(mode).save(tmp_path / f"{number}.{kind}")
    exif = Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        noise(84, 56, seed=orientation).save(tmp_path / f"turned{orientation}.jpg", exif=exif)
    noise(56, 56).convert("CMYK").save(tmp_path / "print.jpg")
    files = sorted(tmp_path.iterdir())
    assert len(files) == 16
    for some in (files[:6], files[6:11], files[11:]):
        processor = processor_of(directory)
        prompt = processor.encode("Which?", [open_image(file) for file in some])
        chat = [turn(*(load_image(str(file)) for file in some), "Which?")]
        inputs = check_prompt(prompt, chat, PeerProcessor(directory), peer)
        check_logits(logits_of(processor.batch([prompt], pad=PAD))[0], inputs, peer)
