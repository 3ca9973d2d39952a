"""The embedded model: small, whole, and the same in transformers."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl import Qwen2VLImageProcessorPil

from othink_jax.checkpoint import hf
from othink_jax.checkpoint.load import load
from othink_jax.config import TINY_TEMPLATE, SamplingConfig
from othink_jax.data.synthetic import generate
from othink_jax.generation import answer

TINY = hf.resolve("tiny")
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def ours():
    return load("tiny")


@pytest.fixture(scope="module")
def theirs():
    model = Qwen2VLForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32).eval()
    return (
        model,
        AutoTokenizer.from_pretrained(TINY),
        Qwen2VLImageProcessorPil.from_pretrained(TINY),
    )


def their_greedy_tokens(theirs, question: str, images, **settings) -> list[int]:
    """What transformers' own tokenizer, image processor and `generate` make of one user turn."""
    model, tokenizer, image_processor = theirs
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    inputs = {}
    if images:
        inputs = dict(image_processor(list(images), return_tensors="pt"))
        for grid in inputs["image_grid_thw"]:
            text = text.replace("<|image_pad|>", "<|place|>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<|place|>", "<|image_pad|>")
    tokens = tokenizer(text, return_tensors="pt")["input_ids"]
    types = (tokens == model.config.image_token_id).long()
    with torch.no_grad():
        made = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            mm_token_type_ids=types,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            **settings,
            **inputs,
        )
    return made[0, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("task", ["counting", "geometry"])
@pytest.mark.parametrize("style", ["{question} Think, then answer.", "{question}"])
def test_greedy_tokens_are_those_of_transformers(ours, theirs, task, style):
    sampling = SamplingConfig(temperature=0.0, top_k=0, max_new_tokens=NEW_TOKENS)
    for index in range(3):
        example = generate(task, "test", index)
        question = style.format(question=example.question)
        tokens = answer(ours, question, example.images, sampling=sampling).token_ids
        assert tokens == their_greedy_tokens(theirs, question, example.images)


@pytest.mark.parametrize(
    "settings",
    [
        {"repetition_penalty": 10.0},
        {"repetition_penalty": 0.8, "min_new_tokens": 25},
        {"min_new_tokens": 38},
    ],
    ids=str,
)
def test_penalty_and_least_length_work_as_in_transformers(ours, theirs, settings):
    plain = SamplingConfig(temperature=0.0, max_new_tokens=NEW_TOKENS)
    changed = 0
    for index in range(3):
        question, images = "Describe the image.", generate("counting", "test", index).images
        sampling = dataclasses.replace(plain, **settings)
        tokens = answer(ours, question, images, sampling=sampling).token_ids
        assert tokens == their_greedy_tokens(theirs, question, images, **settings)
        changed += tokens != answer(ours, question, images, sampling=plain).token_ids
    assert changed


def test_a_description_has_the_same_tokens_too(ours, theirs):
    sampling = SamplingConfig(temperature=0.0, top_k=0, max_new_tokens=NEW_TOKENS)
    images = generate("counting", "test", 5).images
    tokens = answer(ours, "Describe the image.", images, sampling=sampling).token_ids
    assert tokens == their_greedy_tokens(theirs, "Describe the image.", images)
    assert len(tokens) > 3


def test_it_fits_a_package(ours):
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 8e6
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(ours.params))


def test_it_writes_the_format_that_is_rewarded(ours):
    sampling = SamplingConfig(temperature=0.0, top_k=0, max_new_tokens=NEW_TOKENS)
    for index in range(3):
        example = generate("counting", "test", index)
        question = TINY_TEMPLATE.format(question=example.question)
        text = answer(ours, question, example.images, sampling=sampling).text
        assert text.startswith("<think>")
        assert text.endswith("</answer>")
