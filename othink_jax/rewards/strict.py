"""The strict grader: only the answer tag counts, and its value must equal the ground truth.

Two numbers are equal if they are the same, or if exactly one of them is a decimal and the other
rounds to it (see `rounds_to`: 0.333333 is 1/3 and 0.33 is not). A unit may be left out; a unit that
contradicts the ground truth's is wrong, and none is converted. A percentage equals its hundredth;
if only the ground truth bears the sign, the bare figure is right too. The numbers of a point, a
vector or a matrix are compared in their order, each by these rules.

A name before a value may be left out; a name that contradicts the ground truth's is wrong. In a
chain of equalities every value must equal the ground truth: `5 = 4` answers neither. An equation
answers only an equation, and must be the same one up to swapped sides, moved terms and a nonzero
factor. If the truth is `x = 10`, `2x = 10` is wrong, and so is `2x = 20`: the truth names a value,
and an answer must state it.

In case of doubt, the verdict is wrong. The table of kinds is in this directory's README.md.
"""

import itertools
import re
from collections.abc import Callable
from fractions import Fraction

from othink_jax.rewards.answers import Answer, read_answer
from othink_jax.rewards.format import ANSWER_TAGS, AnswerFormat
from othink_jax.rewards.groups import coordinates, list_parts, matrix
from othink_jax.rewards.rounding import rounds_to
from othink_jax.rewards.symbols import equal_by_algebra

_COMMAND = re.compile(r"\\[A-Za-z]+|\b(?:sin|cos|tan|cot|log|ln|exp)")
_WORD = re.compile(r"[a-z]{3}|(?<![A-Za-z])(?:or|no|is|to|of)(?![A-Za-z])")

Algebra = Callable[[Answer, Answer], bool | None]


def quick_verdict(text: str, gold: str, answers: AnswerFormat = ANSWER_TAGS) -> bool | None:
    """Verdict on a completion without symbolic algebra; None if algebra is needed.

    Never raises, and takes time linear in the text if the format does.
    """
    return _verdict(answers.extract(text), gold, lambda answer, truth: None)


def symbolic_verdict(text: str, gold: str, answers: AnswerFormat = ANSWER_TAGS) -> bool | None:
    """Verdict by symbolic algebra on a completion that `quick_verdict` leaves open.

    None if the ground truth is too long to be one, or does not parse as mathematics.

    It may take any time and memory, so call it in a process that can be killed.
    """
    return _verdict(answers.extract(text), gold, equal_by_algebra)


def _verdict(content: str | None, gold: str, algebra: Algebra) -> bool | None:
    """Verdict on the content of an answer; a `content` of None stands for no answer."""
    if content is None or not gold.strip():
        return False
    if content == gold.strip():
        return True
    answer, truth = read_answer(content), read_answer(gold.strip())
    if not (truth.choice or truth.value):
        return None
    if truth.choice and answer.choice:
        if truth.choice != answer.choice:
            return False
        if not (truth.value and answer.value):
            return True
    return _equal(answer, truth, algebra)


def _equal(answer: Answer, truth: Answer, algebra: Algebra) -> bool | None:
    if not (answer.value and truth.value):
        return False
    if answer.system or truth.system:
        return _equal_systems(answer, truth, algebra)
    if truth.equation:
        return _equal_equations(answer, truth, algebra)
    if answer.equation and not answer.names:
        return False
    if answer.names and truth.names and answer.names.isdisjoint(truth.names):
        return False
    steps = [_equal(read_answer(step), truth, algebra) for step in answer.steps]
    return _all([*steps, _equal_values(answer, truth, algebra)])


def _equal_systems(answer: Answer, truth: Answer, algebra: Algebra) -> bool | None:
    """Compare systems of equations in the order of their names."""
    if answer.value == truth.value:
        return True
    if answer.alternatives or truth.alternatives:  # alternatives have no order
        return False
    if answer.system and truth.system:
        given, wanted = sorted(answer.system), sorted(truth.system)
    else:
        system = answer.system or truth.system
        if list(system) != sorted(system):
            return False  # (3, 4) is `x = 3, y = 4`, but hardly `y = 3, x = 4`
        given, wanted = (
            list(one.system) or coordinates(one.value) or list_parts(one.value)
            for one in (answer, truth)
        )
    return _all([_equal_parts(*pair, algebra) for pair in itertools.zip_longest(given, wanted)])


def _equal_parts(part: str | None, wanted: str | None, algebra: Algebra) -> bool | None:
    if not (part and wanted):
        return False  # nothing can equal a part that is missing
    return _equal(read_answer(part), read_answer(wanted), algebra)


def _equal_equations(answer: Answer, truth: Answer, algebra: Algebra) -> bool | None:
    if len(answer.equation) != len(truth.equation):
        return False
    if answer.equation in (truth.equation, truth.equation[::-1]):
        return True
    if len(truth.equation) > 2 or _has_words(answer.value) or _has_words(truth.value):
        return False
    return algebra(answer, truth)


def _equal_values(answer: Answer, truth: Answer, algebra: Algebra) -> bool | None:
    if answer.unit and truth.unit and answer.unit != truth.unit:
        return False
    if answer.number is not None and truth.number is not None:
        return _equal_numbers(answer, truth)
    pairs = _in_order(answer.value, truth.value)
    if pairs is not None:
        return _all([_equal_parts(*pair, algebra) for pair in pairs])
    if answer.value == truth.value:
        return True
    if truth.arithmetic:
        # An answer that holds anything else, a letter or a second number, is not that value.
        return algebra(answer, truth) if answer.arithmetic else False
    if not any(c.isdecimal() for c in truth.value):
        # A ground truth without a digit is a word: nothing to compute.
        return answer.value.casefold() == truth.value.casefold()
    if ":" in answer.value + truth.value or _different_lists(answer.value, truth.value):
        return False
    if _has_words(answer.value) or _has_words(truth.value):
        return False
    return algebra(answer, truth)


def _different_lists(value: str, wanted: str) -> bool:
    lengths = {len(list_parts(value)), len(list_parts(wanted))} - {1}
    return len(lengths) > 1  # to algebra they are sets, in which 2, 2 is 2


def _has_words(value: str) -> bool:
    """Whether the letters of a value are words, which algebra takes for a product."""
    return _WORD.search(_COMMAND.sub("", value)) is not None


def _in_order(value: str, wanted: str) -> list[tuple[str, str]] | None:
    """Pairs of parts to compare if either is a point, `(3, 4)` or `[3, 4]`, or a matrix; else None.

    A list without brackets matches either kind of point.
    """
    rows, right_rows = matrix(value), matrix(wanted)
    if rows or right_rows:
        if not rows or not right_rows or [*map(len, rows)] != [*map(len, right_rows)]:
            return [(value, "")]
        return list(zip(itertools.chain(*rows), itertools.chain(*right_rows), strict=True))
    given, right = coordinates(value), coordinates(wanted)
    if given is None and right is None:
        return None
    if given and right and value[0] != wanted[0]:  # an open and a closed interval
        return [(value, "")]
    return list(
        itertools.zip_longest(given or list_parts(value), right or list_parts(wanted), fillvalue="")
    )


def _all(verdicts: list[bool | None]) -> bool | None:
    if False in verdicts:
        return False
    return None if None in verdicts else True


def _equal_numbers(answer: Answer, truth: Answer) -> bool:
    assert truth.number is not None
    if truth.unit == "%" and not answer.unit and _same(answer, truth, truth.number * 100):
        return True
    return _same(answer, truth, truth.number)


def _same(answer: Answer, truth: Answer, value: Fraction) -> bool:
    assert answer.number is not None
    if answer.number == value:
        return True
    # Two decimals are compared exactly; only a decimal for a fraction may be rounded.
    if answer.decimal == truth.decimal:
        return False
    decimal, exact = (answer.number, value) if answer.decimal else (value, answer.number)
    return rounds_to(decimal, exact)
