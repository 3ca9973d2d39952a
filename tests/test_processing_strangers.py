"""Model directories that others wrote: what breaks or contradicts is one line at load."""

import dataclasses
import json
import re

import numpy as np
import pytest

from othink_jax.checkpoint.load import load_processor
from othink_jax.data.processing import Processor
from othink_jax.errors import UserError
from tests.model_cases import make_config
from tests.tiny_processor import fitted, noise, write_directory

TEMPLATE = "chat_template.jinja"


@pytest.fixture
def directory(tmp_path):
    return write_directory(tmp_path / "model")


@pytest.fixture
def config(directory):
    return fitted(make_config(vision={"patch_size": 14}), directory)


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(directory, message):
    with pytest.raises(UserError, match=message) as caught:
        Processor.from_pretrained(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)


# Chat templates


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for turn in messages %}", "the chat template fails: Unexpected end of template"),
        ("{{ pictures.first.name }}", "the chat template fails: 'pictures' is undefined"),
        ("{{ raise_exception('No pictures.') }}", "the chat template fails: No pictures.$"),
        ("{{ 1 / 0 }}", "the chat template fails: division by zero"),
        ("{{ messages[7].role }}", "the chat template fails"),
        ("{% for i in range(10**9) %}x{% endfor %}", "the chat template fails: Range too big"),
        ("{{ ''.__class__.__mro__ }}", "the chat template fails: .* is unsafe"),
        ("", "shows 0 of 2 images, and no text"),
        ("{{ messages[0].content[1].text }}", "shows 0 of 2 images, and the text"),
        ("<|image_pad|><|image_pad|>", "shows 2 of 2 images, and no text"),
        ("<|image_pad|>{{ messages[0].content[1].text }}", "shows 1 of 2 images, and the text"),
    ],
)
def test_a_chat_template_that_cannot_be_used_is_said_at_once(directory, template, message):
    (directory / TEMPLATE).write_text(template)
    refused(directory, message)


@pytest.mark.parametrize("template", [7, {"other": "x"}, ["x"]], ids=str)
def test_a_chat_template_that_is_no_text_is_said(directory, template):
    (directory / TEMPLATE).unlink()
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    refused(directory, "the chat template fails")


def test_a_template_that_fails_for_one_chat_only_says_so_there(directory):
    source = (directory / TEMPLATE).read_text()
    test = "{% if messages | length > 1 %}{{ raise_exception('One turn!') }}{% endif %}"
    (directory / TEMPLATE).write_text(test + source)
    processor = Processor.from_pretrained(directory)
    processor.encode("How many?", [])
    with pytest.raises(UserError, match="the chat template fails: One turn!"):
        processor.encode_chat([{"role": "user", "content": "How"}] * 2)


def test_the_processors_template_goes_before_the_tokenizers(directory):
    """Some tokenizer_config.json hold one for text alone, and chat_template.json the model's."""
    template = (directory / TEMPLATE).read_text()
    (directory / TEMPLATE).unlink()
    change(directory / "tokenizer_config.json", chat_template="{{ messages[0].content }}")
    (directory / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert Processor.from_pretrained(directory).encode("3", [noise(56, 56)]).patches


# Tokens


@pytest.mark.parametrize("named", ["<|im_end|>", ["503"], True, [None], 99_999, -1, 1.5, [[1]], {}])
def test_an_end_token_that_is_none_is_refused(directory, named):
    change(directory / "generation_config.json", eos_token_id=named)
    found = named[0] if isinstance(named, list) else named
    refused(directory, rf"eos_token_id {re.escape(repr(found))} is not the id of a token")


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
def test_a_token_that_the_tokenizer_has_not_is_not_made_up(directory, name):
    change(directory / "tokenizer_config.json", **{name: "<|end|>"})
    refused(directory, r"tokenizer_config\.json names <\|end\|>, tokenizer\.json does not$")


def test_ids_without_a_token_are_never_sampled(directory, config):
    known = config.text.vocab_size
    few = Processor.from_pretrained(directory, vocab_size=known)
    assert few.never_sampled == Processor.from_pretrained(directory).never_sampled
    many = dataclasses.replace(config.text, vocab_size=known + 279)
    made = load_processor(directory, dataclasses.replace(config, text=many))
    assert made.never_sampled == (*few.never_sampled, *range(known, known + 279))


def test_a_vocabulary_smaller_than_the_tokenizers_is_refused(directory, config):
    known = config.text.vocab_size
    with pytest.raises(UserError, match=f"ids up to {known - 1}, .* vocab_size of {known - 1}"):
        Processor.from_pretrained(directory, vocab_size=known - 1)


# Image settings


@pytest.mark.parametrize("mean", [0.5, 0, [0.5, 0.25, 0.125]], ids=str)
def test_one_mean_for_all_colours_is_that_of_each(directory, mean):
    change(directory / "preprocessor_config.json", image_mean=mean)
    found = Processor.from_pretrained(directory).image_settings.mean
    np.testing.assert_array_equal(found, np.broadcast_to(mean, 3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_mean": [0.5]}, "image_mean must be a number, or one of each colour"),
        ({"image_std": "0.5"}, "image_std must be a number, or one of each colour"),
        ({"image_std": [1, float("nan"), 1]}, "image_std must be a number, or one of each colour"),
        ({"image_std": [1, 0, 1]}, "image_std must not be 0"),
        ({"patch_size": "14"}, "patch_size must be a positive whole number, got '14'"),
        ({"merge_size": 2.0}, "merge_size must be a positive whole number"),
        ({"temporal_patch_size": True}, "temporal_patch_size must be a positive whole number"),
        ({"max_pixels": "many"}, "max_pixels must be a positive whole number"),
        ({"size": 3}, "size must hold shortest_edge and longest_edge"),
    ],
)
def test_image_settings_of_a_wrong_kind_are_refused(directory, changes, message):
    change(directory / "preprocessor_config.json", **changes)
    refused(directory, message)


def test_two_files_that_say_different_things_of_images_are_refused(directory):
    both = json.loads((directory / "preprocessor_config.json").read_text())
    new = directory / "processor_config.json"
    new.write_text(json.dumps({"image_processor": both}))
    Processor.from_pretrained(directory)
    new.write_text(json.dumps({"image_processor": both | {"image_mean": 0.1}}))
    refused(directory, "say different things of images")
    new.write_text(json.dumps({"image_processor": []}))
    refused(directory, "image_processor is no JSON object")


# What two files state


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("merge_size", 1, "merge_size is 1, but spatial_merge_size of"),
        ("patch_size", 16, "patch_size is 16, but patch_size of"),
        ("temporal_patch_size", 1, "temporal_patch_size is 1, but"),
    ],
)
def test_image_settings_that_contradict_the_vision_tower_are_refused(
    directory, config, name, value, message
):
    load_processor(directory, config)
    change(directory / "preprocessor_config.json", **{name: value})
    with pytest.raises(UserError, match=rf"{message}.*config\.json is \d+$"):
        load_processor(directory, config)


@pytest.mark.parametrize("name", ["image", "video", "vision_start", "vision_end"])
def test_vision_tokens_that_are_not_the_tokenizers_are_refused(directory, config, name):
    other = dataclasses.replace(config, **{f"{name}_token_id": 1})
    with pytest.raises(UserError, match=rf"is \d+, but {name}_token_id of config\.json is 1$"):
        load_processor(directory, other)


def test_a_vision_tower_for_other_than_three_colours_is_refused(directory, config):
    other = dataclasses.replace(config, vision=dataclasses.replace(config.vision, in_channels=1))
    with pytest.raises(UserError, match=r"number of colours is 3, but in_channels of .* is 1$"):
        load_processor(directory, other)
