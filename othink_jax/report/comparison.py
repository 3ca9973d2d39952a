"""Evaluations before and after training, side by side where they can be compared."""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import Any

from othink_jax.config import DataConfig, EvaluateConfig, asked_settings, from_dict, to_dict
from othink_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One test set, graded and decoded in one way."""

    test: str  # task or data set, and split
    relation: str  # to the training data of the run
    before: dict[str, Any] | None  # contents of result.json
    after: dict[str, Any] | None

    @property
    def shown(self) -> dict[str, Any]:
        """Either of the evaluations, for entries that both have in common."""
        return self.after or self.before or {}

    @property
    def change(self) -> tuple[float, float, float] | None:
        """Accuracy after minus before, and the 95% interval of the difference."""
        if self.before is None or self.after is None:
            return None
        return difference(self.before, self.after)


def difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[float, float, float]:
    """Difference of two accuracies, with its interval by Newcombe's hybrid score method.

    It combines the two Wilson intervals (Newcombe 1998, method 10) and takes the samples as
    independent. Both sides answered the same questions, so the true interval is usually narrower.
    """
    p0, (low0, high0) = before["accuracy"], before["interval"]
    p1, (low1, high1) = after["accuracy"], after["interval"]
    change = p1 - p0
    return (
        change,
        change - math.hypot(p1 - low1, high0 - p0),
        change + math.hypot(high1 - p1, p0 - low0),
    )


def _relation(result: dict[str, Any], trained: DataConfig) -> str:
    if result["task"] and trained.task:
        return "same task" if result["task"] == trained.task else "cross task"
    if result["dataset"] and result["dataset"] == trained.dataset_name:
        return "same data set"
    return "other data"


def _conditions(result: dict[str, Any]) -> str:
    """Settings that two evaluations must share for their accuracies to be compared."""
    config = _as_read_today(result["config"])
    asked = asked_settings(config, greedy=result["decoding"] == "greedy")
    return json.dumps([asked, result["n"]], sort_keys=True)


def _as_read_today(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of an evaluation by an earlier version, with defaults for the missing ones."""
    try:
        return to_dict(from_dict(EvaluateConfig, config))
    except (UserError, TypeError, AttributeError):
        return config


def compare(results: Sequence[dict[str, Any]], trained: DataConfig) -> list[Comparison]:
    """Pair evaluations by stage; the task that was trained on comes first.

    Args:
      results: contents of result.json files, each of stage `before` or `after`.
      trained: the data that the run was trained on.
    """
    groups: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for result in results:
        group = groups.setdefault(_conditions(result), {"before": [], "after": []})
        group[result["stage"]].append(result)
    made, unmeasured = [], [None]
    for group in groups.values():
        shown = (group["after"] + group["before"])[0]
        # A stage measured twice (two checkpoints, say) gives two lines: nothing is left out.
        for before in group["before"] or unmeasured:
            for after in group["after"] or unmeasured:
                made.append(
                    Comparison(
                        test=shown["examples"],
                        relation=_relation(shown, trained),
                        before=before,
                        after=after,
                    )
                )
    return sorted(made, key=lambda one: (not one.relation.startswith("same"), one.test))
