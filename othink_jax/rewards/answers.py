"""Reading a final answer: from the tag's content to a choice letter, a value and a unit.

Everything here runs in the training process on text that a model wrote, so each step takes time
linear in the text, and nothing is evaluated.
"""

import dataclasses
import functools
import math
import re
from fractions import Fraction

# A final answer is a number or a short expression. Longer text is no answer, and reading it would
# only give a model a way to spend our time.
MAX_ANSWER_CHARS = 256

_SAME_CHARACTER = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑‒﹣", "-"),
        **dict.fromkeys("º˚", "°"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2009\u202f\u3000", " "),
        **{chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},  # full-width forms
        "²": "^2",
        "³": "^3",
        "×": r"\cdot ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "*": r"\cdot ",
        "÷": "/",
        "π": r"\pi ",
        "∕": "/",
        "⁄": "/",
        "。": ".",
    }
)

# Spellings of one thing, applied in this order. None can match twice in the same place.
_SAME_SPELLING: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])|\$|\\[()\[\]]", ""),
        (r"\{,\}|\\,(?=\d{3})", ","),
        (r"\\[,;:! ]|~", " "),
        (r"\\(?:text|mathrm|mathbf|textbf|rm)\s*\{([^{}]*)\}", r"\1"),
        (r"\\boxed\s*\{(.*)\}", r"\1"),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\times(?![A-Za-z])", r"\\cdot "),
        (r"\\%", "%"),
        (r"\^?\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?", "°"),
        (r"(?i)(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?i)(?:√|\\sqrt(?![A-Za-z])|(?<![A-Za-z\\])sqrt)\s*(?=[\d({\[.])", r"\\sqrt"),
        (r"\\sqrt(\d+(?:\.\d+)?)", r"\\sqrt{\1}"),
        (r"\\sqrt\(([^()]*)\)", r"\\sqrt{\1}"),
    )
)

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
    # These say nothing that another unit could contradict.
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

_COUNTED = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
)
_NUMBER_WORDS = {word: str(number) for number, word in enumerate(_COUNTED.split())}
_CHOICE = re.compile(r"(?:\(([A-Ha-h])\)[.:]?|([A-Ha-h])(?:[.:)]|$))\s*")
_NAME = re.compile(r"[^=≈<>!]*[=≈]")  # `x =`, `\angle CED =`
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_MIXED = re.compile(r"(-?)\s*(\d+)(?:\s*\\frac\{(\d+)\}\{(\d+)\}|\s+(\d+)/(\d+))")
_COMMAND_AT_END = re.compile(r"\\[A-Za-z]+$")
_NUMBER = r"(\d+(?:\.\d*)?|\.\d+)"
_RATIONAL = re.compile(
    rf"([+-]?){_NUMBER}(?:/{_NUMBER})?|([+-]?)\\frac\{{{_NUMBER}\}}\{{{_NUMBER}\}}", re.ASCII
)
_ARITHMETIC = re.compile(r"(?:[0-9.+\-/^(){}\[\]]|\\(?:frac|sqrt|pi|cdot)(?![A-Za-z]))*")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A final answer, read."""

    choice: str  # letter of a multiple choice in upper case, or empty
    value: str  # what is left without choice, name and unit, in one spelling; may be empty
    unit: str  # canonical unit with its power (`cm^2`), or empty
    number: Fraction | None  # exact value where `value` is a plain number or fraction
    decimal: bool  # `number` was written with a decimal point, so it may be rounded

    @property
    def arithmetic(self) -> bool:
        """Whether the value consists of numbers, roots, pi and operators only."""
        has_number = any(c in "0123456789" for c in self.value) or r"\pi" in self.value
        return has_number and _ARITHMETIC.fullmatch(self.value) is not None


def extract_answer(text: str) -> str | None:
    """Content of the last `<answer>...</answer>`, stripped; None without such a pair."""
    # Searched from the end, not matched by a pattern: a pattern takes quadratic time on many
    # opened and never closed tags.
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    if start < 0:
        return None
    start += len("<answer>")
    return text[start : text.index("</answer>", start)].strip()


def ground_truth(value: object) -> str:
    """A ground truth as a text: one that a data set holds as a number, too.

    Raises:
      ValueError: it is neither a text with something in it nor a finite number.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    raise ValueError(f"must be a non-empty text or a finite number, got {value!r}")


def read_answer(text: str) -> Answer:
    """Read the content of an answer tag, or a ground truth. Never raises; see `Answer`."""
    if len(text) > MAX_ANSWER_CHARS:
        return Answer(choice="", value="", unit="", number=None, decimal=False)
    return _read_answer(text)


@functools.lru_cache(maxsize=4096)
def _read_answer(text: str) -> Answer:
    text = text.translate(_SAME_CHARACTER).replace(r"\cdot \cdot ", "")  # `**bold**`
    for pattern, replacement in _SAME_SPELLING:
        text = pattern.sub(replacement, text)
    text = text.strip().rstrip(".,;").strip()
    choice, text = _split_choice(text)
    if text.count("=") + text.count("≈") == 1:
        text = _NAME.sub("", text).strip()
    value, unit = _split_unit(text)
    value = _plain_value(value)
    number = _rational(value)
    if unit == "%":
        if number is None:  # the sign is part of the expression, not a unit that may be left out
            value, unit = f"{value}%", ""
        else:
            number /= 100
    return Answer(choice=choice, value=value, unit=unit, number=number, decimal="." in value)


def _split_choice(text: str) -> tuple[str, str]:
    match = _CHOICE.match(text)
    if match is None:
        return "", text
    return (match[1] or match[2]).upper(), text[match.end() :]


def _split_unit(text: str) -> tuple[str, str]:
    match = _UNIT.search(text)
    if match is None or match.start() == 0:
        return text, ""
    value = text[: match.start()]
    # A unit follows a finished number, or a word of its own (`three units`): `1/2m` has one, the
    # last letter of `atom` and of `\frac{1}{m` is none.
    if not (value[-1] in "0123456789.)}" or value.endswith(r"\pi") or text[len(value)].isspace()):
        return text, ""
    unit = _UNIT_OF[match["unit"].lower()]
    power = match["power"] or _POWER_OF.get((match["word"] or "").lower(), "")
    return value, f"{unit}^{power}" if unit and power else unit


def _plain_value(text: str) -> str:
    """One spelling of a value: no spaces, no thousands separators, digits for number words."""
    text = _NUMBER_WORDS.get(text.strip().lower(), text)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text).strip()
    if mixed := _MIXED.fullmatch(text):
        sign, whole, top, bottom = (group for group in mixed.groups() if group is not None)
        text = f"{sign}{int(whole) * int(bottom) + int(top)}/{bottom}"
    text = functools.reduce(_join, text.split(), "")
    # A group with a comma is a point or a vector, whose numbers have an order; it stays.
    while _is_one_group(text) and len(list_parts(text[1:-1])) == 1:
        text = text[1:-1]
    return text


def _join(left: str, right: str) -> str:
    """Close a gap, but keep `3 4` from becoming 34, and `\\pi r` from becoming a new command."""
    two_numbers = left[-1:].isdigit() and right[0].isdigit()
    command = _COMMAND_AT_END.search(left) is not None and right[0].isalpha()
    return f"{left} {right}" if two_numbers or command else left + right


def _is_one_group(text: str, brackets: str = "()") -> bool:
    """Whether the first bracket closes with the last character."""
    if not text.startswith(brackets[0]):
        return False
    depth = 0
    for i, c in enumerate(text):
        depth += (c == brackets[0]) - (c == brackets[1])
        if depth == 0:
            return i == len(text) - 1
    return False


def list_parts(text: str) -> list[str]:
    """The text cut at commas that stand outside of all brackets."""
    depth, parts = 0, [""]
    for c in text:
        depth += (c in "([{") - (c in ")]}")
        if c == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += c
    return parts


def coordinates(value: str) -> list[str] | None:
    """The parts of `(a, b, ...)` or `[a, b, ...]`, as `Answer.value` spells them; else None."""
    if not (_is_one_group(value) or _is_one_group(value, "[]")):
        return None
    parts = list_parts(value[1:-1])
    return parts if len(parts) > 1 else None


def _rational(value: str) -> Fraction | None:
    match = _RATIONAL.fullmatch(value)
    if match is None:
        return None
    sign, top, bottom = match.group(1, 2, 3) if match[2] else match.group(4, 5, 6)
    denominator = Fraction(bottom or 1)
    if not denominator:
        return None
    number = Fraction(top) / denominator
    return -number if sign == "-" else number
