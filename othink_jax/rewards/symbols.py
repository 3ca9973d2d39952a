"""Comparison by symbolic algebra, in any time and memory: the grading pool limits both."""

import dataclasses
import re
from fractions import Fraction
from typing import Any

from othink_jax.rewards.answers import Answer
from othink_jax.rewards.names import unordered
from othink_jax.rewards.rounding import rounds_to

# `3/2√3` reads from left to right; math-verify would put the root into the denominator.
_FACTOR = re.compile(r"(?<![\d.^)}/])(\d+(?:\.\d+)?)/(\d+(?:\.\d+)?)(?=\\sqrt|\\pi|\()")
_PRODUCT = re.compile(r"(?<=\d)\((?!\\cdot)")  # `2(\frac{1}{2})` is no mixed number
_MIXED = re.compile(r"(?<=\d)\\frac\{(\d+)\}\{(\d+)\}")
_TOWER = re.compile(r"\^\{[^{}]*\}\^")  # ambiguous: it can be read from either end
_DECIMAL = re.compile(r"(\d*)\.(\d+)|(\d+)\.")
# Adjacent points are one symbol, not a product; a subscript and a command stay as they are.
# math-verify reads a capital letter as lower case, so it gets another name here.
_POINTS = re.compile(r"_\{[^{}]*\}|\\[A-Za-z]+|([∠△])((?:[A-Z]'*){1,3}|\d)|([A-Z]+)(?![A-Z_'])")
_DIGITS = 60  # precision of numeric values
_SAME = 40  # digits that two values must share before a proof of equality is tried


def equal_by_algebra(answer: Answer, truth: Answer) -> bool | None:
    """Whether values or equations are equal; None if the truth does not parse as mathematics."""
    if truth.equation:
        return _equal_equations(answer.equation, truth.equation)
    wanted, given = _parse(truth.value), _parse(answer.value)
    if wanted is None:
        return None
    if given is None:
        return False
    return _equal(given, wanted, decimal="." in answer.value, wanted_decimal="." in truth.value)


def _equal(given: Any, wanted: Any, *, decimal: bool, wanted_decimal: bool) -> bool:
    import sympy
    from math_verify import verify

    if isinstance(given, sympy.Expr) and isinstance(wanted, sympy.Expr):
        return _equal_expressions(given.doit(), wanted.doit(), decimal, wanted_decimal)
    if any(
        isinstance(one, sympy.Eq) and isinstance(one.rhs, sympy.Expr) for one in (given, wanted)
    ):
        return False  # an equation hidden in brackets
    if isinstance(given, sympy.FiniteSet) and isinstance(wanted, sympy.FiniteSet):
        left = list(given.args)
        for one in wanted.args:
            same = [
                other
                for other in left
                if _equal(other, one, decimal=decimal, wanted_decimal=wanted_decimal)
            ]
            if not same:
                return False
            left.remove(same[0])
        return not left
    # Not math-verify's own time limit: it sets signal.alarm, which raises outside the main thread,
    # cancels the caller's alarm, and cannot interrupt one long operation on large integers.
    return bool(verify(wanted, given, numeric_precision=400, timeout_seconds=None))


def _equal_expressions(given: Any, wanted: Any, decimal: bool, wanted_decimal: bool) -> bool:
    import sympy

    if given.has(sympy.nan, sympy.zoo) or wanted.has(sympy.nan, sympy.zoo):
        return False
    if given == wanted:
        return True
    if given.free_symbols or wanted.free_symbols:
        distance = sympy.expand(given - wanted)
        symbols = distance.free_symbols
        # Simplifying a whole polynomial is slow.
        polynomial = symbols and distance.is_polynomial(*symbols)
        parts = sympy.Poly(distance, *symbols).coeffs() if polynomial else [distance]
        return all(sympy.simplify(part) == 0 for part in parts)
    # Equal rationals have compared equal above.
    equal = not (given.is_Rational and wanted.is_Rational) and _same_constant(given, wanted)
    # A decimal for an irrational number or a fraction may be rounded.
    rounded = decimal and bool(given.is_Rational)
    wanted_rounded = wanted_decimal and bool(wanted.is_Rational)
    if equal or rounded == wanted_rounded:
        return equal
    short, exact = (given, wanted) if rounded else (wanted, given)
    exact = exact.evalf(_DIGITS)
    return bool(exact.is_Float or exact.is_Rational) and rounds_to(
        Fraction(str(short)), Fraction(str(exact))
    )


def _same_constant(given: Any, wanted: Any) -> bool:
    import sympy

    distance = abs((given - wanted).evalf(_DIGITS, maxn=1000))
    size = abs(wanted.evalf(_DIGITS))
    if not (distance < size * sympy.Float(10) ** -_SAME or distance == size == 0):
        return False
    return sympy.simplify(given - wanted) == 0 or (given - wanted).equals(0) is True


def _equal_equations(given: tuple[str, ...], wanted: tuple[str, ...]) -> bool | None:
    import sympy

    truth, answer = _difference(wanted), _difference(given)
    if truth is None or truth == 0:
        return None
    if answer is None or answer == 0:
        return False
    symbols = sorted(truth.free_symbols, key=str)
    if answer.free_symbols != truth.free_symbols or not symbols:
        return False
    if answer.is_polynomial(*symbols) and truth.is_polynomial(*symbols):
        return _same_multiples(sympy.Poly(answer, *symbols), sympy.Poly(truth, *symbols))
    factor = sympy.simplify(answer / truth)
    return bool(factor.is_number and factor.is_finite and factor.is_nonzero)


def _same_multiples(given: Any, wanted: Any) -> bool:
    """Whether one polynomial is a multiple of the other; simplifying their ratio is slow."""
    import sympy

    first, other = given.LC(), wanted.LC()
    return given.monoms() == wanted.monoms() and all(
        sympy.simplify(one * other - another * first) == 0
        for one, another in zip(given.coeffs(), wanted.coeffs(), strict=True)
    )


def _difference(sides: tuple[str, ...]) -> Any:
    import sympy

    left, right = (_parse(side) for side in sides)
    if not (isinstance(left, sympy.Expr) and isinstance(right, sympy.Expr)):
        return None
    return sympy.expand(left.doit() - right.doit())


def _parse(value: str) -> Any:
    """SymPy expression, set or relation; None if the value does not parse as mathematics.

    Decimals are read as exact fractions, so that nothing is rounded.
    """
    from math_verify import LatexExtractionConfig, parse

    config = LatexExtractionConfig()
    # Units are already removed; math-verify would read the letters of `2ab` as one and drop them.
    normal = dataclasses.replace(config.normalization_config, units=False)

    opened, closed = (sum(value.count(bracket) for bracket in side) for side in ("([{", ")]}"))
    if opened != closed or _TOWER.search(value):
        return None
    value = _PRODUCT.sub(r"\\cdot (", _FACTOR.sub(r"\\frac{\1}{\2}", value))
    value = _MIXED.sub(_improper, value)
    value = _DECIMAL.sub(_fraction, _POINTS.sub(_one_symbol, value))
    # No fallback to text: texts that fail to parse must not be compared letter by letter.
    parsed = parse(
        f"${value}$",
        extraction_config=[dataclasses.replace(config, normalization_config=normal)],
        fallback_mode="no_fallback",
        parsing_timeout=None,
    )
    return parsed[0] if parsed else None


def _improper(fraction: re.Match[str]) -> str:
    r"""`2\frac{7}{3}` as a product: only a proper fraction makes a mixed number."""
    return fraction[0] if int(fraction[1]) < int(fraction[2]) else rf"\cdot {fraction[0]}"


def _fraction(decimal: re.Match[str]) -> str:
    if decimal[3]:
        return decimal[3]
    # No `\frac`: after a digit, `2(\frac{1}{2})` would be read as a mixed number.
    return rf"({int(decimal[1] + decimal[2])}\cdot 10^{{-{len(decimal[2])}}})"


def _one_symbol(points: re.Match[str]) -> str:
    if points[3]:
        return rf"\xi_{{{unordered('', points[3])}}}"
    if points[2]:
        letter = {"∠": r"\psi", "△": r"\chi"}[points[1]]
        return f"{letter}_{{{unordered(points[1], points[2])}}}".replace("'", "p")
    return points[0]
