"""Accuracy of an evaluation, grouped by the values of a column of its rows."""

import itertools
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from othink_jax.data.sources import Source
from othink_jax.errors import UserError, quoted
from othink_jax.statistics import share_interval

WITHOUT = "(none)"  # the value of a row without the column
_MOST = 50  # maximum number of values of a column; more do not make a table


def read_groups(source: Source, by: Sequence[str]) -> dict[str, list[str]]:
    """Values of each column, one per question, in the order of the source.

    Values other than strings are written in JSON.

    Raises:
      UserError: no row has such a column, or it has more than 50 values.
    """
    if not by:
        return {}
    rows = [source.further(number) for number in range(len(source))]
    known = dict.fromkeys(itertools.chain.from_iterable(rows))
    groups = {}
    for column in by:
        if column not in known:
            there = f"they have {quoted(', '.join(known))}" if known else "they have no columns"
            raise UserError(f"--by {column}: the questions have no such column; {there}")
        groups[column] = [_text(row.get(column)) for row in rows]
        count = len(set(groups[column]))
        if count > _MOST:
            raise UserError(
                f"--by {column}: the column has {count} values, and accuracies are given of at most"
                f" {_MOST}"
            )
    return groups


def _text(value: Any) -> str:
    if value is None:
        return WITHOUT
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def over_groups(
    groups: Mapping[str, Sequence[str]], shares: Mapping[int, float]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Accuracy by column and value.

    Args:
      groups: see `read_groups`.
      shares: by the number of a question, the share of its answers that are right.

    Returns:
      By column and value, in ascending order, `n` questions, their `accuracy` and its 95%
      `interval`. Rows without the column come last, as `(none)`.
    """
    made = {}
    for column, values in groups.items():
        found: dict[str, list[float]] = {value: [] for value in sorted(set(values), key=_rank)}
        for number, share in shares.items():
            found[values[number]].append(share)
        made[column] = {
            value: {
                "n": len(held),
                "accuracy": statistics.fmean(held),
                "interval": list(share_interval(held)),
            }
            for value, held in found.items()
        }
    return made


def _rank(value: str) -> tuple[bool, float, str]:
    """Sort key: numbers by their size, then strings, then rows without the column."""
    try:
        number = float(value)
    except ValueError:
        number = math.inf
    return value == WITHOUT, math.inf if math.isnan(number) else number, value
