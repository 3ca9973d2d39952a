"""Checks that a run's files can be shown: they may be damaged, or written by another program."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from othink_jax.config import RunRecord
from othink_jax.errors import UserError

# Integers beyond it are no counts, and floating point cannot tell them apart.
_LARGEST = 2**53

_OPTIONAL = (str, type(None))
# Required entries of result.json: without them there is nothing to show.
_RESULT: dict[str, Any] = {
    "stage": _OPTIONAL,
    "task": _OPTIONAL,
    "dataset": _OPTIONAL,
    "examples": str,
    "n": int,
    "accuracy": float,
    "interval": list,
    "grader": str,
    "decoding": str,
    "config": dict,
}
# Required entries of a line of samples/*.jsonl, and of each of its completions.
_SAMPLE: dict[str, Any] = {
    "step": int,
    "id": str,
    "question": str,
    "ground_truth": str,
    "images": list,
    "completions": list,
}
_COMPLETION: dict[str, Any] = {
    "text": str,
    "reward": float,
    "accuracy": float,
    "format": float,
    "length": int,
    "finished": bool,
}


def is_step(row: Mapping[str, Any]) -> bool:
    """Whether this is a row of metrics.jsonl."""
    return _is(row.get("step"), int) and row["step"] >= 0


def numbers_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The numeric entries of a row of metrics.jsonl."""
    return {name: value for name, value in row.items() if _is(value, float)}


def is_result(value: Any) -> bool:
    """Whether this is the content of an evaluation's `result.json`."""
    return (
        _has(value, _RESULT)
        and len(value["interval"]) == 2
        and all(_is_share(share) for share in (value["accuracy"], *value["interval"]))
        and isinstance(value["config"].get("sampling", {}), dict)
    )


def is_sample(row: Any) -> bool:
    """Whether this is a row of a file in `samples/`."""
    return (
        _has(row, _SAMPLE)
        and all(isinstance(name, str) for name in row["images"])
        and all(_is_completion(completion) for completion in row["completions"])
    )


def _is_completion(value: Any) -> bool:
    return _has(value, _COMPLETION) and isinstance(value.get("rewards", {}), dict)


def check_record(record: RunRecord, path: Path) -> None:
    """Raise UserError if an entry of a run's config.json that a page shows has a wrong type."""
    kinds: dict[str, Any] = {"total_steps": int, "started": str, "device": str, "versions": dict}
    for name, kind in kinds.items():
        if not _is(getattr(record, name), kind):
            raise UserError(f"{path}: {name} must be a {kind.__name__}")
    if not all(_is_change(change) for change in record.changes):
        raise UserError(f"{path}: changes must say after which step which settings were changed")


def _is_change(value: Any) -> bool:
    return _has(value, {"after_step": int, "settings": dict}) and all(
        isinstance(pair, list) and len(pair) == 2 for pair in value["settings"].values()
    )


def _has(value: Any, entries: Mapping[str, Any]) -> bool:
    return isinstance(value, dict) and all(
        name in value and _is(value[name], kind) for name, kind in entries.items()
    )


def _is(value: Any, kind: Any) -> bool:
    """Like isinstance, but an int is also a float, a bool is neither, and ints are bounded."""
    if kind in (int, float):
        numbers = (int,) if kind is int else (int, float)
        if not isinstance(value, numbers) or isinstance(value, bool):
            return False
        return isinstance(value, float) or abs(value) < _LARGEST
    return isinstance(value, kind)


def _is_share(value: Any) -> bool:
    return _is(value, float) and math.isfinite(value) and 0 <= value <= 1
