"""Reading a run directory for its page: nothing here changes a run.

A run may be unfinished, killed in the middle of a line, or without evaluations or samples. Missing
or unreadable parts become notes on the page; only a directory that is no run at all is an error.
"""

import base64
import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from othink_jax.config import RunRecord, read_run
from othink_jax.files import text_of
from othink_jax.report.checks import check_record, is_result, is_sample, is_step, numbers_of
from othink_jax.report.method import describe
from othink_jax.report.standing import Standing, is_running, standing_of

# Image types that `write_samples` of a run writes; the page shows no others.
_IMAGE_TYPES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleStep:
    """Completions stored at one step, one row per prompt; see `RunDirectory.write_samples`."""

    step: int
    rows: list[dict[str, Any]]
    images: dict[str, Markup | None]  # file name -> data URI; None if it cannot be shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """Contents of a run directory, as far as the run has got."""

    path: Path
    record: RunRecord  # config.json
    standing: Standing
    metrics: list[dict[str, Any]]  # one row per step, in order
    evaluations: list[dict[str, Any]]  # contents of each result.json
    samples: list[SampleStep]  # the earliest and the latest stored step; one if there is one only
    notes: list[str]  # what is missing or could not be read, a sentence each

    @property
    def seconds(self) -> float:
        """Wall time of the recorded steps. `elapsed` starts again at 0 when a run is resumed."""
        total = last = 0.0
        for row in self.metrics:
            elapsed = row.get("elapsed", last)
            if not math.isfinite(elapsed):
                continue
            total += elapsed if elapsed < last else elapsed - last
            last = elapsed
        return total


def _json(text: str | bytes) -> Any:
    """The value of a JSON text; None if it is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _read_rows(
    path: Path, usable: Callable[[dict[str, Any]], bool], *, grows: bool = False
) -> tuple[list[dict[str, Any]], int]:
    """The usable objects of a JSONL file, and the number of other lines.

    If the file grows, an incomplete last line is not counted.
    """
    rows, unreadable = [], 0
    with text_of(path, errors="replace") as lines:
        # Not splitlines(): it also cuts at characters that may stand inside a JSON string.
        for line in lines:
            row = _json(line)
            if isinstance(row, dict) and usable(row):
                rows.append(row)
            elif not grows or line.endswith("\n"):
                unreadable += 1
    return rows, unreadable


def _read_metrics(run: Path, notes: list[str], *, grows: bool) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    rows, unreadable = _read_rows(path, is_step, grows=grows) if path.is_file() else ([], 0)
    if not rows:
        notes.append("No step has been recorded yet, so there are no curves.")
    if unreadable:
        lines = "line" if unreadable == 1 else "lines"
        notes.append(
            f"{unreadable} unreadable {lines} of metrics.jsonl left out: the run was probably"
            " killed while writing."
        )
    return [numbers_of(row) for row in rows]


def _read_evaluations(run: Path, notes: list[str]) -> list[dict[str, Any]]:
    results = []
    for path in sorted((run / "evaluations").glob("*/result.json")):
        result = _json(path.read_bytes())
        if not is_result(result):
            notes.append(f"evaluations/{path.parent.name}/result.json is unreadable and left out.")
            continue
        if result["stage"] in ("before", "after"):
            results.append(result)
        else:
            # It is unknown which model it measured; a guess could be a false claim.
            notes.append(
                f"evaluations/{path.parent.name} is not shown: it was made without --stage before"
                " or --stage after."
            )
    if not results:
        notes.append("There is no evaluation to show, so there is no accuracy before and after.")
    return results


def _data_uri(path: Path) -> Markup | None:
    media_type = _IMAGE_TYPES.get(path.suffix.lower())
    try:
        if media_type is None or not path.is_file():
            return None
        content = base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:  # also for a name that is too long
        return None
    return Markup(f"data:{media_type};base64,{content}")


def _read_samples(run: Path, notes: list[str]) -> list[SampleStep]:
    """The earliest and the latest stored step that can be read."""
    folder, steps = run / "samples", []
    files = sorted(folder.glob("step_*.jsonl"))
    for path in files:
        rows, unreadable = _read_rows(path, is_sample)
        if unreadable:
            notes.append(f"{unreadable} unreadable line(s) of samples/{path.name} left out.")
        if rows:
            steps.append(rows)
    if not steps:
        notes.append("No sample completions are stored.")
    ends = steps[:1] + steps[1:][-1:]
    return [
        SampleStep(
            step=rows[0]["step"],
            rows=rows,
            # `.name`: a name in a file must not point outside of the folder.
            images={
                name: _data_uri(folder / Path(name).name) for row in rows for name in row["images"]
            },
        )
        for rows in ends
    ]


def read_run_data(run: Path) -> RunData:
    """Read a run directory; raises UserError if `run` is none."""
    record = read_run(run)
    check_record(record, run / "config.json")
    notes: list[str] = []
    working = is_running(run)
    metrics = _read_metrics(run, notes, grows=working is not False)
    last = metrics[-1]["step"] if metrics else 0
    notes += [_change_in_words(change) for change in record.changes]
    return RunData(
        path=run,
        record=record,
        standing=standing_of(run, record, step=last, is_running=working),
        metrics=metrics,
        evaluations=_read_evaluations(run, notes),
        samples=_read_samples(run, notes) if describe(record.config).samples else [],
        notes=notes,
    )


def _change_in_words(change: Mapping[str, Any]) -> str:
    settings = (f"{name} from {old} to {new}" for name, (old, new) in change["settings"].items())
    return f"After step {change['after_step']} the run went on with {', '.join(settings)}."
