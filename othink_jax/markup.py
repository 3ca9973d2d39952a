"""Texts from outside, as HTML and Markdown show them: as they are, and as nothing else."""

import re
from typing import Any

from markupsafe import Markup

# Longer ones are cut: a page of a hundred megabytes is of no use to anyone.
_LONGEST = 20_000
# What no reader sees, and what acts on the text around it: control characters but tab and line
# feed, marks and overrides of the direction of writing, halves of surrogate pairs.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# All that has a meaning in Markdown stands outside of these: an underscore has none inside a word.
_MARKUP = re.compile(r"(?:(?<!\w)_|_(?!\w)|[^\w ,()/-])")


def visible(text: str) -> str:
    r"""A text whose unseen characters are escapes such as \u202e, cut where it is very long."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} [… {len(text) - _LONGEST} more characters]"
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown(value: Any) -> Any:
    """What a template puts out: markup of our own as it is, any other text `visible`."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def in_markdown(text: str) -> str:
    """A text that Markdown shows and does not follow; on one line, also in a cell of a table."""
    return _MARKUP.sub(_entity, visible(text))


def cell_in_markdown(text: str) -> str:
    """A text for a cell of a table in Markdown, whose lines stay lines."""
    return "<br>".join(map(in_markdown, text.split("\n")))


def _entity(found: re.Match[str]) -> str:
    # A full stop is no markup but in `www.`, of which a link would be made.
    plain = found[0] == "." and not re.search(r"www$", found.string[: found.start()], re.IGNORECASE)
    return found[0] if plain else f"&#{ord(found[0])};"


def as_code(text: str) -> str:
    """A text as a span of code, for a cell of a table in Markdown."""
    text = visible(text).replace("\n", "\\n").replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    # Spaces inside the fence keep backticks at the ends of the text apart from it.
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"
