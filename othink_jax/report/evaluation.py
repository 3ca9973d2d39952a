"""An evaluation as lines and tables for the terminal."""

from collections.abc import Mapping
from typing import Any

from othink_jax.errors import quoted
from othink_jax.report.table import Table


def accuracy_lines(result: Mapping[str, Any]) -> list[str]:
    """The accuracy; with several samples per question, also pass@k and majority vote.

    Args:
      result: contents of result.json.
    """
    lines = [
        f"accuracy {result['accuracy']:.1%} on {result['examples']} (95% interval"
        f" {_between(result)}, n = {result['n']}, {result['grader']} grader,"
        f" {result['decoding']})"
    ]
    if "samples" not in result:
        return lines
    lines += [f"pass@{k} {_share(one)}" for k, one in result["pass_at"].items()]
    voted = result["majority"]
    without = f", {voted['without']} without an answer" if voted["without"] else ""
    return [*lines, f"majority of {result['samples']} {_share(voted)}{without}"]


def reward_lines(result: Mapping[str, Any]) -> list[str]:
    """A line for each reward function, and one for their weighted sum.

    Args:
      result: contents of result.json; no lines if it has no `rewards`.
    """
    lines = []
    for name, one in result.get("rewards", {}).items():
        between = "" if one["interval"] is None else " (95% interval {:.3g} to {:.3g})"
        failed = f", failed on {one['failed']}" if one["failed"] else ""
        lines.append(
            f"reward {name} {one['mean']:.3g}{between.format(*one['interval'] or ())},"
            f" full in {one['full_share']:.1%}{failed}"
        )
    return lines


def group_tables(result: Mapping[str, Any]) -> list[Table]:
    """The accuracy by the values of each column of `--by`.

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


def comparison_tables(comparison: Mapping[str, Any]) -> list[Table]:
    """Tables of the models, and of the tests between them.

    Args:
      comparison: contents of comparison.json.
    """
    models = Table(
        title=f"{comparison['examples']}, n = {comparison['n']}",
        columns=("model", "accuracy", "95% interval"),
        rows=[
            (name, f"{one['accuracy']:.1%}", _between(one))
            for name, one in comparison["models"].items()
        ],
    )
    pairs = Table(
        title="differences",
        columns=("second - first", "difference", "95% interval", "better on", "p", "p (Holm)"),
        rows=[
            (
                f"{pair['second']} - {pair['first']}",
                f"{pair['difference']:+.1%}",
                "-" if pair["interval"] is None else _between(pair),
                f"{pair['second_better']} : {pair['first_better']}",
                f"{pair['p']:.3g}",
                f"{pair['p_holm']:.3g}",
            )
            for pair in comparison["pairs"]
        ],
        note="p: McNemar's test on the same questions; Holm: corrected for the number of pairs",
    )
    return [models, pairs]


def _share(one: Mapping[str, Any]) -> str:
    return f"{one['mean']:.1%} (95% interval {_between(one)})"


def _between(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{low:.1%} to {high:.1%}"
