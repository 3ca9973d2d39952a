"""Sample completions of a step: stored with the run, logged to TensorBoard and W&B."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from othink_jax.rewards import Scores
from othink_jax.training.redraw import Draw
from othink_jax.types import Rollout

_PROMPTS = 2  # prompts of a step whose completions are stored


@dataclasses.dataclass(frozen=True, kw_only=True)
class Samples:
    """All completions of the first prompts of a step."""

    step: int
    rows: list[dict[str, Any]]  # JSON objects, one per prompt
    images: list[tuple[Image.Image, ...]]  # RGB images of each row's prompt, in prompt order

    def table(self, images: Sequence[Sequence[Any]]) -> tuple[list[str], list[list[Any]]]:
        """Column names, and one row of cells per completion.

        Columns of reward functions have the names of their metrics.

        Args:
          images: cells for the images of each row's prompt.
        """
        most = max(map(len, self.images))
        own = list(self.rows[0]["completions"][0].get("rewards", {}))
        columns = [
            *("step", "prompt id", *(f"image_{i}" for i in range(most)), "question"),
            *("ground truth", "completion", "reward", "accuracy", "format"),
            *(f"reward_{name}" for name in own),
            *("length", "finished"),
        ]
        cells = [
            [
                *(self.step, row["id"], *shown, *[None] * (most - len(shown)), row["question"]),
                *(row["ground_truth"], one["text"], one["reward"], one["accuracy"], one["format"]),
                *(one["rewards"][name] for name in own),
                *(one["length"], one["finished"]),
            ]
            for row, shown in zip(self.rows, images, strict=True)
            for one in row["completions"]
        ]
        return columns, cells


def samples_of(step: int, draw: Draw, rollout: Rollout) -> Samples:
    """Completions of the first prompts of a step, for human readers.

    Args:
      step: step number.
      draw: prompts, texts, grades and rewards.
      rollout: completions without padding columns, on the host.
    """
    group = draw.rewards.shape[1]
    lengths, finished = np.asarray(rollout.mask).sum(axis=-1), np.asarray(rollout.finished)
    chosen = draw.examples[:_PROMPTS]
    rows = [
        {
            "step": step,
            "id": example.id,
            "question": example.question,
            "ground_truth": example.answer,
            "completions": [
                {
                    "text": draw.texts[b * group + g],
                    "reward": float(draw.rewards[b, g]),
                    "accuracy": draw.grades[b * group + g].accuracy,
                    "format": draw.grades[b * group + g].format,
                    **_values(draw.scores[b * group + g]),
                    "length": int(lengths[b, g]),
                    "finished": bool(finished[b, g]),
                }
                for g in range(group)
            ],
        }
        for b, example in enumerate(chosen)
    ]
    return Samples(step=step, rows=rows, images=[example.images for example in chosen])


def _values(scores: Scores) -> dict[str, Any]:
    """Reward function values of a completion; empty if there are no reward functions."""
    return {"rewards": dict(scores.values)} if scores.values else {}
