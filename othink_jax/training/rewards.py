"""Rewards of a run: functions by their settings, weighted sums, figures by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from othink_jax import rl
from othink_jax.config import RewardConfig, name_of
from othink_jax.errors import UserError
from othink_jax.identity import source_digest
from othink_jax.rewards import GRADED, Grade, Reward, Scores, load, parts, weighted

_REASONS = 10  # further ones of a process and a step are only counted


def load_rewards(config: RewardConfig) -> list[Reward]:
    """The functions of the settings, without what graders measure.

    Raises:
      UserError: one cannot be loaded, see `rewards.load`.
    """
    try:
        return [load(path) for path in config.weights if path not in GRADED]
    except ValueError as error:
        raise UserError(str(error)) from error


def sources(rewards: Sequence[Reward]) -> dict[str, str]:
    """Digests of the source of functions, by name; see `identity.source_digest`."""
    return {reward.name: source_digest(reward.function) for reward in rewards}


def total(
    config: RewardConfig, grades: Sequence[Grade], scores: Sequence[Scores]
) -> Float[np.ndarray, " N"]:
    """The reward of each of N completions, float32: that of Eq. 1, or a weighted sum."""
    made = parts(map(name_of, config.weights), grades, scores)
    if config.functions:
        return weighted(config.weights.values(), made)
    return np.asarray(rl.total_reward(made["accuracy"], made["format"], alpha=config.format_weight))


def metric(name: str) -> str:
    """The name of a function's mean among the metrics of a run."""
    return f"reward_{name}"


def record(rewards: Sequence[Reward], scores: Sequence[Scores]) -> dict[str, Any]:
    """What a process tells the others of its functions in one step: a JSON object.

    Nothing where there are none.
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
    """Of each function the mean and the share of full values, and how many values failed.

    Args:
      rewards: the functions.
      records: of all processes, see `record`.
    """
    made: dict[str, float] = {}
    for reward in rewards:
        values = np.concatenate([each["values"][reward.name] for each in records])
        made[metric(reward.name)] = float(values.mean())
        made[f"{metric(reward.name)}_full_share"] = float((values >= reward.maximum).mean())
    if rewards:
        made["reward_failed"] = sum(each["failed"] for each in records)
    return made
