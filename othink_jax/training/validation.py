"""Validation between the steps of a run: greedy answers to held-out questions."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from othink_jax.config import DataConfig, TrainingConfig
from othink_jax.data.example import Example
from othink_jax.data.loader import in_order
from othink_jax.data.processing import EncodedPrompt, PadTo, Processor
from othink_jax.data.sources import Source, Subset, drawn, open_source
from othink_jax.errors import UserError
from othink_jax.rewards import Grade
from othink_jax.statistics import wilson_interval
from othink_jax.training import processes
from othink_jax.training.shapes import common
from othink_jax.types import Rollout

_T = TypeVar("_T")
# Grades and rewards of completions; the training method computes them.
Graded = tuple[Sequence[Grade], Float[np.ndarray, "..."]]
Answer = Callable[[list[EncodedPrompt]], Rollout]
Judge = Callable[[list[Example], list[EncodedPrompt], Rollout], Graded]


@dataclasses.dataclass
class Best:
    """The best validation so far; it is stored with a checkpoint."""

    score: float | None = None
    step: int | None = None
    waited: int = 0  # validations since the best one

    def take(self, score: float, step: int) -> bool:
        """Add a validation; returns whether it is the best. Of equal scores, the first is best."""
        if self.score is not None and score <= self.score:
            self.waited += 1
            return False
        self.score, self.step, self.waited = score, step, 0
        return True

    def is_over(self, patience: int | None) -> bool:
        """Whether to stop early: `patience` validations in a row were no better."""
        return patience is not None and self.waited >= patience


class Questions:
    """The questions of every validation, always in the same batches."""

    def __init__(
        self,
        config: TrainingConfig,
        processor: Processor,
        *,
        share: tuple[int, int],
        columns: bool,
    ) -> None:
        """Read all questions once; one that cannot be used counts as answered wrongly.

        Args:
          config: settings of the run.
          processor: processor of the model.
          share: this is process `share[0]` of `share[1]`.
          columns: see `open_source`.

        Raises:
          UserError: there are no questions, or none of them can be used.
        """
        self._processor = processor
        self._share = share
        self._data = config.validation.data(config.data)
        self._batch_size = config.prompts_per_step
        self._source = _chosen(self._data, config.validation.validate_count, columns=columns)
        unreadable: list[Example] = []
        read = [
            (number, processor.bucket([prompt]))
            for number, _, prompt in self._ask(self._source, unreadable)
        ]
        if not read:
            raise UserError(f"not one question of {self._data.name} can be used for validation")
        self._usable = [number for number, _ in read]
        self.shapes: list[PadTo] = [  # shapes that the batches need
            common([shape for _, shape in batch]) for batch in _cut(read, self._batch_size)
        ]

    def __len__(self) -> int:
        """Number of questions, including those that cannot be used."""
        return len(self._source)

    def _ask(self, source: Source, unreadable: list[Example] | None = None) -> Any:
        return in_order(
            source,
            self._processor,
            batch_size=self._batch_size,
            template=self._data.template,
            system_prompt=self._data.system_prompt,
            max_prompt_tokens=self._data.max_prompt_tokens,
            unreadable=unreadable,
        )

    def measure(self, answer: Answer, judge: Judge) -> dict[str, Any]:
        """Ask all questions; returns the `validation_...` entries of a row of metrics.

        Args:
          answer: samples completions of this process's rows of a batch.
          judge: grades these completions.
        """
        begun = time.perf_counter()
        rows = self._batch_size // self._share[1]
        # The first questions fill up the last batch; their second answers are not counted.
        filled = -len(self._usable) % self._batch_size
        order = [*self._usable, *itertools.islice(itertools.cycle(self._usable), filled)]
        own = [
            place
            for first in range(self._share[0] * rows, len(order), self._batch_size)
            for place in range(first, first + rows)
        ]
        told: list[dict[str, Any]] = []
        asked = self._ask(Subset(self._source, [order[place] for place in own]))
        for places in _cut(own, rows):
            batch = list(itertools.islice(asked, len(places)))
            examples, encoded = [one[1] for one in batch], [one[2] for one in batch]
            rollout = answer(encoded)
            grades, rewards = judge(examples, encoded, rollout)
            told += _rows(places, grades, rewards, rollout)
        found = list(itertools.chain(*processes.all_gather(told)))
        counted = [row for row in found if row["place"] < len(self._usable)]
        return self._figures(counted) | {
            "seconds_validation": round(time.perf_counter() - begun, 4)
        }

    def _figures(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        right, total = int(sum(row["accuracy"] for row in rows)), len(self)
        low, high = wilson_interval(right, total)
        # Sum in the order of the questions: a sum of floats depends on the order.
        ordered = sorted(rows, key=lambda row: row["place"])
        shares = {
            f"validation_{name}": sum(row[name] for row in ordered) / total
            for name in ("format", "reward")
        }
        return {
            "validation_accuracy": right / total,
            "validation_low": low,
            "validation_high": high,
            **shares,
            "validation_length": sum(row["tokens"] for row in ordered) / len(ordered),
            "validation_count": total,
        }


def _chosen(data: DataConfig, count: int, *, columns: bool) -> Source:
    source = open_source(data, size=count, columns=columns)
    if len(source) <= count:
        return source
    return drawn(source, count, data.limit_seed)


def _cut(values: Sequence[_T], size: int) -> list[Sequence[_T]]:
    """Split into pieces of `size`; the last one may be shorter."""
    return [values[first : first + size] for first in range(0, len(values), size)]


def _rows(
    places: Sequence[int], grades: Sequence[Grade], rewards: np.ndarray, rollout: Rollout
) -> list[dict[str, Any]]:
    """One process's results of a batch, as JSON objects to all-gather."""
    lengths = np.asarray(rollout.mask).sum(axis=-1).reshape(-1)
    return [
        {
            "place": place,
            "accuracy": grade.accuracy,
            "format": grade.format,
            "reward": float(reward),
            "tokens": int(tokens),
        }
        for place, grade, reward, tokens in zip(
            places, grades, rewards.reshape(-1), lengths, strict=True
        )
    ]
