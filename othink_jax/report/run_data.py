"""What a run directory holds, read for the report; whatever is missing is empty."""

import base64
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from othink_jax.errors import UserError

_SHOWN_COMPLETIONS = 4  # of each stored prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunData:
    """A run, as far as it is there."""

    name: str
    record: dict[str, Any]  # config.json
    metrics: list[dict[str, Any]]  # one row a step, in order
    samples: list[dict[str, Any]]  # rows of the first and of the last stored step
    evaluations: list[dict[str, Any]]  # contents of result.json, those before training first

    @property
    def config(self) -> dict[str, Any]:
        return self.record["config"]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSONL file; a last line that an interruption cut short is left out."""
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _image(path: Path) -> str | None:
    """A PNG as a data URI."""
    if not path.is_file():
        return None
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _samples(directory: Path) -> list[dict[str, Any]]:
    files = sorted(directory.glob("step_*.jsonl"))
    chosen = files if len(files) < 2 else [files[0], files[-1]]
    return [
        {
            **row,
            "pictures": [_image(directory / name) for name in row["images"]],
            "shown": row["completions"][:_SHOWN_COMPLETIONS],
        }
        for file in chosen
        for row in _rows(file)
    ]


def read_run(run: Path) -> RunData:
    """Read a run directory.

    Raises:
        UserError: it is not the directory of a run.
    """
    try:
        record = json.loads((run / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{run} is not a run directory: it has no readable config.json") from None
    if "kind" not in record or "config" not in record:
        raise UserError(f"{run} is not a run directory: its config.json is that of something else")
    by_step = {row["step"]: row for row in _rows(run / "metrics.jsonl")}
    results = [json.loads(path.read_text()) for path in run.glob("evaluations/*/result.json")]
    return RunData(
        name=run.resolve().name,
        record=record,
        metrics=[by_step[step] for step in sorted(by_step)],
        samples=_samples(run / "samples"),
        evaluations=sorted(
            results, key=lambda r: (r["task"] or r["dataset"], r["stage"] != "before")
        ),
    )
