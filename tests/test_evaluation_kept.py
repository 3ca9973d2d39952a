"""Answers are kept as they come: what an evaluation goes on from, and what it refuses."""

import dataclasses
import json
import zlib

import pytest

from othink_jax import cli
from othink_jax.checkpoint.load import load
from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    EvaluateConfig,
    RewardConfig,
    SamplingConfig,
)
from othink_jax.data.synthetic import generate
from othink_jax.errors import UserError
from othink_jax.evaluation import PARTIAL, Kept, accuracy, evaluate
from othink_jax.evaluation.sampler import Sampler
from tests.shallow import shallow

COUNT = 7


@pytest.fixture(scope="module")
def tiny():
    return load(shallow(), max_pixels=10**6)


@pytest.fixture
def examples(monkeypatch):
    """The source: one of the pictures is nine times as large as the others."""
    made = [generate("counting", "test", number) for number in range(COUNT)]
    large = made[2].images[0].resize((336, 336))
    made[2] = dataclasses.replace(made[2], images=(large,))
    monkeypatch.setattr(accuracy, "open_source", lambda config, size, columns: made)
    return made


@pytest.fixture
def config(tmp_path):
    return EvaluateConfig(
        model=shallow(),
        out=tmp_path / "out",
        data=DataConfig(
            task="counting",
            template=TINY_TEMPLATE,
            max_prompt_tokens=None,
            min_pixels=None,
            max_pixels=10**6,
        ),
        batch_size=2,
        sampling=SamplingConfig(temperature=1.0, max_new_tokens=12),
        reward=RewardConfig(grading_workers=1),
    )


def interrupt_after(monkeypatch, batches):
    """Ctrl-C when so many batches are kept; returns how many programs are run from here on."""
    kept, ran = [], []
    add, sample = Kept.add, Sampler._sample

    def counted(self, answers):
        add(self, answers)
        kept.append(answers)
        if len(kept) == batches:
            raise KeyboardInterrupt

    def noted(self, prompts, pad, rows):
        ran.append(len(prompts))
        return sample(self, prompts, pad, rows)

    monkeypatch.setattr(Kept, "add", counted)
    monkeypatch.setattr(Sampler, "_sample", noted)
    return ran


def predictions(config):
    return (config.out / "predictions.jsonl").read_bytes()


def without_seconds(result):
    config = {name: value for name, value in result["config"].items() if name != "out"}
    return result | {"seconds": 0, "config": config}


@pytest.mark.parametrize(("batches", "cut"), [(1, 1), (2, 0), (4, 30)])
def test_an_interrupted_evaluation_goes_on_and_is_that_of_one_that_was_not(
    tiny, examples, config, tmp_path, monkeypatch, batches, cut
):
    whole = dataclasses.replace(config, out=tmp_path / "whole")
    result = evaluate(whole, checkpoint=tiny)
    with monkeypatch.context() as patched:
        interrupt_after(patched, batches)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, checkpoint=tiny)
    assert {file.name for file in config.out.iterdir()} == {PARTIAL, ".predictions.lock"}
    partial = config.out / PARTIAL
    text = partial.read_bytes()
    partial.write_bytes(text[: len(text) - cut])  # a kill in the middle of the last line
    ran = interrupt_after(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):  # what it adds is read again, too
        evaluate(config, checkpoint=tiny)
    assert without_seconds(evaluate(config, checkpoint=tiny)) == without_seconds(result)
    assert predictions(config) == predictions(whole)
    assert len(ran) == 4 - batches + (cut > 0)  # 2, 2, 2 and the large one
    assert {file.name for file in config.out.iterdir()} == {"predictions.jsonl", "result.json"}


def begin(config, tiny, monkeypatch):
    """An evaluation that is interrupted after its first batch; returns its file."""
    with monkeypatch.context() as patched:
        interrupt_after(patched, 1)
        with pytest.raises(KeyboardInterrupt):
            evaluate(config, checkpoint=tiny)
    return config.out / PARTIAL


def refused(config, checkpoint, message):
    partial = config.out / PARTIAL
    before = partial.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        evaluate(config, checkpoint=checkpoint)
    assert "\n" not in str(caught.value)
    assert partial.read_bytes() == before
    assert not (config.out / "result.json").exists()


def test_answers_to_other_settings_data_or_of_another_model_are_not_taken(
    tiny, examples, config, monkeypatch
):
    begin(config, tiny, monkeypatch)
    other = dataclasses.replace(config, seed=1)
    refused(other, tiny, r"holds answers made with seed = 0, and not 1: give another --out, or")
    data = dataclasses.replace(config.data, template="{question}")
    refused(dataclasses.replace(config, data=data), tiny, r"made with data\.template = ")
    norm = tiny.params["text"]["norm"]
    moved = {**tiny.params["text"], "norm": {**norm, "scale": norm["scale"] * 1.0001}}
    changed = dataclasses.replace(tiny, params={**tiny.params, "text": moved})
    refused(config, changed, "holds answers of another model")
    examples.append(examples[0])
    refused(config, tiny, "holds answers of other data")
    examples.pop()
    for part in ({"answer": "77"}, {"images": examples[3].images}):
        first = examples[0]
        examples[0] = dataclasses.replace(first, **part)
        refused(config, tiny, "an answer to another question number 0 than the data has now")
        examples[0] = first


def test_what_no_answer_depends_on_may_change(tiny, examples, config, monkeypatch):
    begin(config, tiny, monkeypatch)
    data = dataclasses.replace(config.data, max_prompt_tokens=100)  # the large one has more
    graded = RewardConfig(grader="r1v", grading_workers=1)
    result = evaluate(
        dataclasses.replace(config, data=data, reward=graded, stage="after"), checkpoint=tiny
    )
    assert (result["n"], result["unreadable"], result["grader"]) == (COUNT, 1, "r1v")


def test_answers_that_do_not_say_how_many_there_are_of_a_question_are_its_only_ones(
    tiny, examples, config, monkeypatch
):
    partial = begin(config, tiny, monkeypatch)
    rows = [json.loads(line)["row"] for line in partial.read_text().splitlines()]
    del rows[0]["begun"]["settings"]["samples"]
    partial.write_text("".join(map(stored, rows)))
    refused(dataclasses.replace(config, samples=2), tiny, "made with samples = 1, and not 2")
    assert evaluate(config, checkpoint=tiny)["n"] == COUNT


def stored(row):
    """A line of the file, with its checksum."""
    return json.dumps({"crc32": zlib.crc32(json.dumps(row).encode()), "row": row}) + "\n"


def test_a_file_that_is_damaged_or_no_evaluations_is_refused(tiny, examples, config, monkeypatch):
    partial = begin(config, tiny, monkeypatch)
    good = partial.read_text()
    for old, new, line in (
        ('"device": "', '"device": "9', 1),
        ('"row"', '"rows"', 1),
        ('"digest"', '"digest', 2),
        ('"tokens"', '"token"', 2),
        ('"number": 0', '"number": 1', 2),
    ):
        assert old in good
        partial.write_text(good.replace(old, new, 1))
        refused(config, tiny, f"line {line} is damaged: remove the file")
    first, second, *_ = good.splitlines()
    incomplete = json.loads(second)["row"]
    del incomplete["tokens"]
    for text, message in (
        ("7\n", "line 1 is damaged"),
        ("[]\n", "line 1 is damaged"),
        ('{"a": 1}\n', "line 1 is damaged"),
        (stored([]), "line 1 is damaged"),
        (stored({"a": 1}), "line 1 is damaged"),
        (stored({"begun": []}), "is not of an evaluation"),
        (first + "\n" + stored(incomplete), "line 2 is damaged"),
    ):
        partial.write_text(text)
        refused(config, tiny, message)


def test_of_two_evaluations_in_one_place_the_second_is_refused(tiny, examples, config, monkeypatch):
    begin(config, tiny, monkeypatch)
    begun = json.loads((config.out / PARTIAL).read_text().splitlines()[0])["row"]["begun"]
    with Kept(config.out, begun):
        refused(config, tiny, "another evaluation is writing to")
    evaluate(config, checkpoint=tiny)


def test_the_device_and_the_seconds_of_an_earlier_attempt_are_not_forgotten(
    tiny, examples, config, monkeypatch, caplog
):
    partial = begin(config, tiny, monkeypatch)
    rows = [json.loads(line)["row"] for line in partial.read_text().splitlines()]
    rows[0]["begun"]["environment"]["device"] = "9 x else"
    rows[-1]["seconds"] = 1000.0
    partial.write_text("".join(map(stored, rows)))
    assert 1000 < evaluate(config, checkpoint=tiny)["seconds"] < 1100
    assert "9 x else" in caplog.text
    assert "last digits may differ" in caplog.text


def test_the_command_says_that_it_goes_on(tiny, examples, config, monkeypatch, capsys):
    interrupt_after(monkeypatch, 1)
    words = ("--task", "counting", "--batch-size", "2", "--max-new-tokens", "12")
    monkeypatch.setattr("sys.argv", ["x", "evaluate", shallow(), *words, "--out", str(config.out)])
    monkeypatch.setenv("OTHINK_JAX_COMPILATION_CACHE", "off")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 130
    assert f"the answers so far are kept in {config.out}" in capsys.readouterr().err
