"""Questions in batches of one size: a large picture or a long question costs no other anything."""

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

# Prompt tokens of a question, and patches of all its images: up to here, padding costs less than
# the programs that it saves.
_SMALL = 256
# Attention scores (f32) of a batch on one device, bytes: those of 16 images of R1-V's largest size,
# 2048 patches, in the vision tower of Qwen2-VL.
_SCORE_BYTES = 4 * 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One that can be read."""

    number: int  # in its source
    example: Example
    prompt: EncodedPrompt

    @property
    def digest(self) -> str:
        """SHA-256 of all that the model is shown and the graders compare with."""
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
    pad: PadTo  # shapes
    rows: int  # of the program that answers them, over all devices; not less than questions


class Batches:
    """Cuts questions into batches, by their sizes alone: the same ones wherever they are cut.

    A question of few tokens and patches goes with others like it, padded as `Processor.batch` does
    it. What is larger goes with questions whose sizes round up to the same shapes, at most a
    quarter more: few shapes, few compilations. How many, is bounded by their attention scores,
    which grow with the square of a size.
    """

    def __init__(
        self, processor: Processor, config: VLMConfig, *, batch_size: int, shards: int
    ) -> None:
        """Args:
        processor: of the model.
        config: of the model.
        batch_size: questions of a batch, at most, but at least one a shard.
        shards: pieces that a batch is cut into, one a device; its rows divide by them.
        """
        self._processor = processor
        self._config = config
        self._a_shard = max(1, batch_size // shards)
        self._shards = shards

    def __call__(self, questions: Iterable[Question]) -> Iterator[Batch]:
        """Every question once; those of a batch in their order, batches as they become full."""
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
            # What is left is filled up where a smaller batch would be compiled anew.
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
