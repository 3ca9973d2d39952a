"""The few shapes (buckets) that a run pads its batches to; each compiles its programs again.

A program of a 2B model takes minutes to compile, and the largest prompt differs from batch to
batch. So the shapes are fixed before the first step, by what the first batches need and what the
settings allow. They depend on nothing else, such as what is compiled already: numbers differ in
their last digits from shape to shape, and a resumed run must equal one that never stopped.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from othink_jax.data.processing import PadTo, Processor
from othink_jax.types import Prompts

SURVEYED = 8  # first batches, by which the shapes of a run are chosen
MOST_PROMPT_SHAPES = 2  # maximum prompt shapes: compilations of sampling and of image encoding
MOST_SHAPES = 6  # maximum pairs of prompt and completion shapes: compilations of the update
_LENGTH_UNIT = 64  # tokens; completion lengths are multiples of this, or the limit

# Completion lengths, tokens: ascending; the last one fits every completion of the run.
Lengths = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Two prompt shapes, the larger one rarely used, and the completion lengths."""

    usual: PadTo  # fits all or most of the first batches
    largest: PadTo  # fits every batch that the settings bound
    lengths: Lengths  # T with `usual`; other prompt shapes use the second and the last only

    def of_prompts(self, needed: PadTo) -> PadTo:
        """The shape that a batch is padded to.

        The number of images is unbounded, and `max_prompt_tokens` may be None. If a batch does not
        fit into `largest`, each dimension that is too small is doubled until it fits.
        """
        for shape in (self.usual, self.largest):
            if _fits(needed, shape):
                return shape
        return PadTo(
            prompt_tokens=_doubled(self.largest.prompt_tokens, needed.prompt_tokens),
            image_slots=_doubled(self.largest.image_slots, needed.image_slots),
            patches=_doubled(self.largest.patches, needed.patches),
        )

    def of_completions(self, prompts: PadTo, longest: int) -> int:
        """Padded length T of a batch, by its prompt shape and its longest completion, tokens."""
        return min(length for length in self._lengths(prompts) if length >= longest)

    @classmethod
    def stored(cls, value: Mapping[str, Any]) -> Self:
        """Shapes from the JSON object that `dataclasses.asdict` makes of them."""
        a, b, c, d = value["lengths"]
        return cls(
            usual=PadTo(**value["usual"]), largest=PadTo(**value["largest"]), lengths=(a, b, c, d)
        )

    def updates(self) -> list[tuple[PadTo, int]]:
        """All pairs of prompt shape and T that the settings allow, `usual` first."""
        shapes = dict.fromkeys((self.usual, self.largest))
        return [(shape, length) for shape in shapes for length in self._lengths(shape)]

    def _lengths(self, prompts: PadTo) -> list[int]:
        return sorted({*(self.lengths if prompts == self.usual else self.lengths[1::2])})


def choose_shapes(
    processor: Processor,
    first: Sequence[PadTo],
    lengths: Lengths,
    *,
    max_prompt_tokens: int | None,
) -> Shapes:
    """Choose the shapes of a run.

    Args:
      processor: processor of the model; it bounds the patches of an image.
      first: shapes that the first batches need, one or more.
      lengths: completion lengths.
      max_prompt_tokens: limit of a prompt, image tokens included; None if there is no limit.
    """
    together = common(first)
    largest = largest_prompts(
        processor,
        max_prompt_tokens=max_prompt_tokens or 2 * round_up(together.prompt_tokens),
        # If no prompt so far has more than one image, later ones are assumed not to either.
        image_slots=together.image_slots * (1 if together.image_slots < 2 else 2),
    )
    largest = common([largest, together])

    def rounded(needed: PadTo) -> PadTo:
        return processor.multiples(
            prompt_tokens=min(round_up(needed.prompt_tokens), largest.prompt_tokens),
            image_slots=needed.image_slots,
            patches=min(round_up(needed.patches), largest.patches),
        )

    def cost(usual: PadTo) -> int:
        return sum(_cost(usual if _fits(needed, usual) else largest) for needed in first)

    # `usual` fits all first batches, or leaves out the largest ones if that costs less in total.
    by_cost = sorted(first, key=_cost)
    candidates = [rounded(common(by_cost[:count])) for count in range(len(first), 0, -1)]
    return Shapes(usual=min(candidates, key=cost), largest=largest, lengths=lengths)


def largest_prompts(processor: Processor, *, max_prompt_tokens: int, image_slots: int) -> PadTo:
    """The shape that fits every prompt of this many images and tokens."""
    settings = processor.image_settings
    patches = settings.max_pixels // settings.patch_size**2
    # Each merge window of patches is one token of the prompt.
    patches = min(patches, max_prompt_tokens * settings.merge_size**2)
    return processor.multiples(
        prompt_tokens=max_prompt_tokens,
        image_slots=image_slots,
        patches=patches if image_slots else 0,
    )


def quarters(limit: int) -> Lengths:
    """Quarters of `limit`: lengths of completions that training changes, up to `limit`."""
    return _of_units((limit / 4, limit / 2, 3 * limit / 4, limit), limit)


def around(longest: int, limit: int) -> Lengths:
    """Lengths of completions around a known `longest`; `limit` may be far above it."""
    usual = round_up(longest)
    return _of_units((usual / 2, usual, 2 * usual, limit), limit)


def common(needed: Sequence[PadTo]) -> PadTo:
    """The smallest shape that fits all of these."""
    return PadTo(
        prompt_tokens=max(shape.prompt_tokens for shape in needed),
        image_slots=max(shape.image_slots for shape in needed),
        patches=max(shape.patches for shape in needed),
    )


def shape_of(prompts: Prompts) -> PadTo:
    """The padded shape of prompts, on the host or on devices."""
    return PadTo(
        prompt_tokens=prompts.tokens.shape[-1],
        image_slots=prompts.patches.shape[-3],
        patches=prompts.patches.shape[-2],
    )


def round_up(size: int) -> int:
    """Round up to 4, 5, 6 or 7 times a power of two: by a quarter at most."""
    step = 2 ** max(0, (size - 1).bit_length() - 3)
    return math.ceil(size / step) * step


def _of_units(lengths: tuple[float, float, float, float], limit: int) -> Lengths:
    a, b, c, d = (min(limit, math.ceil(x / _LENGTH_UNIT) * _LENGTH_UNIT) for x in lengths)
    return a, b, c, d


def _fits(needed: PadTo, shape: PadTo) -> bool:
    return common([needed, shape]) == shape


def _cost(prompts: PadTo) -> int:
    """Cost of computing prompts, in patches: a token of Qwen2-VL-2B costs as much as about two."""
    return 2 * prompts.prompt_tokens + prompts.image_slots * prompts.patches


def _doubled(size: int, needed: int) -> int:
    """`size` doubled until it is at least `needed`; `needed` itself if `size` is 0."""
    size = size or needed
    while size < needed:
        size *= 2
    return size
