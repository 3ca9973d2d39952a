"""Batches of questions of similar size: a large image or a long question pads no others."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Iterator

import numpy as np

from othink_jax.data.example import Example
from othink_jax.data.processing import EncodedPrompt, PadTo, Processor
from othink_jax.model.config import VLMConfig
from othink_jax.training.shapes import round_up

# Prompt tokens of a question, and patches of all its images: up to this size, padding costs less
# than compiling more programs.
_SMALL = 256
# Maximum bytes of a batch's attention scores (f32) on one device: those of 16 images of R1-V's
# largest size, 2048 patches, in the vision tower of Qwen2-VL.
_SCORE_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question that can be read."""

    number: int  # index in its source
    example: Example
    prompt: EncodedPrompt

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the model is shown and that the graders compare with."""
        example, prompt = self.example, self.prompt
        made = hashlib.sha256(json.dumps([example.id, example.question, example.answer]).encode())
        arrays = (prompt.tokens, prompt.positions, *prompt.patches, *prompt.patch_positions)
        for array in arrays:
            made.update(f"{array.dtype} {array.shape}".encode())
            made.update(array.tobytes())
        return made.hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Questions that are answered together."""

    questions: list[Question]
    pad: PadTo  # shapes that prompts are padded to
    rows: int  # of the compiled program, over all devices; at least the number of questions


class Batches:
    """Cuts questions into batches, by their sizes alone: equal questions give equal batches.

    Small questions (few tokens and patches) share batches, padded as `Processor.batch` does it. A
    larger question shares a batch with those whose sizes round up to the same shapes, at most a
    quarter more: few shapes, few compilations. The attention scores, which grow with the square of
    a size, bound the number of large questions in a batch.
    """

    def __init__(
        self, processor: Processor, config: VLMConfig, *, batch_size: int, shards: int
    ) -> None:
        """Args:
        processor: of the model.
        config: of the model.
        batch_size: maximum number of questions of a batch, but at least one per shard.
        shards: pieces that a batch is cut into, one per device; they divide its rows.
        """
        self._processor = processor
        self._config = config
        self._a_shard = max(1, batch_size // shards)
        self._shards = shards

    def __call__(self, questions: Iterable[Question]) -> Iterator[Batch]:
        """Batches as they become full: every question once, in order within a batch."""
        waiting: dict[PadTo | None, list[Question]] = {}
        begun = set()
        for question in questions:
            size = self._size(question.prompt)
            group = waiting.setdefault(size, [])
            group.append(question)
            if len(group) == self._rows(size):
                begun.add(size)
                yield self._batch(waiting.pop(size), size, self._rows(size))
        for size, group in waiting.items():
            # A partial batch is padded to full rows if their program is already compiled.
            fewest = math.ceil(len(group) / self._shards) * self._shards
            yield self._batch(group, size, self._rows(size) if size in begun else fewest)

    def _batch(self, group: list[Question], size: PadTo | None, rows: int) -> Batch:
        pad = size or self._processor.bucket([question.prompt for question in group])
        return Batch(questions=group, pad=pad, rows=rows)

    def _size(self, prompt: EncodedPrompt) -> PadTo | None:
        """The shapes that a question is padded to; None for a small one."""
        own = self._processor.bucket([prompt])
        if own.prompt_tokens <= _SMALL and own.image_slots * own.patches <= _SMALL:
            return None
        window = self._processor.image_settings.merge_size**2
        return PadTo(
            prompt_tokens=round_up(own.prompt_tokens),
            image_slots=own.image_slots,
            patches=round_up(own.patches // window) * window,
        )

    def _rows(self, size: PadTo | None) -> int:
        if size is None:
            return self._a_shard * self._shards
        scores = max(
            self._config.vision.num_heads * size.image_slots * size.patches**2,
            self._config.text.num_attention_heads * size.prompt_tokens**2,
        )
        fitting = _SCORE_BYTES // (scores * np.dtype(np.float32).itemsize)
        return min(self._a_shard, max(1, fitting)) * self._shards
