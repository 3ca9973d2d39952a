"""The benchmark of padding: what its record says, and that a small run of it says the same kind."""

import json
from pathlib import Path

import pytest

from experiments.bench import padding
from othink_jax.checkpoint.load import load

RECORD = Path(padding.__file__).parent / "results" / "padding.json"


def test_no_run_of_the_record_has_more_than_six_updates():
    runs = json.loads(RECORD.read_text())["runs"]
    assert len(runs) == 20
    few = [run["ways"]["few"] for run in runs]
    assert max(row["sampling_programs"] for row in few) <= 2
    assert max(row["update_programs"] for row in few) <= 6
    assert sum(row["flops_over_own"] for row in few) / len(few) < 4 / 3


def test_padding_is_counted_against_what_is_real(monkeypatch):
    monkeypatch.setattr(padding, "STEPS", 3)
    processor = load("tiny", min_pixels=3136, max_pixels=401408).processor
    ways = padding.measure(processor, "CLEVR", "60", prompts=2)["ways"]
    # 11 x 17 windows of 748 patches; one shape has 2048 of them.
    assert ways["one shape"]["patches_over_real"] == pytest.approx(2048 / 748)
    assert ways["multiples of 32, 64, 64"]["patches_over_real"] == pytest.approx(768 / 748)
    for row in ways.values():
        assert row["flops_over_own"] > 1
        assert min(value for name, value in row.items() if name.endswith("over_real")) > 1
