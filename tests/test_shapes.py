"""The shapes of a run: few, large enough for every batch, and the same where it goes on."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import multihost_utils
from PIL import Image

from othink_jax.checkpoint.load import load
from othink_jax.config import DataConfig, ParallelConfig
from othink_jax.data.processing import PadTo
from othink_jax.training import processes, shapes
from othink_jax.training.parallel import make_parallel
from othink_jax.training.sft import SFTTrainer
from othink_jax.training.shapes import around, choose_shapes, quarters
from tests.shallow import shallow
from tests.test_sft import config_for
from tests.test_sources import write_jsonl

# Bounds of an image as R1-V trains: at most 2048 patches.
PROCESSOR = load("tiny", min_pixels=3136, max_pixels=401408).processor


def needs(sizes):
    """What a batch needs whose largest prompt and image have so many tokens and patches."""
    return [
        PROCESSOR.multiples(prompt_tokens=tokens, image_slots=1, patches=patches)
        for tokens, patches in sizes
    ]


def chosen(sizes, lengths=(64, 128, 192, 256), max_prompt_tokens=1024):
    return choose_shapes(PROCESSOR, needs(sizes), lengths, max_prompt_tokens=max_prompt_tokens)


def size(shape):
    return dataclasses.astuple(shape)


_BATCH = st.tuples(st.integers(1, 1024), st.integers(1, 2048), st.integers(1, 3072))


@settings(max_examples=200, deadline=None)
@given(st.lists(_BATCH, min_size=1, max_size=60), st.booleans())
def test_a_run_of_any_sizes_and_lengths_has_six_updates_at_most(batches, learns_from_solutions):
    first = batches[: shapes.SURVEYED]
    if learns_from_solutions:
        limit = 3072
        lengths = around(max(length for *_, length in first), limit)
    else:
        limit = 512
        lengths = quarters(limit)
    run = chosen([(tokens, patches) for tokens, patches, _ in first], lengths)
    met = set()
    for tokens, patches, length in batches:
        (needed,), longest = needs([(tokens, patches)]), min(length, limit)
        shape = run.of_prompts(needed)
        padded = run.of_completions(shape, longest)
        assert tokens <= shape.prompt_tokens
        assert patches <= shape.patches
        assert longest <= padded <= limit
        assert PROCESSOR.multiples(**dataclasses.asdict(shape)) == shape
        met.add((shape, padded))
    assert met <= set(run.updates())
    assert len({shape for shape, _ in run.updates()}) <= shapes.MOST_PROMPT_SHAPES
    assert len(run.updates()) <= shapes.MOST_SHAPES


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 1024), st.integers(1, 2048)), min_size=1, max_size=8))
def test_the_usual_shape_is_a_quarter_larger_than_first_batches_at_most(sizes):
    usual = chosen(sizes).usual
    inside = [x for x in sizes if x[0] <= usual.prompt_tokens and x[1] <= usual.patches]
    tokens, patches = (max(column) for column in zip(*inside, strict=True))
    assert usual.prompt_tokens <= 1.25 * (tokens + 32) + 32
    assert usual.patches <= 1.25 * (patches + 64) + 64


def test_a_batch_that_is_far_larger_than_the_others_does_not_make_them_larger():
    few = [(100, 256)] * 7 + [(700, 1900)]
    assert size(chosen(few).usual) == (128, 1, 256)
    assert size(chosen([(100, 256)] + [(700, 1900)] * 7).usual) == (768, 1, 2048)


def test_the_largest_shape_is_what_the_settings_allow():
    run = chosen([(300, 1000)])
    assert (size(run.usual), size(run.largest)) == ((320, 1, 1024), (1024, 1, 2048))
    assert size(chosen([(1000, 2048)]).usual) == (1024, 1, 2048)
    assert size(chosen([(900, 64)], max_prompt_tokens=900).usual) == (928, 1, 64)
    # An image of more patches would take more tokens than a prompt may have.
    assert size(chosen([(40, 64)], max_prompt_tokens=100).largest) == (128, 1, 448)


def test_small_prompts_and_short_completions_are_padded_to_plain_multiples():
    """Of the synthetic tasks: their one shape, and so the digits of stored results."""
    assert size(chosen([(52, 64), (46, 64)]).usual) == (64, 1, 64)
    assert size(chosen([(60, 64)]).usual) == (64, 1, 64)
    assert set(quarters(40)) == set(around(33, 40)) == {40}
    assert set(quarters(128)) == {64, 128}
    assert set(quarters(256)) == {64, 128, 192, 256}


def test_lengths_of_solutions_are_those_of_the_first_ones_whatever_the_limit():
    assert around(200, 3072) == (128, 256, 448, 3072)
    run = chosen([(300, 1000)], around(200, 3072))
    assert run.of_completions(run.usual, 260) == 448
    assert run.of_completions(run.largest, 100) == 256
    assert run.of_completions(run.largest, 260) == 3072


def test_what_no_setting_bounds_has_its_shape_doubled_until_it_fits():
    run = chosen([(300, 1000)], max_prompt_tokens=None)
    assert size(run.largest) == (640, 1, 2048)
    met = {run.of_prompts(needed) for needed in needs([(n, 64) for n in range(32, 20_000, 32)])}
    assert sorted(shape.prompt_tokens for shape in met) == [320 * 2**n for n in range(7)]
    images = {
        run.of_prompts(dataclasses.replace(needs([(64, 64)])[0], image_slots=count))
        for count in range(1, 33)
    }
    assert sorted(shape.image_slots for shape in images) == [1, 2, 4, 8, 16, 32]


def test_prompts_of_several_images_leave_room_for_twice_as_many():
    several = PadTo(prompt_tokens=320, image_slots=3, patches=256)
    run = choose_shapes(PROCESSOR, [several], quarters(64), max_prompt_tokens=1024)
    assert (run.usual.image_slots, run.largest.image_slots) == (3, 6)


def test_prompts_without_images_stay_without():
    texts = PROCESSOR.multiples(prompt_tokens=70, image_slots=0, patches=0)
    run = choose_shapes(PROCESSOR, [texts], quarters(64), max_prompt_tokens=1024)
    assert (size(run.usual), size(run.largest)) == ((96, 0, 0), (1024, 0, 0))
    (shown,) = needs([(70, 128)])
    assert size(run.of_prompts(shown)) == (1024, 1, 128)


# In runs


@pytest.mark.parametrize("strategy", ["jit", "pmap", "mesh"])
@pytest.mark.parametrize("images", [0, 1])
def test_the_shape_of_prompts_is_the_same_on_all_devices(strategy, images):
    devices = None if strategy == "jit" else 2
    parallel = make_parallel(ParallelConfig(strategy=strategy, devices=devices))
    prompt = PROCESSOR.encode("How many?", [Image.new("RGB", (56, 84))] * images)
    batch = PROCESSOR.batch([prompt] * 2)
    expected = PROCESSOR.bucket([prompt])
    assert shapes.shape_of(batch) == shapes.shape_of(parallel.shard(batch)) == expected


@pytest.fixture
def pictures(tmp_path):
    """Questions with an image of 28 to 336 pixels a side and a solution of up to 300 words."""
    rng, rows = np.random.default_rng(0), []
    for number in range(40):
        width, height = (int(side) for side in rng.integers(28, 337, 2))
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        words = "one " * int(rng.integers(1, 300))
        rows.append({"question": "How many?", "ground_truth": words, "image_path": f"{number}.png"})
    return write_jsonl(tmp_path / "data.jsonl", rows)


def test_a_run_over_pictures_of_all_sizes_meets_few_shapes(pictures, tmp_path):
    data = DataConfig(dataset=str(pictures), template="{question}", min_pixels=784)
    config = config_for(tmp_path / "run", data=data, prompts_per_step=1, max_completion_tokens=1024)
    trainer = SFTTrainer(config, load(shallow(), min_pixels=784, max_pixels=401408))
    plain, met = set(), set()
    for _ in range(40):
        _, encoded, prompts = trainer.next_prompts(None)
        longest = max(len(prompt.completion) for prompt in encoded)
        plain.add((trainer.checkpoint.processor.bucket(encoded), -(-longest // 64)))
        met.add((shapes.shape_of(prompts), trainer.common_length(prompts, longest)))
    assert len(plain) > 20
    assert len(met) <= shapes.MOST_SHAPES
    assert met <= set(trainer.shapes.updates())


def test_processes_exchange_texts_of_any_length_in_few_shapes(monkeypatch):
    """Each shape is another program."""
    asked = set()

    def gather(array):
        asked.add((array.shape, array.dtype))
        return np.stack([array, array])

    monkeypatch.setattr(processes.jax, "process_count", lambda: 2)
    monkeypatch.setattr(multihost_utils, "process_allgather", gather)
    for length in [*range(1, 5000, 7), 10_000, 16_384]:
        assert processes.all_gather("x" * length) == ["x" * length] * 2
    assert {shape for shape, _ in asked} == {(), (4096,), (8192,), (16_384,), (32_768,)}
