"""An evaluation in lines for the terminal."""

from collections.abc import Mapping
from typing import Any

from othink_jax.errors import quoted
from othink_jax.report.table import Table


def accuracy_lines(result: Mapping[str, Any]) -> list[str]:
    """The accuracy, and of several samples a question pass@k and majority vote.

    Args:
      result: contents of result.json.
    """
    samples = result.get("samples", 1)
    how = result["decoding"] + (f", {samples} samples a question" if samples > 1 else "")
    lines = [
        f"accuracy {result['accuracy']:.1%} on {result['examples']} (95% interval"
        f" {_between(result)}, n = {result['n']}, {result['grader']} grader, {how})"
    ]
    if samples == 1:
        return lines
    lines += [f"pass@{k} {_share(one)}" for k, one in result["pass_at"].items()]
    voted = result["majority"]
    without = f", {voted['without']} without an answer" if voted["without"] else ""
    return [*lines, f"majority of {samples} {_share(voted)}{without}"]


def group_tables(result: Mapping[str, Any]) -> list[Table]:
    """The accuracy by the values of each column that was asked for.

    Args:
      result: contents of result.json.
    """
    return [
        Table(
            title=f"by {quoted(column)}",
            columns=(quoted(column), "accuracy", "95% interval", "n"),
            rows=[
                (quoted(value, 40), f"{one['accuracy']:.1%}", _between(one), str(one["n"]))
                for value, one in values.items()
            ],
        )
        for column, values in result.get("by", {}).items()
    ]


def _share(one: Mapping[str, Any]) -> str:
    return f"{one['mean']:.1%} (95% interval {_between(one)})"


def _between(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{low:.1%} to {high:.1%}"
