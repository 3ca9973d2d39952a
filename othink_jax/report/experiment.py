"""The page of an experiment, or of all in a folder: tables, figures, and what they show."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from othink_jax.errors import UserError
from othink_jax.files import read_json, write_atomically
from othink_jax.report.page import make_environment, style
from othink_jax.report.table import Table

_RECORD = "results.json"

# Entries that the page shows: of a record, of its tables, of its cases and of their answers.
_EXPERIMENT = {"name": str, "about": str, "tables": list, "cases": list}
_TABLE = {"title": str, "columns": list, "rows": list, "note": str}
_CASE = {"title": str, "image": str, "question": str, "ground_truth": str, "answers": list}
_ANSWER = {"method": str, "correct": bool, "text": str}


def experiments_in(directory: Path) -> list[Path]:
    """Directories with an experiment's results: `directory` itself, and those in it by name."""
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
    """Write one page of all experiments in `directory` and return its path.

    Args:
      directory: results of one experiment, or of several.

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
    write_atomically(out, page)
    return out


def _read(place: Path) -> dict[str, Any]:
    """A record with its tables, and with its figure and the images of its cases as data URIs."""
    source = place / _RECORD
    record = read_json(source)
    _check(record, _EXPERIMENT, str(source))
    title, _, about = record["about"].partition("\n")
    figure = place / "figure.svg"
    return record | {
        "title": title.rstrip("."),
        "about": about.strip(" \n"),
        "tables": [
            _table(values, f"{source}: table {number}")
            for number, values in enumerate(record["tables"], start=1)
        ],
        "figure": _uri(figure, "svg+xml") if figure.is_file() else None,
        "cases": [
            _case(case, f"{source}: case {number}", place)
            for number, case in enumerate(record["cases"], start=1)
        ],
    }


def _check(value: Any, entries: Mapping[str, type], where: str) -> None:
    """Raise UserError if `value` is no JSON object with these entries, each of its type."""
    if not isinstance(value, dict):
        raise UserError(f"{where} is no JSON object")
    absent = [name for name in entries if name not in value]
    if absent:
        raise UserError(f"{where} lacks {', '.join(absent)}")
    for name, kind in entries.items():
        if not isinstance(value[name], kind):
            found = type(value[name]).__name__
            raise UserError(f"{where}: {name} must be a {kind.__name__}, got {found}")


def _table(values: Any, where: str) -> Table:
    _check(values, _TABLE, where)
    for line in (values["columns"], *values["rows"]):
        if not isinstance(line, list) or not all(isinstance(cell, str) for cell in line):
            raise UserError(f"{where} has a line that is no list of texts: {line}")
    try:
        return Table(**{name: values[name] for name in _TABLE})
    except ValueError as error:
        raise UserError(f"{where} cannot be read: {error}") from error


def _case(case: Any, where: str, place: Path) -> dict[str, Any]:
    """A case with its image, read from `place`, as a data URI."""
    _check(case, _CASE, where)
    for answer in case["answers"]:
        _check(answer, _ANSWER, f"{where}, an answer")
    # `.name`: a name in a record must not point outside of the record's folder.
    return case | {"image": _uri(place / Path(case["image"]).name, "png")}


def _uri(image: Path, kind: str) -> Markup:
    try:
        content = base64.b64encode(image.read_bytes()).decode()
    except (OSError, ValueError):  # also for a name that no file can have
        raise UserError(f"{image} is missing") from None
    return Markup(f"data:image/{kind};base64,{content}")
