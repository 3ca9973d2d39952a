"""What a step leaves behind: figures of its rollout, and completions to read."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from othink_jax.data.example import Example
from othink_jax.rewards import Grade
from othink_jax.types import Rollout

_SAMPLED_PROMPTS = 2  # prompts whose completions are stored at a time


def rollout_metrics(
    rollout: Rollout, grades: Sequence[Grade], rewards: Float[np.ndarray, "B G"]
) -> dict[str, float]:
    """Figures of one step's completions, for its row of metrics.jsonl.

    Args:
        rollout: on the host.
        grades: of all completions, prompt after prompt.
        rewards: of Eq. 1.
    """
    mask = np.asarray(rollout.mask)
    # Compared, not inferred from a spread of 0: rounding leaves equal rewards a spread of 1e-8.
    no_signal = (rewards == rewards[:, :1]).all(axis=1)
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "reward_accuracy": float(np.mean([grade.accuracy for grade in grades])),
        "reward_format": float(np.mean([grade.format for grade in grades])),
        "group_std": float(rewards.std(axis=1, ddof=1).mean()),
        "no_signal_share": float(no_signal.mean()),
        "entropy": float(np.asarray(rollout.entropy)[mask].mean()),
        "truncated_share": float(1 - np.asarray(rollout.finished).mean()),
        "ungradable": sum(grade.ungradable for grade in grades),
    }


def sample_rows(
    step: int,
    examples: Sequence[Example],
    texts: Sequence[str],
    grades: Sequence[Grade],
    rewards: Float[np.ndarray, "B G"],
    rollout: Rollout,
) -> list[dict[str, Any]]:
    """Completions of the first prompts of a step, for a reader; arguments as above."""
    group = rewards.shape[1]
    lengths, finished = np.asarray(rollout.mask).sum(axis=-1), np.asarray(rollout.finished)
    return [
        {
            "step": step,
            "id": example.id,
            "question": example.question,
            "ground_truth": example.answer,
            "completions": [
                {
                    "text": texts[b * group + g],
                    "reward": float(rewards[b, g]),
                    "accuracy": grades[b * group + g].accuracy,
                    "format": grades[b * group + g].format,
                    "length": int(lengths[b, g]),
                    "finished": bool(finished[b, g]),
                }
                for g in range(group)
            ],
        }
        for b, example in enumerate(examples[:_SAMPLED_PROMPTS])
    ]
