"""The page of an experiment, or of all of a folder: tables, figures, and what they are to show."""

import base64
import json
from pathlib import Path
from typing import Any

from markupsafe import Markup

from othink_jax.errors import UserError
from othink_jax.report.page import make_environment, style
from othink_jax.report.table import Table

_RECORD = "results.json"


def experiments_in(directory: Path) -> list[Path]:
    """The directory itself, or those in it, where an experiment left its results; by name."""
    places = [directory, *sorted(path for path in directory.glob("*") if path.is_dir())]
    return [place for place in places if _is_experiment(place / _RECORD)]


def _is_experiment(record: Path) -> bool:
    if not record.is_file():
        return False
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{record} is not a JSON file: {error}") from error
    return isinstance(content, dict) and content.get("kind") == "experiment"


def write_experiment_report(directory: Path) -> Path:
    """Write one page of all experiments in `directory` and return where it lies.

    Args:
      directory: of one experiment's results, or of several.

    Raises:
      UserError: there is none, or its results cannot be used.
    """
    found = experiments_in(directory)
    if not found:
        raise UserError(f"{directory} holds no results of experiments")
    template = make_environment().get_template("experiment.html.jinja")
    page = template.render(
        title=directory.resolve().name,
        experiments=[_read(place) for place in found],
        style=style(),
    )
    out = directory / "report.html"
    out.write_text(page, encoding="utf-8")
    return out


def _read(place: Path) -> dict[str, Any]:
    """A record with its tables, and with its figure and the images of its cases as data URIs."""
    record = json.loads((place / _RECORD).read_text(encoding="utf-8"))
    absent = [name for name in ("name", "about", "tables") if name not in record]
    if absent:
        raise UserError(f"{place / _RECORD} lacks {', '.join(absent)}")
    title, _, about = record["about"].partition("\n")
    figure = place / "figure.svg"
    return record | {
        "title": title.rstrip("."),
        "about": about.strip(),
        "tables": [_table(place / _RECORD, values) for values in record["tables"]],
        "figure": _uri(figure, "svg+xml") if figure.is_file() else None,
        "cases": [
            case | {"image": _uri(place / case["image"], "png")} for case in record.get("cases", [])
        ],
    }


def _table(source: Path, values: dict[str, Any]) -> Table:
    try:
        return Table(**values)
    except TypeError as error:
        raise UserError(f"{source} has a table that cannot be read: {error}") from error


def _uri(image: Path, kind: str) -> Markup:
    if not image.is_file():
        raise UserError(f"{image} is missing")
    return Markup(f"data:image/{kind};base64,{base64.b64encode(image.read_bytes()).decode()}")
