"""A table of results, as text for the terminal, as CSV and as HTML."""

import csv
import dataclasses
import html
import io
from collections.abc import Sequence

from markupsafe import Markup

from othink_jax.markup import visible


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """A table of text cells; the first column names the row.

    Raises:
      ValueError: a row has more or fewer cells than there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""  # explanation for the reader

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(
                    f"{self.title}: a row of {len(row)} cells under {len(self.columns)} columns"
                )

    def text(self) -> str:
        """Text in aligned columns."""
        lines = [self.columns, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.columns))]
        made = [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in lines
        ]
        rule = "  ".join("-" * width for width in widths)
        note = [self.note] if self.note else []
        return "\n".join([self.title, made[0], rule, *made[1:], *note]) + "\n"

    def csv(self) -> str:
        """Comma-separated, with a line of column names."""
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([self.columns, *self.rows])
        return buffer.getvalue()

    def html(self) -> Markup:
        """A table element, and a paragraph for the note."""
        head = "".join(f'<th scope="col">{_escaped(name)}</th>' for name in self.columns)
        body = "".join(
            "<tr>"
            + f'<th scope="row">{_escaped(row[0])}</th>'
            + "".join(f"<td>{_escaped(cell)}</td>" for cell in row[1:])
            + "</tr>\n"
            for row in self.rows
        )
        note = f'<p class="fine">{_escaped(self.note)}</p>\n' if self.note else ""
        return Markup(
            f"<table>\n<caption>{_escaped(self.title)}</caption>\n"
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n{note}"
        )


def _escaped(text: str) -> str:
    return html.escape(visible(text))
