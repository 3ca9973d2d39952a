"""The page of a run: whole, self-contained, safe, and honest about what is missing."""

import json
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from othink_jax.config import DataConfig, GRPOConfig, to_dict
from othink_jax.errors import UserError
from othink_jax.report import write_report
from othink_jax.report.curves import smoothed

HOSTILE = '<script>alert("x")</script></style><img src=x onerror=y>'


def metrics_row(step: int) -> dict:
    names = ("reward", "reward_accuracy", "reward_format", "kl", "beta", "completion_length")
    names += ("entropy", "group_std", "no_signal_share", "grad_norm", "truncated_share", "elapsed")
    return {"step": step, **{name: step / 10 for name in names}}


def write_run(run, *, steps=5, samples=True, evaluations=True, tail=""):
    run.mkdir(parents=True)
    config = GRPOConfig(model="tiny", out=run, data=DataConfig(task="counting"), steps=steps)
    record = {
        "kind": "grpo",
        "config": to_dict(config),
        "total_steps": steps,
        "started": "2026-01-01T00:00:00+00:00",
        "device": "1 x cpu",
        "versions": {"jax": "0.10.2"},
    }
    (run / "config.json").write_text(json.dumps(record))
    rows = "".join(json.dumps(metrics_row(step)) + "\n" for step in range(1, steps + 1))
    (run / "metrics.jsonl").write_text(rows + tail)
    if samples:
        (run / "samples").mkdir()
        Image.new("RGB", (8, 8), "red").save(run / "samples" / "step_000001_0_0.png")
        completion = {"text": HOSTILE, "reward": 1.0, "accuracy": 0.0, "format": 1.0}
        row = {
            "step": 1,
            "id": "counting-train-0-1",
            "question": HOSTILE,
            "ground_truth": "3",
            "images": ["step_000001_0_0.png"],
            "completions": [{**completion, "length": 9, "finished": True}],
        }
        (run / "samples" / "step_000001.jsonl").write_text(json.dumps(row) + "\n")
    if evaluations:
        for task, stage, accuracy in (
            ("counting", "before", 0.31),
            ("counting", "after", 0.465),
            ("geometry", "after", 0.2),
        ):
            result = {
                "task": task,
                "dataset": None,
                "stage": stage,
                "split": "test",
                "accuracy": accuracy,
                "interval": [accuracy - 0.04, accuracy + 0.04],
                "format": 1.0,
                "n": 500,
                "decoding": "greedy",
                "grader": "strict",
            }
            directory = run / "evaluations" / f"{stage}-{task}"
            directory.mkdir(parents=True)
            (directory / "result.json").write_text(json.dumps(result))
    return run


class Tags(HTMLParser):
    """Every tag of a page with its attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))


def page_of(run) -> str:
    return write_report(run).read_text()


def test_page_shows_evaluations_with_their_change(tmp_path):
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page_of(write_run(tmp_path / "run"))))
    assert "46.5% 42.5 to 50.5 +15.5" in text
    assert "geometry cross task after 20.0%" in text
    assert "GRPO-D on counting" in text


def test_page_needs_nothing_outside_itself(tmp_path):
    for tag, attributes in Tags(page_of(write_run(tmp_path / "run"))).seen:
        assert tag not in ("script", "link", "iframe")
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("xlink:href", "#").startswith("#")


def test_what_a_model_writes_is_shown_and_never_run(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    assert HOSTILE not in page
    assert page.count("&lt;script&gt;alert(") == 2  # the question and the completion
    assert not any("onerror" in attributes for _, attributes in Tags(page).seen)


def test_every_curve_is_drawn(tmp_path):
    page = page_of(write_run(tmp_path / "run"))
    assert page.count("<svg") == 8  # six panels, KL with beta, the intervals
    assert "KL (nats per token)" in page
    assert "beta" in page


@pytest.mark.parametrize("steps", [0, 1])
def test_a_young_run_has_a_page_that_says_what_is_missing(tmp_path, steps):
    run = write_run(tmp_path / "run", steps=1, samples=False, evaluations=False)
    if steps == 0:
        (run / "metrics.jsonl").unlink()
    page = page_of(run)
    assert "No evaluations are stored" in page
    assert "No sample completions" in page
    assert ("No step has been recorded" in page) == (steps == 0)


def test_a_row_cut_short_by_a_kill_is_left_out(tmp_path):
    assert "5 of 5 steps" in page_of(write_run(tmp_path / "run", tail='{"step": 6, "rew'))


@pytest.mark.parametrize("content", [None, "{", '{"model_type": "qwen2_vl"}'])
def test_what_is_not_a_run_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path)


def test_smoothing_keeps_a_constant_and_averages_neighbours():
    assert smoothed([2.0, 2.0, 2.0]).tolist() == [2.0, 2.0, 2.0]
    assert smoothed([0.0, 3.0, 6.0]).tolist() == [1.5, 3.0, 4.5]
