"""R1-V's published verdicts, quirks included, for comparison with published numbers.

Do not train or judge by these alone. Counting takes the first tag that holds nothing but digits, so
a second answer goes unnoticed. Geometry parses the whole completion instead of its answer: a number
in the reasoning can win over the one in the tag, ground truths with a root or pi lose it (`8√{3}`
becomes 8) or do not parse at all, and the two sides of the comparison are swapped.

These are the verdicts of its evaluation. Its training reward differs: it grades counting as
geometry is graded here, and accepts equal texts even if algebra says no.

The verdicts on geometry are those of the installed math-verify; R1-V did not pin its version.
"""

import re

_COUNT = re.compile(r"<answer>\s*(\d+)\s*</answer>")
_INTEGER = re.compile(r"\s*[+-]?\d+\s*")
# Python refuses to convert longer integers, and no count has that many digits.
_MAX_DIGITS = 4000


def counting_verdict(text: str, gold: str) -> bool:
    """Verdict on a counting completion. Never raises, and takes time linear in the text."""
    integer = _INTEGER.fullmatch(gold) is not None and len(gold) < _MAX_DIGITS
    match = _COUNT.search(text)
    if match is None or not integer or len(match[1]) > _MAX_DIGITS:
        return False
    return int(match[1]) == int(gold)


def geometry_verdict(text: str, gold: str) -> bool:
    """Verdict on a geometry completion.

    It may take any time and memory, so call it in a process that can be killed.
    """
    from math_verify import parse, verify

    # Not math-verify's own time limit: see `symbols._equal`. If R1-V's limit ran out, its verdict
    # was 0, like that of a killed worker.
    answer = parse(text, parsing_timeout=None)
    truth = parse(gold, parsing_timeout=None)
    # The answer in the place of the gold: this is R1-V's order, and verify is not symmetric.
    return bool(verify(answer, truth, timeout_seconds=None))
