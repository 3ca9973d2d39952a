"""Timings and rollout metrics of a step."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from othink_jax import rl
from othink_jax.rewards import Grade
from othink_jax.types import Rollout


class Clock:
    """Wall-clock seconds of a step and of its parts."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """End the current part, record it under this name, and begin the next one."""
        now = time.perf_counter()
        self._seconds[f"seconds_{part}"] = now - self._last
        self._last = now

    def stop(self) -> dict[str, float]:
        """Seconds of each part and of the whole step."""
        return self._seconds | {"seconds_step": time.perf_counter() - self._start}


def rollout_record(
    rollout: Rollout, grades: Sequence[Grade], rewards: Float[np.ndarray, "B G"]
) -> dict[str, Any]:
    """One process's summary of its completions in one step: a JSON object to all-gather.

    Args:
      rollout: on the host.
      grades: grades of all completions, prompt by prompt.
      rewards: rewards of the same completions.
    """
    mask = np.asarray(rollout.mask)
    return {
        "rewards": rewards.tolist(),
        "accuracy": [grade.accuracy for grade in grades],
        "format": [grade.format for grade in grades],
        "ungradable": sum(grade.ungradable for grade in grades),
        "finished": np.asarray(rollout.finished).tolist(),
        "tokens": int(mask.sum()),
        "entropy": float(np.asarray(rollout.entropy, np.float64)[mask].sum()),  # sum over tokens
    }


def rollout_metrics(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Rollout metrics of one step over all processes, for its row of metrics.jsonl."""

    def every(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(record[name]) for record in records])

    def total(name: str) -> float:
        return sum(record[name] for record in records)

    rewards = every("rewards")
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "reward_accuracy": float(every("accuracy").mean()),
        "reward_format": float(every("format").mean()),
        "group_std": float(rewards.std(axis=1, ddof=1).mean()),
        "no_signal_share": float(rl.zero_variance_groups(rewards).mean()),
        "entropy": total("entropy") / total("tokens"),
        "truncated_share": float(1 - every("finished").mean()),
        "ungradable": total("ungradable"),
    }


def reason(
    kl: float, target: float, before: float, after: float, bounds: Sequence[float | None]
) -> str:
    """Explain why a controller raised, lowered or kept the KL coefficient after an update.

    Args:
      kl: measured KL, nats per token.
      target: KL target of the controller.
      before: coefficient of this update.
      after: coefficient of the next update.
      bounds: lowest and highest coefficient; None for an unknown bound.
    """
    side = "above" if kl > target else "below" if kl < target else "at"
    change = "rises to" if after > before else "falls to" if after < before else "stays at"
    words = f"KL {kl:.3g} {side} its target {target:g}: the weight {change} {after:.3g}"
    for name, bound in zip(("lowest", "highest"), bounds, strict=True):
        if bound is not None and math.isclose(after, bound, rel_tol=1e-6):  # `after` is float32
            return f"{words}, the {name} that is allowed"
    return words
