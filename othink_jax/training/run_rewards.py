"""Rewards of a run: reward functions from its settings, weighted sums, metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from othink_jax import rl
from othink_jax.config import RewardConfig, name_of
from othink_jax.errors import UserError
from othink_jax.identity import source_digest
from othink_jax.rewards import GRADED, Grade, Reward, Scores, load, parts, weighted

_REASONS = 10  # error messages listed per process and step; further ones are only counted


def load_rewards(config: RewardConfig) -> list[Reward]:
    """Load the reward functions of the settings, without those that graders measure.

    Raises:
      UserError: a function cannot be loaded, see `rewards.load`.
    """
    try:
        return [load(path) for path in config.weights if path not in GRADED]
    except ValueError as error:
        raise UserError(str(error)) from error


def sources(rewards: Sequence[Reward]) -> dict[str, str]:
    """Digests of the source code of functions, by name; see `identity.source_digest`."""
    return {reward.name: source_digest(reward.function) for reward in rewards}


def total(
    config: RewardConfig, grades: Sequence[Grade], scores: Sequence[Scores]
) -> Float[np.ndarray, " N"]:
    """Rewards of N completions, float32: by Eq. 1, or as a weighted sum."""
    made = parts(map(name_of, config.weights), grades, scores)
    if config.functions:
        return weighted(config.weights.values(), made)
    return np.asarray(rl.total_reward(made["accuracy"], made["format"], alpha=config.format_weight))


def metric(name: str) -> str:
    """Metric name of a reward function's mean."""
    return f"reward_{name}"


def record(rewards: Sequence[Reward], scores: Sequence[Scores]) -> dict[str, Any]:
    """One process's summary of its reward functions in one step: a JSON object to all-gather.

    It is empty if there are no functions.
    """
    if not rewards:
        return {}
    reasons = (
        f"{name}: {error}" for score in scores for name, error in sorted(score.errors.items())
    )
    return {
        "values": {
            reward.name: [score.values[reward.name] for score in scores] for reward in rewards
        },
        "failed": sum(len(score.errors) for score in scores),
        "reasons": list(dict.fromkeys(reasons))[:_REASONS],
    }


def figures(rewards: Sequence[Reward], records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Metrics: mean and share of full values of each function, and the number of failed values.

    Args:
      rewards: reward functions.
      records: one per process, see `record`.
    """
    made: dict[str, float] = {}
    for reward in rewards:
        values = np.concatenate([each["values"][reward.name] for each in records])
        made[metric(reward.name)] = float(values.mean())
        made[f"{metric(reward.name)}_full_share"] = float((values >= reward.maximum).mean())
    if rewards:
        made["reward_failed"] = sum(each["failed"] for each in records)
    return made
