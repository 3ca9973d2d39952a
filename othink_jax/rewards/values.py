"""Parsing of one value, a number, a short expression or a group, with its unit."""

import dataclasses
import functools
import re
from fractions import Fraction

from othink_jax.rewards.groups import ungrouped
from othink_jax.rewards.names import NUMBER_WORDS

_UNITS = {
    "mm": "mm millimeter millimeters millimetre millimetres 毫米",
    "cm": "cm centimeter centimeters centimetre centimetres 厘米",
    "dm": "dm decimeter decimeters decimetre decimetres 分米",
    "m": "m meter meters metre metres 米",
    "km": "km kilometer kilometers kilometre kilometres 千米 公里",
    "in": "in inch inches",
    "ft": "ft foot feet",
    "nmi": "nmi nautical-mile nautical-miles sea-mile sea-miles 海里",
    "s": "s sec second seconds 秒",
    "min": "min minute minutes 分钟",
    "h": "h hr hrs hour hours 小时",
    "°": "° deg degree degrees 度",
    "rad": "rad radian radians",
    "%": "% percent",
    "dollar": "dollar dollars usd",
    "euro": "euro euros €",
    "£": "£ pounds-sterling",
    "yuan": "yuan rmb ¥ 元",
    # Neutral words: no other unit can contradict them.
    "": "unit units object objects item items thing things",
}
_UNIT_OF = {
    spelling.replace("-", " "): unit
    for unit, spellings in _UNITS.items()
    for spelling in spellings.split()
}
_POWER_OF = {"square": "2", "sq": "2", "平方": "2", "cubic": "3", "cu": "3", "立方": "3"}
# Longest first: `m` must not take the last letter of `cm`.
_UNIT = re.compile(
    rf"\s*(?:(?P<word>{'|'.join(_POWER_OF)})\.?\s*)?"
    rf"(?P<unit>{'|'.join(sorted(map(re.escape, _UNIT_OF), key=len, reverse=True))})"
    r"(?:\s*\^?\{?(?P<power>[23])\}?\^?)?$",
    re.IGNORECASE,
)

_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(r"(-?)\s*(\d+)(?:\s*\\frac\{(\d+)\}\{(\d+)\}|\s+(\d+)/(\d+))")
_COMMAND_AT_END = re.compile(r"\\[A-Za-z]+$")
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_RATIONAL = re.compile(
    rf"([+-]?){_NUMBER}(?:/{_NUMBER})?|([+-]?)\\frac\{{{_NUMBER}\}}\{{{_NUMBER}\}}", re.ASCII
)
_SCIENTIFIC = re.compile(rf"([+-]?)(?:{_NUMBER}\\cdot)?10\^\{{([+-]?\d{{1,3}})\}}", re.ASCII)
# The argument of a factorial is short: a few characters must not ask for a million digits.
_ARITHMETIC = re.compile(
    r"(?:(?<![\d.])\d{1,4}!(?!!)|[0-9.+\-/^(){}\[\]]|\\(?:frac|sqrt|pi|cdot)(?![A-Za-z]))*",
    re.ASCII,
)
_COMMANDS = re.compile(
    r"\\(?:frac|sqrt|pi|cdot|pm|infty|cup|cap|begin\{\w*matrix\}|end\{\w*matrix\})(?![A-Za-z])"
)
_DEGREES_MULTIPLIED = re.compile(r"°[^+-]*°|°\s*[\d.]")


@dataclasses.dataclass(frozen=True)
class Value:
    """A parsed value."""

    text: str  # without its unit, in canonical spelling; may be empty
    unit: str  # canonical unit with its power (`cm^2`), or empty
    number: Fraction | None  # exact value if `text` is a plain number or fraction
    decimal: bool  # written with a decimal point, so it may be rounded

    @property
    def arithmetic(self) -> bool:
        """Whether the value consists of numbers, roots, pi and operators only."""
        return is_arithmetic(self.text)

    @property
    def closed(self) -> bool:
        """Whether it is a value without letters or relations: a number, point, list or matrix."""
        rest = _COMMANDS.sub("", self.text)
        return _has_number(self.text) and re.search(r"[^\W\d_]|[<>=]", rest) is None


def _has_number(text: str) -> bool:
    return any(c in "0123456789" for c in text) or r"\pi" in text


def is_arithmetic(text: str) -> bool:
    """Whether a text consists of numbers, roots, pi and operators, with a number among them."""
    return _has_number(text) and _ARITHMETIC.fullmatch(text) is not None


def read_value(text: str) -> Value:
    """Parse a value in canonical spelling (see `spelling`). Never raises."""
    value, unit = _split_unit(text)
    if "°" in value and not _DEGREES_MULTIPLIED.search(text):  # `180°-50°`, `180°/2`
        value, unit = value.replace("°", ""), "°"
    value = one_line(value)
    number = _rational(value)
    if unit == "%":
        if number is None:  # the sign is part of the expression, not a unit that may be left out
            value, unit = f"{value}%", ""
        else:
            number /= 100
    return Value(value, unit, number, decimal="." in value)


def _split_unit(text: str) -> tuple[str, str]:
    match = _UNIT.search(text)
    if match is None or match.start() == 0:
        return text, ""
    value = text[: match.start()]
    # A unit follows a complete number, or is a word of its own (`three units`): `1/2m` has a unit;
    # the `m` of `atom` and of `\frac{1}{m}` is not one.
    if not (value[-1] in "0123456789.)}" or value.endswith(r"\pi") or text[len(value)].isspace()):
        return text, ""
    unit = _UNIT_OF[match["unit"].lower()]
    power = match["power"] or _POWER_OF.get((match["word"] or "").lower(), "")
    return value, f"{unit}^{power}" if unit and power else unit


def one_line(text: str) -> str:
    """Canonical spelling of a value: no spaces or thousands separators, digits for words."""
    text = NUMBER_WORDS.get(text.strip().lower(), text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text).strip()
    if mixed := _MIXED.fullmatch(text):
        sign, whole, top, bottom = (group for group in mixed.groups() if group is not None)
        if int(top) < int(bottom):  # else `2\\frac{7}{3}` is a product
            text = f"{sign}{int(whole) * int(bottom) + int(top)}/{bottom}"
    text = ungrouped(functools.reduce(_join, text.split(), ""))
    left, colon, right = text.partition(":")
    if colon and is_arithmetic(left) and is_arithmetic(right):
        return rf"\frac{{{left}}}{{{right}}}"
    return text


def _join(left: str, right: str) -> str:
    """Join without a space, unless `3 4` would become 34 or `\\pi r` a new command."""
    two_numbers = left[-1:].isdigit() and right[0].isdigit()
    command = _COMMAND_AT_END.search(left) is not None and right[0].isalpha()
    return f"{left} {right}" if two_numbers or command else left + right


def _rational(value: str) -> Fraction | None:
    if power := _SCIENTIFIC.fullmatch(value):
        number = Fraction(power[2] or 1) * Fraction(10) ** int(power[3])
        return -number if power[1] == "-" else number
    match = _RATIONAL.fullmatch(value)
    if match is None:
        return None
    sign, top, bottom = match.group(1, 2, 3) if match[2] else match.group(4, 5, 6)
    denominator = Fraction(bottom or 1)
    if not denominator:
        return None
    number = Fraction(top) / denominator
    return -number if sign == "-" else number
