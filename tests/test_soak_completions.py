"""The campaign of hostile completions: what it takes for wrong is wrong, and it counts it all."""

import argparse
import random

import pytest

from experiments.soak import completions
from othink_jax.rewards import Grade
from othink_jax.rewards.strict import quick_verdict


def test_quick_verdicts_on_hostile_completions_are_never_a_false_yes_or_no() -> None:
    seen = set()
    for kind, text, truth in completions.completions(random.Random(7), 4000):
        verdict = quick_verdict(text, truth)
        seen.add((kind, verdict))
        assert verdict in ((True, None) if kind == "right" else (False, None)), (text[:300], truth)
    assert {kind for kind, _ in seen} == {make.__name__ for make, _ in completions._KINDS}


class OneVerdict:
    """A pool that judges every completion alike."""

    def __init__(self, grade: Grade) -> None:
        self.grade = grade

    def __call__(self, **_: object) -> "OneVerdict":
        return self

    def __enter__(self) -> "OneVerdict":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def grade_all(self, texts: list[str], golds: list[str]) -> list[Grade]:
        hanging = set(golds) == {"104729"} and len(texts) == completions._HANGING
        return [Grade(0.0, 0.0, ungradable=True) if hanging else self.grade for _ in texts]


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_a_false_no_and_a_false_yes_end_the_campaign(
    accuracy: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completions, "GradingPool", OneVerdict(Grade(accuracy, 1.0)))
    monkeypatch.setattr(completions, "limit_memory", lambda: None)
    with pytest.raises(SystemExit):
        completions.run(argparse.Namespace(seed=0, count=200, json=None))
    printed = capsys.readouterr().out
    assert ("BAD right: wrong" in printed) == (accuracy == 0.0)
    assert ("BAD hedged: right" in printed) == (accuracy == 1.0)
