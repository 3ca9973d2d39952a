"""Answers that are given, not sampled: how they end, and what cannot be one."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from othink_jax.data.processing import Processor
from othink_jax.errors import UserError
from tests.tiny_processor import write_directory

ANSWER = "<think>I see 2</think> <answer>2</answer>"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def processor(directory):
    return Processor.from_pretrained(directory)


@pytest.fixture(scope="module")
def text_of(directory):
    """Token ids -> text with special tokens, by the tokenizers library alone."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    return lambda ids: tokenizer.decode(list(ids), skip_special_tokens=False)


def test_an_answer_goes_up_to_the_end_of_its_turn_and_no_further(processor, text_of):
    """Neither the template's line break after the turn, nor the header of another one."""
    tokens = processor.encode_answer(ANSWER)
    assert text_of(tokens) == ANSWER + "<|im_end|>"
    assert tokens.dtype == np.int32
    assert np.isin(tokens, processor.eos_token_ids).tolist() == [False] * (len(tokens) - 1) + [True]


def test_an_answer_follows_its_prompt_as_the_chat_template_has_it(processor, text_of):
    prompt = processor.encode("How many?", [])
    chat = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": ANSWER}]
    whole = processor.tokenizer.apply_chat_template(chat, tokenize=False)
    answered = np.concatenate([prompt.tokens, processor.encode_answer(ANSWER)])
    assert text_of(answered) + "\n" == whole


def test_a_template_that_ends_a_turn_at_once_is_followed(processor, text_of):
    template = processor.tokenizer.chat_template
    processor.tokenizer.chat_template = template.replace("<|im_end|>\\n", "<|im_end|>")
    assert text_of(processor.encode_answer("2")) == "2<|im_end|>"


@pytest.mark.parametrize("token", ["<|im_end|>", "<|endoftext|>", "<|im_start|>", "<|image_pad|>"])
def test_an_answer_with_a_special_token_is_refused(processor, token):
    with pytest.raises(UserError, match="holds a special token"):
        processor.encode_answer(f"2 {token} 3")


def test_a_template_that_does_not_end_an_answer_is_refused(processor):
    template = processor.tokenizer.chat_template
    processor.tokenizer.chat_template = template.replace("<|im_end|>\\n", "\\n")
    with pytest.raises(UserError, match="without an end-of-sequence token"):
        processor.encode_answer("2")


def test_a_template_that_begins_an_answer_otherwise_is_refused(processor):
    """One that opens a thought where it prompts for an answer, and not where one is given."""
    prompting = "{{ '<|im_start|>assistant\\n' }}"
    template = processor.tokenizer.chat_template
    assert prompting in template
    processor.tokenizer.chat_template = template.replace(
        prompting, "{{ '<|im_start|>assistant\\n<think>' }}"
    )
    with pytest.raises(UserError, match="begins an answer otherwise"):
        processor.encode_answer("2")


def test_completions_are_padded_on_the_right(processor):
    completions = [np.array([5, 6, 7], np.int32), np.array([8], np.int32)]
    tokens, mask = processor.batch_completions(completions, 4)
    pad = processor.pad_token_id
    assert tokens.tolist() == [[[5, 6, 7, pad]], [[8, pad, pad, pad]]]
    assert mask.tolist() == [[[True] * 3 + [False]], [[True] + [False] * 3]]
    assert tokens.dtype == np.int32
