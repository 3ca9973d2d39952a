"""Reward functions of one's own in runs and evaluations: seen by name, refused when changed."""

import dataclasses
import json
import shutil
import sys

import pytest

from othink_jax import cli
from othink_jax.config import ResumeConfig, RewardConfig, read_run
from othink_jax.data.synthetic import generate
from othink_jax.errors import UserError
from othink_jax.report import model_card, write_report
from othink_jax.training.grpo import resume, train
from tests.test_grpo import config_for, rows_of, without_times

OWN = """
def short(text, example):
    return len(text) < 60

def near(text, example):
    if "9" in text:
        raise ValueError("a nine\\nand more")
    return 0.25 * example.columns["level"]

near.maximum = 0.5

def absent(text, example):
    return example.columns["boxes"]
"""


@pytest.fixture
def questions(tmp_path, monkeypatch):
    """A JSONL file of eight questions with a column of their own, beside a file of functions."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own.py").write_text(OWN)
    rows = []
    for index in range(8):
        example = generate("counting", "test", index)
        example.images[0].save(tmp_path / f"{index}.png")
        row = {"question": example.question, "ground_truth": example.answer, "level": index % 3}
        rows.append({**row, "image_path": f"{index}.png"})
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run_config(questions, out, *functions, **changes):
    config = config_for(out)
    data = dataclasses.replace(config.data, task=None, dataset=questions.name)
    reward = RewardConfig(functions=functions, grading_workers=1)
    return config_for(out, **{"data": data, "reward": reward, "steps": 2, **changes})


def test_a_run_shows_its_functions_by_name_and_goes_on_only_with_the_same(
    questions, tmp_path, monkeypatch, capsys
):
    functions = ("own.py:short=0.5", "own.py:near", "format=0.25")
    out = tmp_path / "run"
    train(run_config(questions, out, *functions, checkpoint_every=1))
    rows = rows_of(out)
    for row in rows:
        parts = 0.5 * row["reward_short"] + row["reward_near"] + 0.25 * row["reward_format"]
        assert row["reward"] == pytest.approx(parts)
        assert {"reward_accuracy", "reward_near_full_share", "reward_failed"} <= row.keys()
    (sample, *_) = (out / "samples" / "step_000001.jsonl").read_text().splitlines()
    assert {"short", "near"} == json.loads(sample)["completions"][0]["rewards"].keys()
    failed = sum(row["reward_failed"] for row in rows)
    listed = out / "failed_rewards.txt"
    assert failed > 0
    assert listed.read_text() == "near: and more\n"  # its traceback's last line, once
    assert "reward_near" in capsys.readouterr().err
    page = write_report(out).read_text()
    assert page.count("<h3>Reward near</h3>") == 1
    assert f"<dt>failed values of rewards</dt><dd>{failed}</dd>" in page
    card = model_card(out)
    assert "| reward | 0.5 short + near + 0.25 format |" in card
    assert f"| reward near at the end | mean {rows[-1]['reward_near']:.3g} in training" in card

    # From elsewhere, with the file where it was.
    shutil.rmtree(out / "checkpoints" / "2")
    monkeypatch.chdir(out)
    resume(out)
    assert without_times(rows_of(out)) == without_times(rows)

    before = read_run(out).sources
    (tmp_path / "own.py").write_text(OWN + "# another\n")
    with pytest.raises(UserError, match="the source of short, near is not what it was when"):
        resume(ResumeConfig(resume=out, steps=3))
    assert len(rows_of(out)) == 2
    resume(ResumeConfig(resume=out, steps=3, allow_changed_source=True))
    (change,) = read_run(out).changes
    assert change["settings"].keys() == {"steps", "source of short", "source of near"}
    after = read_run(out).sources  # that a further resumed run is compared with
    assert {before[name] == after[name] for name in ("short", "near")} == {False}


def test_a_function_that_fails_on_the_whole_first_batch_ends_the_run_before_it_learns(
    questions, tmp_path
):
    out = tmp_path / "run"
    with pytest.raises(UserError, match=r"--reward own\.py:absent fails on every .*: KeyErr"):
        train(run_config(questions, out, "own.py:absent", "accuracy"))
    assert not (out / "metrics.jsonl").exists()
    (tmp_path / "own.py").write_text(OWN.replace("boxes", "level"))
    resume(ResumeConfig(resume=out, allow_changed_source=True))
    assert [row["reward_absent"] >= 0 for row in rows_of(out)] == [True, True]


@pytest.mark.parametrize("path", ["own.py:none", "no_such_module:f", "no_such_name"])
def test_nothing_is_written_for_a_function_that_is_not_there(questions, tmp_path, path):
    with pytest.raises(UserError, match=f"^--reward {path}"):
        train(run_config(questions, tmp_path / "run", path))
    assert not (tmp_path / "run").exists()


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["othink-jax", *map(str, words)])
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setenv("OTHINK_JAX_COMPILATION_CACHE", "off")
    try:
        cli.main()
        code = 0
    except SystemExit as exit:
        code = exit.code
    return code, capsys.readouterr()


def test_grading_again_finds_what_the_evaluation_found(questions, tmp_path, monkeypatch, capsys):
    """Of files with the columns of the data and without."""
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    (tmp_path / "3.png").write_bytes(b"no picture")
    rewards = ("--reward", "own.py:near=2", "--reward", "accuracy")
    words = ("--dataset", questions, "--preset", "tiny", "--grading-workers", "1", *rewards)
    code, printed = command(monkeypatch, capsys, "evaluate", "tiny", *words, "--out", "out")
    assert code == 0
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    stored = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").open()]
    values = [row["rewards"]["near"] for row in stored]
    assert result["rewards"]["near"]["mean"] == pytest.approx(sum(values) / 8)
    assert stored[-1]["readable"] is False
    assert values[-1] == 0
    assert stored[1]["columns"] == {"level": 1}
    assert stored[1]["image_sizes"] == [[112, 112]]
    assert result["rewards"]["accuracy"]["mean"] == result["accuracy"]
    said = [line for line in printed.out.splitlines() if line.startswith("reward ")]
    assert [line.split()[1] for line in said] == ["near", "accuracy", "total"]

    words = ("grade", "out/predictions.jsonl", "--task", "counting")
    assert command(monkeypatch, capsys, *words, *rewards)[1].out.splitlines()[1:] == said
    bare = [
        {"question": "q", "ground_truth": "4", "model_output": text, "level": row["level"]}
        for row, text in zip(rows, "12345678", strict=True)
    ]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps(row) + "\n" for row in bare))
    words = ("grade", "bare.jsonl", "--task", "counting", "--json", "--reward", "own.py:near")
    graded = json.loads(command(monkeypatch, capsys, *words)[1].out)
    assert graded["rewards"]["near"]["mean"] == pytest.approx(0.25 * 7 / 8)
    words = ("grade", "bare.jsonl", "--task", "counting", "--reward", "own.py:absent")
    code, printed = command(monkeypatch, capsys, *words)
    assert code == 1
    assert printed.err == (
        "othink-jax: --reward own.py:absent fails on every answer: KeyError: 'boxes'\n"
    )


def test_an_evaluation_tells_columns_though_no_function_asks_yet(questions, tmp_path, monkeypatch):
    from othink_jax.evaluation import evaluate
    from tests.test_evaluation import config_for as evaluation

    evaluate(evaluation(questions, tmp_path / "out"))
    first = json.loads((tmp_path / "out" / "predictions.jsonl").read_text().splitlines()[0])
    assert first["columns"] == {"level": 0}
    assert "rewards" not in first
