"""Validation between steps: what is asked, what is kept as the best, when a run ends."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from othink_jax.checkpoint.hf import TINY
from othink_jax.config import (
    DataConfig,
    EvaluateConfig,
    GRPOConfig,
    SamplingConfig,
    SFTConfig,
    ValidationConfig,
    read_run,
)
from othink_jax.data.processing import Processor
from othink_jax.errors import UserError
from othink_jax.evaluation import evaluate
from othink_jax.report import model_card, write_report
from othink_jax.rewards import Grade
from othink_jax.training import grpo
from othink_jax.training.sft import resume, train
from othink_jax.training.validation import Best, Questions
from othink_jax.types import Rollout
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.test_grpo import final_params, rows_of, without_times
from tests.test_sft import config_for
from tests.tiny_processor import noise

VALIDATION = ValidationConfig(validate_every=2, validate_count=5)


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    with programs_of_equal_settings_are_compiled_once():
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of four steps, validated after 2 and 4."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(config_for(out, validation=VALIDATION))
    return out


def scores(run):
    return [row["validation_accuracy"] for row in rows_of(run) if "validation_accuracy" in row]


def test_a_validation_is_an_evaluation_of_the_policy_at_its_step(finished, tmp_path):
    rows = {row["step"]: row for row in rows_of(finished)}
    assert [step for step, row in rows.items() if "validation_accuracy" in row] == [2, 4]
    row = rows[4]
    config = config_for(finished)
    result = evaluate(
        EvaluateConfig(
            model=str(finished),
            out=tmp_path / "result",
            data=dataclasses.replace(config.data, split="validation", limit=None),
            count=5,
            batch_size=5,
            sampling=SamplingConfig(temperature=0.0, max_new_tokens=config.max_completion_tokens),
        )
    )
    assert row["validation_accuracy"] == result["accuracy"]
    assert [row["validation_low"], row["validation_high"]] == result["interval"]
    assert row["validation_format"] == pytest.approx(result["format"])
    assert row["validation_length"] == pytest.approx(result["tokens"])
    assert row["validation_count"] == 5


def test_the_best_checkpoint_stands_beside_the_last_ones(finished, tmp_path):
    values = scores(finished)
    best = 2 if values[0] >= values[1] else 4
    assert [path.name for path in (finished / "checkpoints" / "best").glob("[0-9]*")] == [str(best)]
    data = dataclasses.replace(config_for(finished).data, split="validation", limit=None)
    result = evaluate(
        EvaluateConfig(
            model=str(finished / "checkpoints" / "best"),
            out=tmp_path / "result",
            data=data,
            count=5,
            sampling=SamplingConfig(temperature=0.0, max_new_tokens=40),
        )
    )
    assert result["accuracy"] == max(values)


def test_a_run_that_goes_on_validates_as_if_it_had_never_stopped(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    resume(run)
    assert without_validation_times(run) == without_validation_times(finished)
    for ours, whole in zip(final_params(run), final_params(finished), strict=True):
        np.testing.assert_array_equal(ours, whole)


def without_validation_times(run):
    rows = without_times(rows_of(run))
    return [{k: v for k, v in row.items() if k != "seconds_validation"} for row in rows]


def test_a_best_checkpoint_that_an_interruption_came_before_is_stored(finished, tmp_path, capsys):
    """As if the run had been killed between the two checkpoints of the best step."""
    run = shutil.copytree(finished, tmp_path / "run")
    values = scores(finished)
    if values[1] > values[0]:
        shutil.rmtree(run / "checkpoints" / "best" / "4")
    else:
        shutil.rmtree(run / "checkpoints" / "4")
        shutil.rmtree(run / "checkpoints" / "best" / "2")
    resume(run)
    kept = [path.name for path in (run / "checkpoints" / "best").glob("[0-9]*")]
    assert kept == ["4" if values[1] > values[0] else "2"]
    assert "is stored as such" in capsys.readouterr().err


def test_report_and_card_show_what_was_validated(finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    write_report(run)
    assert "questions that are not trained on" in (run / "report.html").read_text()
    assert "| best validation | accuracy 20.0% (95% interval 3.6% to 62.4%, n = 5), after step" in (
        model_card(run)
    )


def fake(monkeypatch, values):
    """Validations with these accuracies, one after the other."""
    left = iter(values)
    rest = {"validation_low": 0.0, "validation_high": 1.0, "validation_count": 5}
    monkeypatch.setattr(
        Questions,
        "measure",
        lambda self, answer, judge: {"validation_accuracy": next(left), **rest},
    )


def test_a_run_ends_where_it_gets_no_better_and_stays_ended(tmp_path, monkeypatch, capsys):
    fake(monkeypatch, [0.5, 0.6, 0.6, 0.4])
    validation = ValidationConfig(validate_every=1, validate_count=5, patience=2)
    train(config_for(tmp_path / "run", validation=validation, steps=6))
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3, 4]
    said = "Ended after step 4 of 6: 2 validations in a row were no better than that of step 2"
    assert said in capsys.readouterr().err
    assert (tmp_path / "run" / "checkpoints" / "best" / "2").is_dir()
    assert read_run(tmp_path / "run").ended == 4
    assert "4 of 4 (6 were planned; it ended early)" in write_report(tmp_path / "run").read_text()
    resume(tmp_path / "run")
    assert len(rows_of(tmp_path / "run")) == 4
    assert said in capsys.readouterr().err


def test_of_equals_the_first_is_the_best():
    best = Best()
    assert [best.take(score, step) for step, score in enumerate([0.5, 0.5, 0.6, 0.6])] == [
        *(True, False, True, False)
    ]
    assert (best.score, best.step, best.waited) == (0.6, 2, 1)
    assert not best.is_over(None)
    assert not best.is_over(2)
    assert best.is_over(1)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_question_counts_once_however_many_processes_ask(tmp_path, monkeypatch, processes):
    """Six questions, one of which is broken, in batches of four: the last is filled up."""
    noise(56, 56).save(tmp_path / "x.png")
    rows = [
        {"question": f"Q{n}", "answer": str(n), "image": "none.png" if n == 2 else "x.png"}
        for n in range(6)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]))
    config = SFTConfig(
        model="tiny",
        out=tmp_path / "run",
        data=DataConfig(dataset=str(tmp_path / "train.jsonl"), max_prompt_tokens=None),
        prompts_per_step=4,
        steps=1,
        validation=ValidationConfig(
            validate_every=1, validate_dataset=str(tmp_path / "rows.jsonl")
        ),
    )
    processor = Processor.from_pretrained(TINY)
    told = []

    def ask(share):
        questions = Questions(config, processor, share=(share, processes), columns=False)

        def answer(encoded):
            assert len(encoded) == 4 // processes
            tokens = np.zeros((len(encoded), 1, 3), np.int32)
            floats = tokens.astype(np.float32)
            return Rollout(
                tokens=tokens,
                mask=tokens == 0,
                finished=tokens[:, :, 0] == 0,
                logp=floats,
                entropy=floats,
            )

        def judge(examples, encoded, rollout):
            right = [float(example.answer in "01") for example in examples]
            return [Grade(value, 1.0) for value in right], np.array(right)

        return questions.measure(answer, judge)

    def exchange(value):
        told.append(value)
        return told

    monkeypatch.setattr("othink_jax.training.processes.all_gather", exchange)
    for share in range(processes):
        figures = ask(share)
    assert figures["validation_accuracy"] == pytest.approx(2 / 6)
    assert figures["validation_format"] == pytest.approx(5 / 6)
    assert figures["validation_reward"] == pytest.approx(2 / 6)
    assert figures["validation_length"] == 3
    assert figures["validation_count"] == 6


def test_grpo_is_validated_with_its_own_rewards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("def brief(text, example):\n    return 1 / (1 + len(text))\n")
    sft = config_for(tmp_path)
    grpo.train(
        GRPOConfig(
            model=sft.model,
            out=tmp_path / "run",
            data=sft.data,
            steps=1,
            prompts_per_step=2,
            group_size=2,
            sampling=SamplingConfig(max_new_tokens=20, top_k=0),
            reward=dataclasses.replace(
                GRPOConfig(model="x", out=tmp_path, data=sft.data).reward,
                functions=("own.py:brief",),
            ),
            validation=ValidationConfig(validate_every=5, validate_count=3),
            remat="none",
        )
    )
    (row,) = rows_of(tmp_path / "run")
    assert 0 < row["validation_reward"] < 0.5
    assert (
        json.loads(
            (tmp_path / "run" / "checkpoints" / "best" / "1" / "progress" / "metadata").read_text()
        )["best"]["score"]
        == row["validation_reward"]
    )


@pytest.mark.parametrize(
    ("data", "settings", "message"),
    [
        ({"task": "counting"}, {"validate_every": -1}, "validate_every must be >= 0"),
        ({"task": "counting"}, {"validate_every": 1, "validate_count": 0}, "validate_count"),
        ({"task": "counting"}, {"patience": 2}, "give --validate-every"),
        ({"task": "counting"}, {"validate_every": 1, "patience": 0}, "patience must be >= 1"),
        (
            {"task": "counting"},
            {"validate_every": 1, "validate_split": "train"},
            "give --validate-split",
        ),
        ({"dataset": "a.jsonl"}, {"validate_every": 1}, "give --validate-dataset"),
        (
            {"dataset": ("a.jsonl", "b.jsonl=2")},
            {"validate_every": 1, "validate_dataset": "b.jsonl"},
            "is what is trained on",
        ),
    ],
)
def test_what_cannot_be_validated_is_refused(tmp_path, data, settings, message):
    with pytest.raises(UserError, match=message):
        SFTConfig(
            model="tiny",
            out=tmp_path,
            data=DataConfig(**data),
            validation=ValidationConfig(**settings),
        )


def test_a_validation_set_that_holds_nothing_ends_before_anything_is_written(tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    validation = ValidationConfig(validate_every=1, validate_dataset=str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="holds no examples"):
        train(config_for(tmp_path / "run", validation=validation))
    assert not (tmp_path / "run").exists()
