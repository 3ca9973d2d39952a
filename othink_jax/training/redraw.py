"""Dynamic sampling (DAPO, arXiv 2503.14476, section 3.2): groups without signal are replaced."""

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import Bool, Float

from othink_jax import rl
from othink_jax.data.example import Example
from othink_jax.data.processing import EncodedPrompt
from othink_jax.rewards import Grade, Scores
from othink_jax.types import Rollout

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """Prompts of this process in one step, with their graded completions, on the host."""

    examples: list[Example]
    encoded: list[EncodedPrompt]
    rollout: Rollout
    texts: list[str]  # one per completion, prompt by prompt
    grades: list[Grade]  # in the same order
    scores: list[Scores]  # in the same order
    rewards: Float[np.ndarray, "B G"]

    @property
    def has_signal(self) -> Bool[np.ndarray, " B"]:
        """Whether the rewards of a prompt's completions differ."""
        return np.asarray(~rl.zero_variance_groups(self.rewards))


def replaced(draw: Draw, other: Draw) -> tuple[Draw, int]:
    """Replace groups without signal by groups with signal of another draw; also returns how many.

    They are paired in order until one kind runs out. Both rollouts must have the same number of
    columns.
    """
    gone, new = np.flatnonzero(~draw.has_signal), np.flatnonzero(other.has_signal)
    count = min(len(gone), len(new))
    gone, new = gone[:count], new[:count]
    group = draw.rewards.shape[1]

    def arrays(ours: Any, theirs: Any) -> np.ndarray:
        made = np.array(ours)
        made[gone] = np.asarray(theirs)[new]
        return made

    def rows(ours: list[_T], theirs: list[_T], size: int = 1) -> list[_T]:
        made = list(ours)
        for to, of in zip(gone.tolist(), new.tolist(), strict=True):
            made[to * size : (to + 1) * size] = theirs[of * size : (of + 1) * size]
        return made

    made = Draw(
        examples=rows(draw.examples, other.examples),
        encoded=rows(draw.encoded, other.encoded),
        rollout=jax.tree.map(arrays, draw.rollout, other.rollout),
        texts=rows(draw.texts, other.texts, group),
        grades=rows(draw.grades, other.grades, group),
        scores=rows(draw.scores, other.scores, group),
        rewards=arrays(draw.rewards, other.rewards),
    )
    return made, count


def with_columns(rollout: Rollout, length: int) -> Rollout:
    """Cut completions to `length` tokens, or pad them with zeros that the mask leaves out."""

    def sized(x: Any) -> np.ndarray:
        x = np.asarray(x)[..., :length]
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - x.shape[-1])])

    return dataclasses.replace(
        rollout,
        **{name: sized(getattr(rollout, name)) for name in ("tokens", "mask", "logp", "entropy")},
    )
