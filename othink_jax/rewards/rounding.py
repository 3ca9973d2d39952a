"""How precise a decimal must be to stand for a number that has no short one."""

import math
from fractions import Fraction

_DECIMALS = 6
_LEAST_DIGITS = 4


def rounds_to(decimal: Fraction, exact: Fraction) -> bool:
    """Whether a number is a decimal at the precision of answers.

    That is six decimals, and four significant digits where a number below 0.001 needs more of them
    for these: 0.0000 is no small number.
    """
    if not exact:
        return not decimal
    magnitude = math.floor(math.log10(abs(exact.numerator)) - math.log10(exact.denominator))
    digits = max(_DECIMALS, _LEAST_DIGITS - 1 - magnitude)
    return round(decimal, digits) == round(exact, digits)
