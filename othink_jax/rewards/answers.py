"""Parsing of a final answer: choice letter, name, value and unit, or an equation.

Everything here runs in the training process on text that a model wrote, so each step takes time
linear in the text, and nothing is evaluated.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Hashable
from fractions import Fraction

from othink_jax.rewards.groups import cut, ungrouped
from othink_jax.rewards.names import bare, name_of, stated
from othink_jax.rewards.spelling import one_spelling
from othink_jax.rewards.values import is_arithmetic, one_line, read_value

# A final answer is a number or a short expression. Longer text is not an answer, and parsing it
# would only let a model waste time.
MAX_ANSWER_CHARS = 256

_CHOICE = re.compile(r"(?:\(([A-Ha-h])\)[.:]?|([A-Ha-h])(?:[.:)]|$))\s*")
_EQUALITY = re.compile("[=≈]")
_BETWEEN_EQUATIONS = re.compile(r"[,;]|\s(?:and|or)\s")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A parsed final answer."""

    choice: str = ""  # letter of a multiple choice in upper case, or empty
    value: str = ""  # rest without choice, name and unit, in canonical spelling; may be empty
    unit: str = ""  # canonical unit with its power (`cm^2`), or empty
    number: Fraction | None = None  # exact value if `value` is a plain number or fraction
    decimal: bool = False  # `value` was written with a decimal point, so it may be rounded
    names: frozenset[str] = frozenset()  # names of the value: `x` of `x = 5`
    steps: tuple[str, ...] = ()  # values of a chain of equalities before the last one
    equation: tuple[str, ...] = ()  # sides of an equation that is more than `name = value`
    system: tuple[str, ...] = ()  # several equations: `x = 1, y = 2`
    alternatives: bool = False  # only one equation of the system holds: `x = 1 or x = 2`

    @property
    def arithmetic(self) -> bool:
        """Whether the value consists of numbers, roots, pi and operators only."""
        return is_arithmetic(self.value)


def extract_answer(text: str, tag: str = "answer") -> str | None:
    """Content of the last `<answer>...</answer>`, stripped; None without such a pair.

    Args:
      text: the whole completion.
      tag: name of the tag.
    """
    span = _answer_span(text, tag)
    return None if span is None else text[slice(*span)].strip()


def retagged(text: str, old: str, new: str) -> str:
    """The text with the tags of its answer renamed; unchanged if it has no answer."""
    span = _answer_span(text, old)
    if span is None:
        return text
    first, last = span
    head, tail = text[: first - len(f"<{old}>")], text[last + len(f"</{old}>") :]
    return f"{head}<{new}>{text[first:last]}</{new}>{tail}"


def _answer_span(text: str, tag: str) -> tuple[int, int] | None:
    """Start and end of the content of the last answer in tags."""
    # Search from the end; a pattern would take quadratic time on many tags that are opened and
    # never closed.
    opened, closed = f"<{tag}>", f"</{tag}>"
    start = text.rfind(opened, 0, max(text.rfind(closed), 0))
    if start < 0:
        return None
    start += len(opened)
    return start, text.index(closed, start)


def ground_truth(value: object) -> str:
    """A ground truth as text, even if the data set holds a number.

    Raises:
      ValueError: it is neither a non-empty text nor a finite number.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() else repr(value)
    raise ValueError(f"must be a non-empty text or a finite number, got {value!r}")


def read_answer(text: str) -> Answer:
    """Parse the content of an answer tag, or a ground truth. Never raises; see `Answer`."""
    return Answer() if len(text) > MAX_ANSWER_CHARS else _read_answer(text)


def same_answer_key(text: str) -> Hashable | None:
    """Key of the content of an answer tag, equal for the same answer; None if it is empty.

    Answers are the same if choice, name, unit and value are: numbers by their value (`0.5` and
    `1/2`), words without regard to case, anything else in canonical spelling. Unlike the strict
    grader's equality, which lets a unit be left out and a decimal be rounded, this is transitive.
    """
    if not text.strip():
        return None
    answer = read_answer(text)
    if answer == Answer():  # nothing in it could be read
        return text.strip()
    if answer.number is not None:
        return dataclasses.replace(answer, value="", decimal=False)
    if not any(c.isdecimal() for c in answer.value):
        return dataclasses.replace(answer, value=answer.value.casefold())
    return answer


@functools.lru_cache(maxsize=4096)
def _read_answer(text: str) -> Answer:
    choice, text = _split_choice(stated(ungrouped(one_spelling(text))))
    parts = cut(text, _BETWEEN_EQUATIONS)
    if sum(_EQUALITY.search(part) is not None for part in parts) > 1:
        return Answer(
            choice=choice,
            value=one_line(text),
            system=tuple(part.strip() for part in parts),
            alternatives=re.search(r"\sor\s", text) is not None,
        )
    sides = [side.strip() for side in cut(text, _EQUALITY)]
    answer = _read_sides(sides)
    return dataclasses.replace(answer, choice=choice or answer.choice)


def _split_choice(text: str) -> tuple[str, str]:
    match = _CHOICE.match(text)
    if match is None:
        return "", text
    return (match[1] or match[2]).upper(), text[match.end() :]


def _read_sides(sides: list[str]) -> Answer:
    """Parse the sides of an equality: names, then values that must agree; the last one counts."""
    if len(sides) == 2 and name_of(sides[1]) is not None and read_value(bare(sides[0])).closed:
        sides = sides[::-1]  # `5 = x`
    names: list[str] = []
    for side in sides[:-1]:
        name = name_of(side)
        if name is None:
            break
        names.append(name)
    rest = [bare(side) for side in sides[len(names) :]]
    values = [read_value(side) for side in rest]
    named = frozenset(filter(None, names))
    equation: tuple[str, ...] = ()
    choice = ""
    if len(rest) == 1 and not named:
        if names:  # `the answer is (B) 50°`
            choice, text = _split_choice(rest[0])
            values = [read_value(text)]
    elif not all(value.closed for value in values):
        equation = tuple(one_line(side) for side in sides)
        # `y = 2x+1` says what y is; `x = 2x+1` does not.
        if len(sides) > 2 or not named or any(name in equation[1] for name in named):
            return Answer(value="=".join(equation), equation=equation)
    last = values[-1]
    return Answer(
        choice=choice,
        value=last.text,
        unit=last.unit,
        number=last.number,
        decimal=last.decimal,
        names=named,
        steps=tuple(rest[:-1]),
        equation=equation,
    )
