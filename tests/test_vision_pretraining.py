"""What the vision tower is told about a merge window, and how it learns it."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.pretrain_tiny import tiny_config
from experiments.vision_pretraining import (
    LABELS,
    diagram_labels,
    make_batch,
    pretrain_vision,
    scene_labels,
)
from othink_jax.checkpoint import hf
from othink_jax.data.processing import Processor
from othink_jax.data.synthetic.diagrams import Diagram, Text
from othink_jax.data.synthetic.scenes import Item, Look, Scene
from othink_jax.model.vlm import VLM, split


@pytest.fixture(scope="module")
def processor():
    return Processor.from_pretrained(hf.resolve("tiny"))


def held(table):
    """The labels of each window that has any."""
    return {
        window: {LABELS[label] for label in np.flatnonzero(row)}
        for window, row in enumerate(table)
        if row.any()
    }


def scene_of(*things):
    items = tuple(Item(look=Look(*look), x=x, y=y, variant=0) for look, x, y in things)
    return Scene(items=items, backdrop="studio", clutter=0, texture=0)


def test_a_window_tells_what_has_its_centre_there_and_how_many():
    cube, ball = ("cube", "red", "small"), ("sphere", "blue", "large")
    table = scene_labels(scene_of((cube, 30, 20), (ball, 50, 27), (cube, 111, 111)))
    assert held(table) == {
        1: {"red cube", "small", "blue sphere", "large", "things >= 1", "things >= 2"},
        15: {"red cube", "small", "things >= 1"},
    }


def test_more_things_than_are_told_apart_are_the_most():
    cube = ("cube", "red", "small")
    table = scene_labels(scene_of(*((cube, 5 + i, 5) for i in range(5))))
    assert held(table) == {
        0: {"red cube", "small", "things >= 1", "things >= 2", "things >= 3"},
    }


def test_a_measure_is_told_digit_by_digit_and_a_name_as_it_is():
    texts = (
        Text(text="105", centre=(60.0, 10.0), is_value=True),
        Text(text="x", centre=(10.0, 30.0), is_value=True),
        Text(text="B", centre=(100.0, 100.0), is_value=False),
    )
    diagram = Diagram(points={}, segments=(), marks=(), radius=None, texts=texts, paper=255)
    assert held(diagram_labels(diagram)) == {
        2: {"digit 5 at 0", "digit 0 at 1", "digit 1 at 2"},
        4: {"x"},
        15: {"B"},
    }


def test_batches_are_a_function_of_seed_and_step(processor):
    first, again = (make_batch(3, 1, 4, processor.image_settings) for _ in range(2))
    other = make_batch(3, 2, 4, processor.image_settings)
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert one.shape == three.shape
    assert (first[0] != other[0]).any()


def test_the_tower_learns_and_the_language_model_is_left_alone(processor, capsys):
    config = tiny_config(len(processor.tokenizer), processor.tokenizer.convert_tokens_to_ids)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, depth=1))
    graphdef, params = split(VLM(config, rngs=nnx.Rngs(0)))
    before = jax.device_get(params)
    after = pretrain_vision(
        graphdef,
        params,
        processor.image_settings,
        seed=0,
        steps=200,
        batch_size=2,
        learning_rate=1e-3,
    )
    jax.tree.map(np.testing.assert_array_equal, before["text"], jax.device_get(after["text"]))
    assert (
        before["visual"]["patch_embed"]["kernel"] != after["visual"]["patch_embed"]["kernel"]
    ).any()
    first, second = re.findall(r"loss (\S+)", capsys.readouterr().out)  # of a hundred steps each
    assert float(second) < 0.8 * float(first)
