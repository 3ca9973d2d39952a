"""Grading stored predictions again, and what is wrong with a file that cannot be."""

import json
from pathlib import Path

import pytest

from othink_jax.rewards import regrade


def row(ground_truth: object, model_output: object, **more: object) -> str:
    return json.dumps(
        {"question": "?", "ground_truth": ground_truth, "model_output": model_output, **more}
    )


def write(path: Path, *lines: str) -> Path:
    path = path / "predictions.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_both_graders_grade_a_file_by_their_own_rules(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        row(4, "<answer>4</answer>", image="a.png"),
        row("4", "<answer>four</answer>"),
        "",
        row(4.0, "<answer>4</answer><answer>5</answer>"),
        row(4, "4 ü"),
        "",
    )
    strict = regrade(path, task="counting", grader="strict")
    expected = {"accuracy": 0.5, "n": 4, "ungradable": 0, "ungradable_lines": []}
    assert strict == expected
    r1v = regrade(str(path), task="counting", grader="r1v")
    assert r1v == expected
    # Two right each, and not the same two.
    write(tmp_path, row("4", "<answer>four</answer>"))
    assert regrade(path, task="counting", grader="strict")["accuracy"] == 1.0
    assert regrade(path, task="counting", grader="r1v")["accuracy"] == 0.0


def test_geometry_is_graded_by_algebra(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        row("8√{3}", "<answer>$\\sqrt{192}$</answer>"),
        row("8√{3}", "<answer> 8 </answer>"),
        row(0.5, "<answer> 1/2 </answer>"),
    )
    assert regrade(path, task="geometry", grader="strict")["accuracy"] == pytest.approx(2 / 3)
    assert regrade(path, task="geometry", grader="r1v")["accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("gold", ["8√{", "\\frac{1}{", "3" + "+3" * 200, "."])
def test_a_truth_that_cannot_be_read_is_counted_and_its_line_is_named(
    tmp_path: Path, gold: str
) -> None:
    path = write(tmp_path, "", row("8", "<answer>8</answer>"), row(gold, "<answer>8</answer>"))
    found = regrade(path, task="geometry")
    assert found == {"accuracy": 0.5, "n": 2, "ungradable": 1, "ungradable_lines": [3]}


@pytest.mark.parametrize("gold", ["triangle", "A", "(1, 2)", "√{3}"])
def test_a_wrong_answer_to_a_truth_that_can_be_read_is_wrong(tmp_path: Path, gold: str) -> None:
    path = write(tmp_path, row(gold, "<answer>8</answer>"))
    assert regrade(path, task="geometry")["ungradable"] == 0


def test_a_question_that_could_not_be_asked_counts_as_answered_wrongly(tmp_path: Path) -> None:
    path = write(tmp_path, row("", "", readable=False), row("8", "<answer>8</answer>"))
    assert regrade(path, task="geometry")["accuracy"] == 0.5


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "?", ', "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("[1, 2]", "not a JSON object but list"),
        ('{"question": "?"}', "missing ground_truth, model_output"),
        (row(4, None), "model_output must be a text, got NoneType"),
        (row("", "4"), "ground_truth must be"),
        (row(True, "4"), "ground_truth must be"),
        (row(float("nan"), "4"), "ground_truth must be"),
        (row(None, "4"), "ground_truth must be"),
    ],
)
def test_a_broken_row_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path, row(4, "4"), "", line, row(4, "4"))
    with pytest.raises(ValueError, match=message) as caught:
        regrade(path, task="counting")
    assert str(caught.value).startswith(f"{path}, line 3: ")
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(row(4, "4").encode() + b'\n{"question": "\xff"}\n')
    with pytest.raises(ValueError, match="line 2: not a JSON object"):
        regrade(path)


def test_an_empty_or_missing_file_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "", " ")
    with pytest.raises(ValueError, match=r"predictions\.jsonl: the file holds no predictions"):
        regrade(path, task="counting")
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read: No such file"):
        regrade(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="cannot be read"):
        regrade(tmp_path)
