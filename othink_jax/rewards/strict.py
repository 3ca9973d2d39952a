"""The strict grader: only the answer tag counts, and its value must equal the ground truth.

Two values are equal if they are the same number, or if exactly one of them is a decimal and both
agree to six decimals (math-verify's rule, so 0.333333 is 1/3 and 0.33 is not). A unit may be left
out; one that contradicts the ground truth's is wrong, and none is converted. A percentage equals
its hundredth; where only the ground truth bears the sign, the bare figure is right too. The numbers
of a point or a vector are compared in their order, each by these rules.
"""

import itertools
import re
from fractions import Fraction

from othink_jax.rewards.answers import Answer, coordinates, extract_answer, list_parts, read_answer

_DECIMALS = 6
# `3/2√3` reads from left to right; math-verify would put the root under the bar.
_FACTOR = re.compile(r"(?<![\d.^)}/])(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)(?=\\sqrt|\\pi|\()")


def quick_verdict(text: str, gold: str) -> bool | None:
    """Verdict on a completion where it takes no symbolic algebra; None where that must be asked.

    Never raises, and takes time linear in the text.
    """
    content = extract_answer(text)
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
    return _equal_values(answer, truth)


def _equal_values(answer: Answer, truth: Answer) -> bool | None:
    if not (answer.value and truth.value):
        return False
    if answer.unit and truth.unit and answer.unit != truth.unit:
        return False
    if answer.number is not None and truth.number is not None:
        return _equal_numbers(answer, truth)
    pairs = _in_order(answer.value, truth.value)
    if pairs is not None:
        return _all([_equal_values(read_answer(a), read_answer(b)) for a, b in pairs])
    if answer.value.casefold() == truth.value.casefold():
        return True
    if truth.arithmetic:
        # Whatever else stands in the answer, a letter or a second number, it is not that value.
        return None if answer.arithmetic else False
    # A ground truth without a digit is a word: nothing to compute.
    return None if any(c.isdecimal() for c in truth.value) else False


def _in_order(value: str, wanted: str) -> list[tuple[str, str]] | None:
    """What to compare with what if either is a point, `(3, 4)` or `[3, 4]`; None if neither is.

    A list without brackets stands for either kind. Nothing can equal a part that is missing.
    """
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
    # Two decimals are compared as they stand; only a decimal of a fraction can have been rounded.
    return answer.decimal != truth.decimal and (
        round(answer.number, _DECIMALS) == round(value, _DECIMALS)
    )


def symbolic_verdict(text: str, gold: str) -> bool | None:
    """Verdict by symbolic algebra, for what `quick_verdict` leaves open.

    None if the ground truth is too long to be one, or no mathematics.

    It may take any time and memory, so call it in a process that can be killed.
    """
    content = extract_answer(text)
    if content is None:
        return False
    return _equal_symbols(read_answer(content).value, read_answer(gold.strip()).value)


def _equal_symbols(value: str, wanted: str) -> bool | None:
    from math_verify import verify

    pairs = _in_order(value, wanted)
    if pairs is not None:
        return _all(
            [_equal_symbols(one, other) if one and other else False for one, other in pairs]
        )
    truth, answer = _parse(wanted), _parse(value)
    if not truth:
        return None
    # No time limit of math-verify's own: it sets signal.alarm, which raises outside the main
    # thread, cancels the caller's alarm, and cannot interrupt one long operation on large integers.
    return bool(answer and verify(truth, answer, float_rounding=_DECIMALS, timeout_seconds=None))


def _parse(value: str) -> list[object]:
    """Parsed expression as a list of one, or an empty list where it is no mathematics."""
    from math_verify import LatexExtractionConfig, parse

    value = _FACTOR.sub(r"\\frac{\1}{\2}", value)
    # No fallback to text: texts that fail to parse must not be compared letter by letter.
    return parse(
        f"${value}$",
        extraction_config=[LatexExtractionConfig()],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
