"""Spellings of answers by kind: what the strict grader takes, and the near misses it refuses."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from othink_jax.rewards import grade, strict

TABLE = Path(__file__).with_name("answer_kinds.txt")
PAGE = Path(strict.__file__).with_name("README.md")
Case = tuple[str, str, float]  # answer, ground truth, its accuracy


def read_table() -> Iterator[tuple[str, Case]]:
    kind = truth = ""
    for line in TABLE.read_text(encoding="utf-8").split("\n"):
        if line.startswith("["):
            kind = line[1:-1]
        elif line.startswith("truth"):
            truth = line[len("truth  ") :]
        elif line.startswith(("right", "wrong")):
            for answer in line[len("right  ") :].split(" ¦ "):
                answer = answer.replace("␤", "\n").replace("∅", "")
                yield kind, (answer, truth, float(line.startswith("right")))


CASES = list(read_table())
KINDS = list(dict.fromkeys(kind for kind, _ in CASES))


def graded(cases: list[Case]) -> list[Case]:
    """The cases with the grader's verdicts. None of them may be ungradable."""
    grades = [grade(f"<answer>{answer}</answer>", gold) for answer, gold, _ in cases]
    assert not any(one.ungradable for one in grades)
    return [(*case[:2], one.accuracy) for case, one in zip(cases, grades, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_each_spelling_has_its_verdict(kind: str) -> None:
    cases = [case for its_kind, case in CASES if its_kind == kind]
    assert {right for *_, right in cases} == {0.0, 1.0}
    assert graded(cases) == cases


def test_the_table_is_large() -> None:
    assert len({case for _, case in CASES}) == len(CASES) >= 500


def test_every_truth_of_the_table_is_right_for_itself() -> None:
    # In dollars, for equal texts are right unread.
    truths = {gold for _, (_, gold, _) in CASES}
    cases = [(f"$ {gold}$", gold, 1.0) for gold in sorted(truths)]
    assert graded(cases) == cases


ROWS = re.findall(
    r"^\| ([a-z ]+) \| `(.*?)` \| (`.*`) \| (`.*`) \|$", PAGE.read_text("utf-8"), re.MULTILINE
)


def test_the_page_has_every_kind_and_no_other() -> None:
    assert list(dict.fromkeys(row[0] for row in ROWS)) == KINDS


def test_the_page_says_what_the_grader_does() -> None:
    cases = [
        (answer, gold, right)
        for _, gold, *both in ROWS
        for right, answers in zip((1.0, 0.0), both, strict=True)
        for answer in re.findall("`(.*?)`", answers)
    ]
    assert len(cases) > 100
    assert graded(cases) == cases
