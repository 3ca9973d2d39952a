"""Groups in an answer: points, vectors, lists, matrices."""

import re

_COMMA = re.compile(",")
_MATRIX = re.compile(
    r"[\[(]?\\begin\{([pbB]?matrix|smallmatrix|array)\}(?:\{[clr| ]*\})?(.*)\\end\{\1\}[\])]?",
    re.DOTALL,
)


def cut(text: str, separator: re.Pattern[str]) -> list[str]:
    """Split the text at separators outside all brackets."""
    parts, depth, start, seen = [], 0, 0, 0
    for match in separator.finditer(text):
        between = text[seen : match.start()]
        depth += sum(c in "([{" for c in between) - sum(c in ")]}" for c in between)
        seen = match.start()
        if depth == 0:
            parts.append(text[start : match.start()])
            start = match.end()
    return [*parts, text[start:]]


def list_parts(text: str) -> list[str]:
    """Split the text at commas outside all brackets."""
    return cut(text, _COMMA)


def is_one_group(text: str, brackets: str = "()") -> bool:
    """Whether the first bracket closes with the last character."""
    if not text.startswith(brackets[0]):
        return False
    depth = 0
    for i, c in enumerate(text):
        depth += (c == brackets[0]) - (c == brackets[1])
        if depth == 0:
            return i == len(text) - 1
    return False


def ungrouped(text: str) -> str:
    """The text without round brackets around all of it.

    A group with a comma keeps its brackets: it is a point or a vector, whose numbers are ordered.
    """
    while is_one_group(text) and len(list_parts(text[1:-1])) == 1:
        text = text[1:-1].strip()
    return text


def coordinates(value: str) -> list[str] | None:
    """The parts of `(a, b, ...)` or `[a, b, ...]` in canonical spelling; otherwise None."""
    if not (is_one_group(value) or is_one_group(value, "[]")):
        return None
    parts = list_parts(value[1:-1])
    return parts if len(parts) > 1 else None


def matrix(value: str) -> list[list[str]] | None:
    r"""Rows of entries of a LaTeX matrix with any brackets; None for anything else.

    A determinant (`vmatrix`) is a number, not a matrix.
    """
    found = _MATRIX.fullmatch(value)
    if found is None or r"\begin" in found[2]:
        return None
    rows = found[2].removesuffix(r"\\").split(r"\\")
    return [row.split("&") for row in rows]
