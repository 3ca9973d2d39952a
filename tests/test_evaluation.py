"""Evaluation: what counts in an accuracy, and what becomes of questions that cannot be read."""

import dataclasses
import json

import pytest

from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    EvaluateConfig,
    RewardConfig,
    SamplingConfig,
)
from othink_jax.data.synthetic import generate
from othink_jax.errors import UserError
from othink_jax.evaluation import evaluate
from othink_jax.rewards import Grade, GradingPool, grade, regrade
from othink_jax.statistics import wilson_interval


@pytest.fixture
def questions(tmp_path):
    """A JSONL file of four questions: one has a broken image, one is very long."""
    rows = []
    for index in range(4):
        example = generate("counting", "test", index)
        example.images[0].save(tmp_path / f"{index}.png")
        rows.append(
            {
                "question": example.question,
                "ground_truth": example.answer,
                "image_path": f"{index}.png",
            }
        )
    (tmp_path / "1.png").write_bytes(b"not a picture")
    rows[2]["question"] += " objects" * 100
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def config_for(file, out, *, max_prompt_tokens=100):
    return EvaluateConfig(
        model="tiny",
        out=out,
        data=DataConfig(
            dataset=str(file),
            template=TINY_TEMPLATE,
            max_prompt_tokens=max_prompt_tokens,
            min_pixels=None,
            max_pixels=None,
        ),
        batch_size=2,
        sampling=SamplingConfig(temperature=0.0, max_new_tokens=40),
        reward=RewardConfig(grading_workers=1),
    )


def test_questions_that_cannot_be_read_or_are_too_long_count_as_wrong(questions, tmp_path):
    result = evaluate(config_for(questions, tmp_path / "out"))
    rows = [
        json.loads(line)
        for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    ]
    assert [row["id"][-1] for row in rows] == ["1", "4", "2", "3"]  # unanswered ones come last
    assert [row["readable"] for row in rows] == [True, True, False, False]
    verdicts = [grade(row["model_output"], row["ground_truth"]) for row in rows]
    assert [row["correct"] for row in rows] == [bool(verdict.accuracy) for verdict in verdicts]
    assert not any(row["ungradable"] for row in rows)
    right = sum(row["correct"] for row in rows)
    assert (result["n"], result["unreadable"]) == (4, 2)
    assert result["accuracy"] == right / 4
    assert result["interval"] == list(wilson_interval(right, 4))
    assert result["format"] == sum(verdict.format for verdict in verdicts) / 4 == 0.5
    assert result["split"] is None  # a file has none


def test_a_question_without_a_truth_costs_itself_alone(questions, tmp_path):
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    rows[3]["ground_truth"] = None
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate(config_for(questions, tmp_path / "out", max_prompt_tokens=None))
    assert (result["n"], result["unreadable"]) == (4, 2)
    predictions = tmp_path / "out" / "predictions.jsonl"
    assert json.loads(predictions.read_text().splitlines()[-1])["id"] == "questions.jsonl:4"
    assert regrade(predictions, task="counting")["accuracy"] == result["accuracy"]


@pytest.mark.parametrize("task", ["counting", "geometry"])
def test_r1vs_grader_goes_by_what_a_data_set_is_said_to_ask(questions, tmp_path, task):
    config = config_for(questions, tmp_path / "out", max_prompt_tokens=None)
    config = dataclasses.replace(config, reward=RewardConfig(grading_workers=1, grade_as=task))
    result = evaluate(config)
    regraded = regrade(tmp_path / "out" / "predictions.jsonl", task=task, grader="r1v")
    assert result["accuracy_r1v"] == regraded["accuracy"]
    assert (result["accuracy_r1v"] > 0) == (task == "counting")  # the base answers without a space


def test_r1vs_grader_is_not_asked_where_it_would_have_to_guess(questions, tmp_path):
    assert "accuracy_r1v" not in evaluate(config_for(questions, tmp_path / "out"))
    with pytest.raises(UserError, match="needs --grade-as counting or --grade-as geometry"):
        dataclasses.replace(
            config_for(questions, tmp_path / "r1v"), reward=RewardConfig(grader="r1v")
        )


def test_r1vs_grader_has_no_rule_for_boxes(tmp_path):
    data = DataConfig(task="grounding", split="test")
    with pytest.raises(UserError, match="has no rule for grounding"):
        EvaluateConfig(
            model="tiny", out=tmp_path / "out", data=data, reward=RewardConfig(grader="r1v")
        )


def test_a_long_question_is_answered_if_there_is_no_limit(questions, tmp_path):
    result = evaluate(config_for(questions, tmp_path / "out", max_prompt_tokens=None))
    assert result["unreadable"] == 1


def test_a_set_without_a_question_that_can_be_read_is_refused(questions, tmp_path):
    for index in range(4):
        (tmp_path / f"{index}.png").unlink()
    with pytest.raises(UserError, match="none of the 4 questions can be read"):
        evaluate(config_for(questions, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_nothing_is_evaluated_for_a_place_that_cannot_be_written(questions, tmp_path):
    with pytest.raises(UserError, match=r"questions\.jsonl is a file"):
        evaluate(config_for(questions, questions / "out"))


def test_an_answer_that_cannot_be_graded_is_counted_and_listed(questions, tmp_path, monkeypatch):
    def no_time(self, texts, golds):
        return [Grade(0.0, 1.0, ungradable=number == 1) for number in range(len(texts))]

    monkeypatch.setattr(GradingPool, "grade_all", no_time)
    result = evaluate(config_for(questions, tmp_path / "out", max_prompt_tokens=None))
    assert result["ungradable"] == 1
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["ungradable"] for line in lines] == [False, True, False, False]
