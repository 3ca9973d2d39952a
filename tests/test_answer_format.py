"""An answer format of one's own: tags of another name, or a regular expression."""

import json
from pathlib import Path

import pytest

from othink_jax.config import DataConfig, EvaluateConfig, GRPOConfig, RewardConfig, SFTConfig
from othink_jax.data.example import answer_format
from othink_jax.errors import UserError
from othink_jax.rewards import (
    ANSWER_TAGS,
    AnswerFormat,
    GradingPool,
    RewardExample,
    grade,
    load,
    regrade,
)

FINAL = AnswerFormat(tag="final")
BOXED = AnswerFormat(pattern=r"\\boxed\{([^{}]*)\}")
TASK = DataConfig(task="counting", template="{question}")


@pytest.mark.parametrize(
    ("answers", "text", "answer", "form"),
    [
        (FINAL, "<think>x</think> <final> 4 </final>", "4", 1),
        (FINAL, "<think>x</think> <answer>4</answer>", None, 0),
        (FINAL, "<final>3</final> or <final>4</final>", "4", 0),
        (BOXED, r"It is \boxed{3}, no, \boxed{ 4 }.", "4", 1),
        (BOXED, "<think>x</think> <answer>4</answer>", None, 0),
        (AnswerFormat(pattern=r"(?:(\d)|no)$"), "no", None, 0),
    ],
)
def test_the_last_answer_is_found_where_the_format_says(answers, text, answer, form):
    assert answers.extract(text) == answer
    assert answers.reward(text) == form
    assert grade(text, "4", answers=answers).accuracy == float(answer == "4")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tag": "<final>"}, "without brackets"),
        ({"tag": "think"}, "not `think`"),
        ({"pattern": "("}, "missing \\)"),
        ({"pattern": "no group"}, "has 0"),
        ({"pattern": "(a)(b)"}, "has 2"),
        ({"tag": "final", "pattern": "(a)"}, "not both"),
    ],
)
def test_a_format_that_says_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AnswerFormat(**settings)


def test_a_solution_is_written_in_the_tags_that_are_asked_for():
    solution = "<think>the <answer> tag</think> <answer>4</answer>"
    assert FINAL.written(solution) == "<think>the <answer> tag</think> <final>4</final>"
    assert ANSWER_TAGS.written(solution) == solution
    assert FINAL.in_usual_tags(FINAL.written(solution)) == solution
    stray = "<final>4</final> <final>"
    assert FINAL.in_usual_tags(stray) == "<answer>4</answer> <final>"
    with pytest.raises(ValueError, match="how an answer is written"):
        BOXED.written(solution)


def test_an_expression_that_never_ends_costs_its_time_and_not_the_run():
    """Extraction runs in the worker, and a text that it is quick on is graded all the same."""
    slow = AnswerFormat(pattern=r"(?:a|a)*b(\d)")
    with GradingPool(timeout_s=2, workers=1, answers=slow) as pool:
        hung, quick = pool.grade_all(["a" * 60, "b4"], ["4", "4"])
    assert hung.ungradable
    assert (hung.accuracy, hung.format) == (0, 0)
    assert (quick.accuracy, quick.format, quick.ungradable) == (1, 1, False)


def test_built_in_rewards_read_the_answer_where_it_stands():
    example = RewardExample(question="", answer="[0, 0, 2, 2]", answer_format=FINAL)
    reward = load("iou").function
    assert reward("<final>[0, 0, 2, 2]</final>", example) == 1
    assert reward("<answer>[0, 0, 2, 2]</answer>", example) == 0


def test_stored_predictions_say_how_their_answers_are_marked(tmp_path):
    row = {"question": "", "ground_truth": "4", "model_output": "<final>4</final>"}
    told = row | {"answer_format": {"tag": "final", "pattern": None}}
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(told) + "\n" + json.dumps(told))
    assert regrade(file)["accuracy"] == 1
    assert regrade(file, answers=ANSWER_TAGS)["accuracy"] == 0
    with pytest.raises(ValueError, match=r"<answer> tags alone"):
        regrade(file, grader="r1v", task="counting")
    file.write_text(json.dumps(told) + "\n" + json.dumps(row))
    with pytest.raises(ValueError, match="line 2: its answer is not marked as those before"):
        regrade(file)
    assert regrade(file, answers=FINAL)["accuracy"] == 1


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="asks for <answer> tags"):
        DataConfig(task="counting", answer_tag="final")
    tagged = DataConfig(task="counting", template="{question} <final>", answer_tag="final")
    assert answer_format(tagged) == FINAL
    place = {"model": "tiny", "out": Path("x")}
    with pytest.raises(UserError, match="reads <answer> tags alone"):
        GRPOConfig(**place, data=tagged, reward=RewardConfig(grader="r1v"))
    found = DataConfig(task="counting", template="{question}", answer_pattern="(.)")
    with pytest.raises(UserError, match="reads <answer> tags alone"):
        EvaluateConfig(**place, data=found, reward=RewardConfig(grader="r1v"))
    with pytest.raises(UserError, match="how it is written"):
        SFTConfig(**place, data=found)
    with pytest.raises(UserError, match="missing"):
        answer_format(DataConfig(task="counting", template="{question}", answer_pattern="("))
