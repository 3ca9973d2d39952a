"""Precision at which a decimal may stand for a number without a short decimal."""

import math
from fractions import Fraction

_DECIMALS = 6
_LEAST_DIGITS = 4


def rounds_to(decimal: Fraction, exact: Fraction) -> bool:
    """Whether `exact` rounds to `decimal` at the precision of answers.

    The precision is six decimals. A number below 0.001 gets as many more as four significant digits
    need: 0.0000 does not stand for a small number.
    """
    if not exact:
        return not decimal
    magnitude = math.floor(math.log10(abs(exact.numerator)) - math.log10(exact.denominator))
    digits = max(_DECIMALS, _LEAST_DIGITS - 1 - magnitude)
    return round(decimal, digits) == round(exact, digits)
