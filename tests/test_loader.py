"""The stream of prompts: its order, its position, and what it leaves out."""

import dataclasses
import itertools
import json
import logging
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from othink_jax.data.example import Example, UnreadableExample
from othink_jax.data.loader import PromptLoader, in_order
from othink_jax.data.processing import Processor
from othink_jax.errors import UserError
from othink_jax.rewards import AnswerFormat
from tests.tiny_processor import noise, write_directory

TEMPLATE = "{question} Think, then answer."


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_directory(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processor(directory):
    return Processor.from_pretrained(directory)


class Numbers:
    """`size` examples; by number, some have what makes them unusable.

    These are broken or too narrow images, long questions, long solutions, or special tokens in one.
    """

    def __init__(self, size, *, broken=(), long=(), narrow=(), wordy=(), special=()):
        self.size, self.broken, self.long, self.narrow = size, broken, long, narrow
        self.wordy, self.special = wordy, special
        self.threads = set()

    def __len__(self):
        return self.size

    def texts(self):
        yield "numbers"

    def __getitem__(self, index):
        self.threads.add(threading.current_thread())
        words = 200 if index in self.long else 1
        image = noise(1, 300) if index in self.narrow else noise(56, 56, seed=index)
        example = Example(
            id=f"n{index}",
            images=(image,),
            question=f"{index} " + "red " * words,
            answer=str(index),
            solution="red " * 50 * (index in self.wordy)
            + "<|im_end|>" * (index in self.special)
            + f"<answer>{index}</answer>",
        )
        if index in self.broken:
            raise UnreadableExample(f"n{index}: its image is broken", example)
        return example


@pytest.fixture
def load(processor):
    def make(source, *, batch_size=4, seed=0, max_prompt_tokens=100, **settings):
        return PromptLoader(
            source,
            processor,
            batch_size=batch_size,
            seed=seed,
            template=TEMPLATE,
            max_prompt_tokens=max_prompt_tokens,
            **settings,
        )

    return make


def ids(batch):
    return [example.id for example in batch[0]]


def take(loader, batches):
    return [ids(next(loader)) for _ in range(batches)]


def flat_list(batches):
    return list(itertools.chain.from_iterable(batches))


def test_a_batch_pairs_examples_with_their_prompts(load, processor):
    examples, encoded = next(load(Numbers(10)))
    assert len(examples) == len(encoded) == 4
    for example, prompt in zip(examples, encoded, strict=True):
        expected = processor.encode(f"{example.question} Think, then answer.", example.images)
        np.testing.assert_array_equal(prompt.tokens, expected.tokens)
        np.testing.assert_array_equal(prompt.patches[0], expected.patches[0])


def test_every_epoch_shows_every_example_once_in_another_order(load):
    flat = flat_list(take(load(Numbers(12)), 9))  # 36 examples: three epochs
    epochs = [flat[:12], flat[12:24], flat[24:]]
    assert all(sorted(epoch) == sorted(epochs[0]) for epoch in epochs)
    assert len(set(flat)) == 12
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_is_a_function_of_the_seed(load):
    assert take(load(Numbers(12)), 5) == take(load(Numbers(12)), 5)
    assert take(load(Numbers(12)), 5) != take(load(Numbers(12), seed=1), 5)


class Meeting:
    """Lets loaders in threads of their own exchange values, as processes do."""

    def __init__(self, count):
        self._values = [None] * count
        self._barrier = threading.Barrier(count, timeout=60)

    def of(self, number):
        def exchange(value):
            self._values[number] = json.dumps(value)
            self._barrier.wait()
            values = [json.loads(value) for value in self._values]
            self._barrier.wait()
            return values

        return exchange


def run_as_processes(count, use):
    """What `use(process, share, exchange)` gives for each of so many processes."""
    meeting = Meeting(count)
    with ThreadPoolExecutor(count) as threads:
        called = [threads.submit(use, n, (n, count), meeting.of(n)) for n in range(count)]
        return [call.result() for call in called]


@pytest.mark.parametrize("count", [2, 4])
def test_batches_are_the_same_for_any_number_of_processes(load, count):
    source = Numbers(11, broken={1, 2, 8}, long={5})
    alone = load(source)
    whole, skipped = take(alone, 8), dict(alone.skipped)

    def use(process, share, exchange):
        loader = load(source, share=share, all_gather=exchange)
        return take(loader, 8), dict(loader.skipped), loader.get_state()

    made = run_as_processes(count, use)
    for batch, *shares in zip(whole, *(batches for batches, _, _ in made), strict=True):
        assert flat_list(shares) == batch
    assert all(counted == skipped for _, counted, _ in made)
    assert all(state == alone.get_state() for _, _, state in made)


def test_several_processes_need_a_way_to_exchange_findings(load):
    with pytest.raises(ValueError, match="2 processes need a way to exchange findings"):
        load(Numbers(4), share=(0, 2))


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2)])
def test_a_stream_goes_on_with_another_number_of_processes(load, before, after):
    source = Numbers(11, broken={1, 2, 8}, long={5})
    whole = take(load(source), 7)

    def begin(process, share, exchange):
        loader = load(source, share=share, all_gather=exchange)
        take(loader, 3)
        return loader.get_state()

    (state, *_) = run_as_processes(before, begin)

    def go_on(process, share, exchange):
        loader = load(source, share=share, all_gather=exchange)
        loader.set_state(json.loads(json.dumps(state)))
        return take(loader, 4)

    for batch, *shares in zip(whole[3:], *run_as_processes(after, go_on), strict=True):
        assert flat_list(shares) == batch


class Changed(Numbers):
    """One in which a single example is another one."""

    def __init__(self, size, index, **changes):
        super().__init__(size)
        self.index, self.changes = index, changes

    def __getitem__(self, index):
        example = super().__getitem__(index)
        return dataclasses.replace(example, **self.changes) if index == self.index else example


@pytest.mark.parametrize(
    "changes",
    [
        {"question": "another"},
        {"answer": "7"},
        {"solution": "<answer>7</answer>"},
        {"images": (noise(56, 56, seed=99),)},
        {"images": (noise(28, 112, seed=0),)},
        {"columns": {"box": [1, 2]}},
    ],
)
def test_a_data_set_that_has_changed_is_not_gone_on_with(load, changes):
    loader = load(Numbers(10))
    shown = flat_list(take(loader, 2))
    state = loader.get_state()
    load(Numbers(10)).set_state(state)
    last = int(shown[-1][1:])
    with pytest.raises(UserError, match="the data set is not what this run has read"):
        load(Changed(10, last, **changes)).set_state(state)


@pytest.mark.parametrize(
    ("other", "batches"),
    [
        (Numbers(11), 2),
        (Numbers(9), 2),
        (Numbers(10, broken={0, 1, 2}), 2),
        (Numbers(11), 0),  # a run that was stopped before its first batch
    ],
)
def test_a_data_set_that_has_grown_or_shrunk_is_not_gone_on_with(load, other, batches):
    loader = load(Numbers(10))
    take(loader, batches)
    with pytest.raises(UserError, match="the data set is not what this run has read"):
        load(other).set_state(loader.get_state())


@pytest.mark.parametrize("done", [0, 1, 3, 7])
def test_a_resumed_stream_equals_the_uninterrupted_one(load, done):
    source = Numbers(10, broken={2, 5}, long={7})
    uninterrupted = load(source)
    take(uninterrupted, done)
    state = json.loads(json.dumps(uninterrupted.get_state()))  # as a checkpoint stores it
    expected = [next(uninterrupted) for _ in range(6)]

    resumed = load(source)
    take(resumed, 2)  # whatever it did before does not matter
    resumed.set_state(state)
    for (examples, encoded), (own_examples, own_encoded) in zip(
        expected, [next(resumed) for _ in range(6)], strict=True
    ):
        assert [e.id for e in examples] == [e.id for e in own_examples]
        for prompt, own in zip(encoded, own_encoded, strict=True):
            np.testing.assert_array_equal(prompt.tokens, own.tokens)
            np.testing.assert_array_equal(prompt.patches[0], own.patches[0])
    assert resumed.skipped == uninterrupted.skipped
    assert resumed.get_state() == uninterrupted.get_state()


def test_unusable_examples_are_left_out_counted_and_named_once(load, caplog):
    loader = load(Numbers(8, broken={1}, long={4}, narrow={6}))
    with caplog.at_level(logging.WARNING):
        shown = flat_list(take(loader, 5))  # 20 of 5 usable ones: four epochs
    assert set(shown) == {"n0", "n2", "n3", "n5", "n7"}
    assert 3 * 1 <= loader.skipped["too_long"] <= 4
    assert 3 * 2 <= loader.skipped["unreadable"] <= 4 * 2
    for name in ("n1: its image is broken", "n4: its prompt has", "n6: an image of 1x300"):
        assert sum(name in message for message in caplog.messages) == 1
    assert len(caplog.messages) == 3


def test_the_limit_of_a_prompt_counts_its_image_tokens(load, processor):
    example = Numbers(1)[0]
    length = len(processor.encode(f"{example.question} Think, then answer.", example.images).tokens)
    assert ids(next(load(Numbers(1), batch_size=1, max_prompt_tokens=length))) == ["n0"]
    with pytest.raises(UserError, match=f"{length} tokens, over max_prompt_tokens = {length - 1}"):
        next(load(Numbers(1), batch_size=1, max_prompt_tokens=length - 1))


def test_solutions_are_encoded_where_they_are_asked_for(load, processor):
    examples, encoded = next(load(Numbers(4), max_completion_tokens=10))
    for example, prompt in zip(examples, encoded, strict=True):
        answer = processor.encode_answer(f"<answer>{example.answer}</answer>")
        np.testing.assert_array_equal(prompt.completion, answer)
    _, encoded = next(load(Numbers(4)))
    assert [prompt.completion for prompt in encoded] == [None] * 4


def test_a_solution_that_is_too_long_or_cannot_be_learned_is_skipped_whole(load, caplog):
    source = Numbers(6, wordy={1, 4}, special={2})
    loader = load(source, max_completion_tokens=50)
    with caplog.at_level(logging.WARNING):
        shown = flat_list(take(loader, 3))  # 12 of 3 usable ones: four epochs
    assert set(shown) == {"n0", "n3", "n5"}
    assert 3 * 2 <= loader.skipped["too_long"] <= 4 * 2
    assert 3 * 1 <= loader.skipped["unreadable"] <= 4 * 1
    assert any("n1: its completion has 56 tokens, over" in message for message in caplog.messages)
    assert any("n2: the answer holds a special token" in message for message in caplog.messages)
    take(load(source), 3)  # none of this is in the way where solutions are not asked for


def test_the_limit_of_a_solution_counts_the_token_that_ends_it(load, processor):
    length = len(processor.encode_answer("<answer>0</answer>"))
    assert ids(next(load(Numbers(1), batch_size=1, max_completion_tokens=length))) == ["n0"]
    with pytest.raises(UserError, match=f"{length} tokens, over max_completion_tokens = "):
        next(load(Numbers(1), batch_size=1, max_completion_tokens=length - 1))


def test_a_source_without_a_usable_example_is_an_error(load):
    with pytest.raises(UserError, match="3 examples in a row cannot be used; the last one: n"):
        next(load(Numbers(3, broken={0, 1}, long={2})))


def test_one_usable_example_is_enough_however_the_epochs_are_shuffled(load):
    for seed in range(5):
        loader = load(Numbers(4, broken={0, 1, 3}), seed=seed)
        assert set(flat_list(take(loader, 10))) == {"n2"}


def test_the_log_names_ten_examples_and_all_are_counted(load, caplog):
    with caplog.at_level(logging.WARNING):
        loader = load(Numbers(40, broken=set(range(30))))
        take(loader, 5)
    assert loader.skipped["unreadable"] > 10
    assert len(caplog.messages) == 10
    assert len(loader.left_out) > 10
    assert set(loader.left_out) <= set(range(30))
    assert all(said == f"n{i}: its image is broken" for i, said in loader.left_out.items())


def test_a_vast_source_without_a_usable_example_is_an_error_soon(load):
    class Vast(Numbers):
        def __getitem__(self, index):
            raise UnreadableExample(f"n{index}: broken", super().__getitem__(index))

    with pytest.raises(UserError, match="1000 examples in a row cannot be used"):
        next(load(Vast(2**31)))


def test_a_fault_in_a_source_is_not_hidden(load):
    class Faulty(Numbers):
        def __getitem__(self, index):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(load(Faulty(3)))


def test_examples_are_prepared_in_the_background(load):
    source = Numbers(50)
    next(load(source))
    assert threading.current_thread() not in source.threads


def test_evaluation_sees_every_example_once_in_order(processor):
    source = Numbers(10, long={3})  # without a limit nothing is too long to be answered
    read = list(in_order(source, processor, batch_size=4, template=TEMPLATE))
    assert [(number, example.id) for number, example, _ in read] == [
        (i, f"n{i}") for i in range(10)
    ]
    assert threading.current_thread() not in source.threads


def test_evaluation_hands_unreadable_examples_over_to_be_counted(processor):
    unreadable = []
    read = in_order(
        Numbers(8, broken={0, 5}, narrow={6}, long={7}),
        processor,
        batch_size=2,
        template=TEMPLATE,
        max_prompt_tokens=100,
        unreadable=unreadable,
    )
    assert [(number, example.id) for number, example, _ in read] == [
        (i, f"n{i}") for i in (1, 2, 3, 4)
    ]
    assert [example.answer for example in unreadable] == ["0", "5", "6", "7"]


def test_evaluation_stops_at_an_unreadable_example_if_nobody_counts_them(processor):
    with pytest.raises(UnreadableExample, match="n5: its image is broken"):
        list(in_order(Numbers(7, broken={5}), processor, batch_size=2, template=TEMPLATE))


def test_an_interrupted_program_ends_while_prompts_are_being_prepared(directory):
    code = (
        "from pathlib import Path\n"
        "from othink_jax.data.loader import PromptLoader\n"
        "from othink_jax.data.processing import Processor\n"
        "from tests.test_loader import Numbers\n"
        f"processor = Processor.from_pretrained(Path({str(directory)!r}))\n"
        "loader = PromptLoader(Numbers(10**6), processor, batch_size=8, seed=0,\n"
        "                      template='{question}', max_prompt_tokens=100)\n"
        "next(loader)\n"
        "raise KeyboardInterrupt\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.stderr.strip().endswith("KeyboardInterrupt")
    assert ended.stderr.count("Traceback") == 1


def test_solutions_are_learnt_in_the_tags_that_are_asked_for(load, processor):
    loader = load(Numbers(4), max_completion_tokens=100, answers=AnswerFormat(tag="number"))
    examples, encoded = next(loader)
    for example, prompt in zip(examples, encoded, strict=True):
        assert processor.decode(prompt.completion) == f"<number>{example.answer}</number>"


def test_a_system_prompt_takes_the_place_of_the_chat_templates_own(load, processor):
    usual, asked = (
        processor.tokenizer.decode(next(load(Numbers(4), **settings))[1][0].tokens)
        for settings in ({}, {"system_prompt": "red red"})
    )
    assert asked == usual.replace("You are a helpful assistant.", "red red")
    assert asked != usual


def test_a_chat_template_that_leaves_out_the_system_prompt_is_refused(load, processor, monkeypatch):
    """As one does that knows users and assistants alone."""
    whole = processor.tokenizer.chat_template
    dropped = whole.replace("in messages -%}", "in messages if turn.role != 'system' -%}")
    assert dropped != whole
    monkeypatch.setattr(processor.tokenizer, "chat_template", dropped)
    with pytest.raises(UserError, match="does not show it"):
        load(Numbers(4), system_prompt="red red")
