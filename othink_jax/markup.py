"""Escaping of untrusted text, so that HTML and Markdown show it as it is."""

import re
from typing import Any

from markupsafe import Markup

# Longer texts are cut: a page of a hundred megabytes is of no use to anyone.
_LONGEST = 20_000
# Characters that are invisible, or that act on the text around them: control characters except tab
# and line feed, marks and overrides of the writing direction, lone surrogates.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
# Characters that may have a meaning in Markdown. An underscore has none inside a word.
_MARKUP = re.compile(r"(?:(?<!\w)_|_(?!\w)|[^\w ,()/-])")


def visible(text: str) -> str:
    r"""Text with invisible characters escaped, such as \u202e; very long text is cut."""
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} [… {len(text) - _LONGEST} more characters]"
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def shown(value: Any) -> Any:
    """Output of a template: `Markup` of our own as it is, any other text made `visible`."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def in_markdown(text: str) -> str:
    """Text escaped for Markdown; it stays on one line, also in a cell of a table."""
    return _MARKUP.sub(_entity, visible(text))


def cell_in_markdown(text: str) -> str:
    """Text escaped for a cell of a table in Markdown; line breaks become `<br>`."""
    return "<br>".join(map(in_markdown, text.split("\n")))


def _entity(found: re.Match[str]) -> str:
    # A full stop is markup only in `www.`, which becomes a link.
    plain = found[0] == "." and not re.search(r"www$", found.string[: found.start()], re.IGNORECASE)
    return found[0] if plain else f"&#{ord(found[0])};"


def as_code(text: str) -> str:
    """Text as a code span, for a cell of a table in Markdown."""
    text = visible(text).replace("\n", "\\n").replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    # Spaces inside the fence keep backticks at the ends of the text apart from it.
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"
