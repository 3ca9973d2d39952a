"""Rewards of completions as weighted sums of grades and of values of reward functions."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from othink_jax.rewards.functions import GRADED, Reward, Scores, reward_name
from othink_jax.rewards.verdict import Grade


def parts(
    names: Iterable[str], grades: Sequence[Grade], scores: Sequence[Scores]
) -> dict[str, Float[np.ndarray, " N"]]:
    """Terms of the rewards by name; float32[N] each.

    Args:
      names: `accuracy`, `format`, and names of reward functions.
      grades: of N completions.
      scores: of the same completions.
    """
    return {
        name: np.array(
            [getattr(grade, name) for grade in grades]
            if name in GRADED
            else [score.values[name] for score in scores],
            np.float32,
        )
        for name in names
    }


def weighted(
    weights: Iterable[float], values: Mapping[str, Float[np.ndarray, " N"]]
) -> Float[np.ndarray, " N"]:
    """The weighted sum of values, float32[N]; `weights` are in the order of `values`."""
    terms = [
        np.float32(weight) * each for weight, each in zip(weights, values.values(), strict=True)
    ]
    return np.asarray(np.sum(terms, axis=0, dtype=np.float32))


def measured(
    weights: Mapping[str, float],
    rewards: Sequence[Reward],
    grades: Sequence[Grade],
    scores: Sequence[Scores],
) -> dict[str, dict[str, Any]]:
    """Terms of the weighted sum over many completions, and `total`, the sum itself.

    Args:
      weights: by name or path, as given.
      rewards: the functions among them.
      grades, scores: of the completions.

    Returns:
      Per name: `values` (a list of N floats), `maximum` (the full value) and `failed` (the number
      of values that are 0 because a function failed).
    """
    names = [reward_name(path) for path in weights]
    found = parts(names, grades, scores)
    full = dict.fromkeys(GRADED, 1.0) | {reward.name: reward.maximum for reward in rewards}
    maxima = {name: np.array([full[name]], np.float32) for name in names}
    made = {
        name: {
            "values": found[name].tolist(),
            "maximum": maxima[name].item(),
            "failed": sum(name in score.errors for score in scores),
        }
        for name in names
    }
    total = {
        "values": weighted(weights.values(), found).tolist(),
        "maximum": weighted(weights.values(), maxima).item(),
        "failed": sum(bool(score.errors) for score in scores),
    }
    return made | {"total": total}
