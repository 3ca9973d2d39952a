"""Batches of an evaluation: by size, within the memory that there is, on all devices."""

import dataclasses
import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax.checkpoint.load import load
from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    EvaluateConfig,
    ParallelConfig,
    RewardConfig,
    SamplingConfig,
)
from othink_jax.data.example import Example
from othink_jax.data.processing import EncodedPrompt
from othink_jax.data.synthetic import generate
from othink_jax.errors import UserError
from othink_jax.evaluation import PARTIAL, accuracy, evaluate, sampler
from othink_jax.evaluation.batches import Batches, Question
from othink_jax.evaluation.sampler import DoesNotFitError, Sampler, free_bytes
from othink_jax.plan.hlo import Program
from othink_jax.sampling import prompt_keys
from othink_jax.training.parallel import make_parallel
from tests.shallow import shallow

TINY = load(shallow(), max_pixels=10**6)
GIB = 2**30


def question(number, tokens, images=()):
    """With images of so many merge windows."""
    patches = tuple(np.zeros((4 * windows, 1), np.float32) for windows in images)
    return Question(
        number=number,
        example=Example(id=str(number), images=(), question="", answer="", solution=""),
        prompt=EncodedPrompt(
            tokens=np.zeros(tokens, np.int32),
            positions=np.zeros((3, tokens), np.int32),
            patches=patches,
            patch_positions=tuple(np.zeros((len(part), 2), np.int32) for part in patches),
        ),
    )


def cut(sizes, *, batch_size, shards=1, config=TINY.config):
    questions = [question(number, *size) for number, size in enumerate(sizes)]
    batches = Batches(TINY.processor, config, batch_size=batch_size, shards=shards)
    return list(batches(questions))


def numbers(batches):
    return [[question.number for question in batch.questions] for batch in batches]


def test_small_questions_are_batched_in_order_and_the_last_batch_is_filled_up():
    sizes = [(40 + 20 * (number % 3), [16]) for number in range(10)]
    batches = cut(sizes, batch_size=4)
    assert numbers(batches) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [batch.rows for batch in batches] == [4, 4, 4]
    pads = {dataclasses.astuple(batch.pad) for batch in batches}
    assert pads == {(96, 1, 64)}  # as `Processor.batch` has it: multiples of 32 and 64


def test_a_large_picture_makes_no_other_question_larger():
    """1400x1400 pixels: 2500 merge windows."""
    sizes = [(40, [16])] * 3 + [(2540, [2500])] + [(40, [16])] * 2 + [(6000, [16])]
    batches = cut(sizes, batch_size=4)
    assert numbers(batches) == [[0, 1, 2, 4], [3], [5], [6]]
    shapes = [(batch.rows, batch.pad.prompt_tokens, batch.pad.patches) for batch in batches]
    assert shapes == [(4, 64, 64), (1, 2560, 10240), (4, 64, 64), (1, 6144, 64)]


def test_sixteen_images_of_the_largest_size_of_r1v_are_one_batch_of_the_2b_model():
    large = dataclasses.replace(TINY.config.vision, num_heads=16)
    config = dataclasses.replace(TINY.config, vision=large)
    sizes = [(600, [512])] * 48
    assert [len(batch.questions) for batch in cut(sizes, batch_size=16, config=config)] == [16] * 3
    assert {len(batch.questions) for batch in cut(sizes, batch_size=48, config=config)} == {16}
    twice = [(1200, [1024])] * 8  # a quarter of them: scores grow with the square
    assert {len(batch.questions) for batch in cut(twice, batch_size=16, config=config)} == {4}


_SIZES = st.tuples(st.integers(1, 9000), st.lists(st.integers(1, 5000), max_size=3))


@settings(max_examples=100, deadline=None)
@given(st.lists(_SIZES, max_size=40), st.integers(1, 9), st.integers(1, 4))
def test_batches_hold_every_question_once_padded_by_at_most_a_quarter(sizes, batch_size, shards):
    batches = cut(sizes, batch_size=batch_size, shards=shards)
    assert sorted(itertools.chain(*numbers(batches))) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch.questions) <= batch.rows <= max(batch_size, shards)
        assert batch.rows % shards == 0
        heads = TINY.config.vision.num_heads
        scores = 4 * heads * batch.pad.image_slots * batch.pad.patches**2
        assert batch.rows == shards or batch.rows // shards * scores <= 4 * GIB
        for one in batch.questions:
            largest = max([len(part) for part in one.prompt.patches], default=0)
            assert len(one.prompt.tokens) <= batch.pad.prompt_tokens
            assert largest <= batch.pad.patches
            assert batch.pad.prompt_tokens <= max(256, 1.25 * (len(one.prompt.tokens) + 32))
            assert batch.pad.patches <= max(256, 1.25 * (largest + 64))


@pytest.fixture(scope="module")
def examples():
    """Two of the pictures are nine times as large as the others."""
    made = [generate("counting", "test", number) for number in range(9)]
    for number in (2, 5):
        large = made[number].images[0].resize((336, 336))
        made[number] = dataclasses.replace(made[number], images=(large,))
    return made


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, examples):
    """Evaluates; gives the predictions, and the directory."""

    def run(given=examples, *, out=None, temperature=1.0, **settings):
        out = out or tmp_path_factory.mktemp("evaluation") / "out"
        config = EvaluateConfig(
            model=shallow(),
            out=out,
            data=DataConfig(
                task="counting",
                template=TINY_TEMPLATE,
                max_prompt_tokens=None,
                min_pixels=None,
                max_pixels=10**6,
            ),
            batch_size=4,
            sampling=SamplingConfig(temperature=temperature, max_new_tokens=12),
            reward=RewardConfig(grading_workers=1),
            **settings,
        )
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(accuracy, "open_source", lambda config, size, columns: given)
            evaluate(config, checkpoint=TINY)
        return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]

    return run


@pytest.fixture(scope="module")
def whole(evaluated):
    return evaluated()


def test_answers_stand_in_the_order_of_the_source(whole, examples):
    assert [row["id"] for row in whole] == [example.id for example in examples]
    assert [row["ground_truth"] for row in whole] == [example.answer for example in examples]


def test_what_is_drawn_for_a_question_does_not_depend_on_the_other_questions(
    whole, evaluated, examples
):
    first = dataclasses.replace(examples[0], question="<|image_pad|>")  # it cannot be encoded
    others = evaluated([first, *examples[1:]])
    assert others[-1]["readable"] is False
    assert others[:-1] == whole[1:]


def test_the_key_of_a_question_is_that_of_its_place_in_the_source(evaluated, tmp_path, monkeypatch):
    """What is drawn today for the 500th question is drawn tomorrow, however batches are cut."""
    drawn = []

    def note(self, prompts, pad, rows):
        drawn.extend(prompt.key for prompt in prompts)
        yield len(prompts), DoesNotFitError("not drawn")

    monkeypatch.setattr(Sampler, "__call__", note)
    with pytest.raises(UserError, match="9 of 9 questions do not fit"):
        evaluated(out=tmp_path / "out")
    order = (0, 1, 3, 4, 2, 5, 6, 7, 8)
    expected = [prompt_keys(0, number // 4, 4)[number % 4] for number in order]
    np.testing.assert_array_equal(drawn, expected)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("parallel", "temperature"),
    [
        (ParallelConfig(strategy="pmap", devices=4), 1.0),
        (ParallelConfig(strategy="mesh", devices=4), 0.0),
    ],
    ids=["pmap", "mesh"],
)
def test_several_devices_answer_as_one_does_and_ask_each_other_for_nothing(
    whole, evaluated, monkeypatch, parallel, temperature
):
    one = evaluated(temperature=0.0) if temperature == 0 else whole
    programs, made = {}, Sampler._program

    def program(self, shapes, given):
        programs[shapes] = made(self, shapes, given)
        return programs[shapes]

    monkeypatch.setattr(Sampler, "_program", program)
    assert evaluated(temperature=temperature, parallel=parallel) == one
    assert [(rows, pad.patches) for rows, pad in programs] == [(4, 64), (4, 640)]
    for compiled in programs.values():
        assert len(compiled.input_shardings[0][2].tokens.device_set) == 4
        assert Program(compiled.as_text()).collectives == ()


def test_fewer_are_answered_together_where_memory_is_short(whole, evaluated, monkeypatch):
    rows = []
    monkeypatch.setattr(
        sampler,
        "_running_bytes",
        lambda program: rows.append(program.in_avals[0][2].tokens.shape[0]) or rows[-1] * GIB,
    )
    monkeypatch.setattr(sampler, "free_bytes", lambda devices: int(1.5 * GIB))
    assert evaluated() == whole
    assert rows == [4, 2, 1, 2, 1]  # each program once; of the two large ones, no batch of 4


def test_running_out_of_memory_is_taken_for_what_it_is(whole, evaluated, monkeypatch):
    program = Sampler._program

    def exhausted(self, shapes, given):
        if shapes[0] > 1:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to")
        return program(self, shapes, given)

    monkeypatch.setattr(Sampler, "_program", exhausted)
    assert evaluated() == whole

    def fails(self, shapes, given):
        raise jax.errors.JaxRuntimeError("INTERNAL: a fault")

    monkeypatch.setattr(Sampler, "_program", fails)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        evaluated()


def test_what_does_not_fit_alone_is_named_and_all_else_is_answered(
    whole, evaluated, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as patched:
        patched.setattr(
            sampler,
            "_running_bytes",
            lambda program: program.in_avals[0][2].patches.shape[2] * GIB,
        )
        patched.setattr(sampler, "free_bytes", lambda devices: 64 * GIB)
        with pytest.raises(UserError) as caught:
            evaluated(out=tmp_path / "short")
    said = str(caught.value)
    assert "\n" not in said
    assert "2 of 9 questions do not fit into memory, such as counting-test-0-2 (1" in said
    assert "an image of 336x336): it takes 687.2 GB on a device, of which 68.7 GB are free" in said
    assert "--max-prompt-tokens" in said
    assert "--max-pixels" in said
    assert "counting-test-0-5" in caplog.text
    assert not (tmp_path / "short" / "result.json").exists()
    kept = (tmp_path / "short" / PARTIAL).read_text().splitlines()
    assert len(kept) == 1 + 7
    assert evaluated(out=tmp_path / "short") == whole  # where there is more memory


def test_the_memory_of_the_host_is_shared_by_its_simulated_devices():
    devices = make_parallel(ParallelConfig(strategy="pmap")).devices
    alone, shared = free_bytes(devices[:1]), free_bytes(devices)
    assert 2**20 < shared < alone
    assert alone == pytest.approx(8 * shared, rel=0.2)


def test_several_processes_are_refused(evaluated, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="an evaluation runs in one process"):
        evaluated()
