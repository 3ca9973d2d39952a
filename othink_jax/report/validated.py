"""The best validation of a run, in words."""

from collections.abc import Mapping, Sequence
from typing import Any

from othink_jax.config import TrainingConfig


def best_validation(config: TrainingConfig, rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The best validation among rows of metrics, the first of equals; None if there is none."""
    validated = [row for row in rows if "validation_accuracy" in row]
    if not validated:
        return None
    best = max(validated, key=lambda row: row[config.criterion])
    by_reward = config.criterion == "validation_reward"
    reward = f", reward {best['validation_reward']:.3g}" if by_reward else ""
    return (
        f"accuracy {100 * best['validation_accuracy']:.1f}% (95% interval"
        f" {100 * best['validation_low']:.1f}% to {100 * best['validation_high']:.1f}%,"
        f" n = {best['validation_count']}){reward}, after step {best['step']}"
    )
