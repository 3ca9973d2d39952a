"""An evaluation in lines for the terminal."""

from collections.abc import Mapping
from typing import Any


def accuracy_lines(result: Mapping[str, Any]) -> list[str]:
    """The accuracy, and of several samples a question pass@k and majority vote.

    Args:
      result: contents of result.json.
    """
    samples = result.get("samples", 1)
    how = result["decoding"] + (f", {samples} samples a question" if samples > 1 else "")
    low, high = result["interval"]
    lines = [
        f"accuracy {result['accuracy']:.1%} on {result['examples']} (95% interval {low:.1%} to"
        f" {high:.1%}, n = {result['n']}, {result['grader']} grader, {how})"
    ]
    if samples == 1:
        return lines
    lines += [f"pass@{k} {_share(one)}" for k, one in result["pass_at"].items()]
    voted = result["majority"]
    without = f", {voted['without']} without an answer" if voted["without"] else ""
    return [*lines, f"majority of {samples} {_share(voted)}{without}"]


def _share(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{one['mean']:.1%} (95% interval {low:.1%} to {high:.1%})"
