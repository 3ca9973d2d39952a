"""The few shapes that a run pads its batches to: each is another compilation of its programs.

A program of a 2B model takes minutes to compile, and batch after batch the largest prompt has
another size. So the shapes are fixed before the first step: by what the first batches need, and by
what the settings allow. They depend on nothing else, such as what is compiled already, for numbers
differ in their last digits from shape to shape, and a run that goes on is to equal one that never
stopped.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

from othink_jax.data.processing import PadTo, Processor
from othink_jax.types import Prompts

SURVEYED = 8  # batches that the shapes of a run are chosen by
MOST_PROMPT_SHAPES = 2  # of a run, so many programs that sample or encode images
MOST_SHAPES = 6  # of prompts and completions together, so many updates
_LENGTH_UNIT = 64  # completion tokens; shorter ones are not told apart

# Of completions, tokens: ascending, the last one holds every completion of the run.
Lengths = tuple[int, int, int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes:
    """Two shapes of prompts, of which the larger is seldom met, and lengths of completions."""

    usual: PadTo  # all or most of the first batches fit into it
    largest: PadTo  # every batch fits into it that the settings bound
    lengths: Lengths  # T beside `usual`; beside other prompts, the second and the last of them

    def of_prompts(self, needed: PadTo) -> PadTo:
        """The shape that a batch is padded to.

        Nothing bounds the number of images, and `max_prompt_tokens` may be None: what does not fit
        into `largest` has this doubled, where it is too small, until it fits.
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
        """T of a batch, by the shape of its prompts and the tokens of its longest completion."""
        return min(length for length in self._lengths(prompts) if length >= longest)

    @classmethod
    def stored(cls, value: Mapping[str, Any]) -> Self:
        """From the JSON object that `dataclasses.asdict` makes of one."""
        a, b, c, d = value["lengths"]
        return cls(
            usual=PadTo(**value["usual"]), largest=PadTo(**value["largest"]), lengths=(a, b, c, d)
        )

    def updates(self) -> list[tuple[PadTo, int]]:
        """All pairs of a shape of prompts and T that the settings allow, `usual` first."""
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
    """The shapes of a run.

    Args:
      processor: of the model; it bounds the patches of an image.
      first: what each of the first batches needs, one or more.
      lengths: of completions.
      max_prompt_tokens: of a prompt, image tokens included; None: no bound is known.
    """
    together = common(first)
    largest = largest_prompts(
        processor,
        max_prompt_tokens=max_prompt_tokens or 2 * round_up(together.prompt_tokens),
        # Prompts of one image each, or of none, are taken to stay so.
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

    # All of them, or, where a few are far larger than the others, those without these.
    by_cost = sorted(first, key=_cost)
    candidates = [rounded(common(by_cost[:count])) for count in range(len(first), 0, -1)]
    return Shapes(usual=min(candidates, key=cost), largest=largest, lengths=lengths)


def largest_prompts(processor: Processor, *, max_prompt_tokens: int, image_slots: int) -> PadTo:
    """The shape that every prompt of so many images and tokens fits into."""
    settings = processor.image_settings
    patches = settings.max_pixels // settings.patch_size**2
    # Each merge window of patches is a token of the prompt.
    patches = min(patches, max_prompt_tokens * settings.merge_size**2)
    return processor.multiples(
        prompt_tokens=max_prompt_tokens,
        image_slots=image_slots,
        patches=patches if image_slots else 0,
    )


def quarters(limit: int) -> Lengths:
    """Lengths of completions that may become as long as `limit`, and that training changes."""
    return _of_units((limit / 4, limit / 2, 3 * limit / 4, limit), limit)


def around(longest: int, limit: int) -> Lengths:
    """Lengths of completions of which `longest` is known, and `limit` may be far away."""
    usual = round_up(longest)
    return _of_units((usual / 2, usual, 2 * usual, limit), limit)


def common(needed: Sequence[PadTo]) -> PadTo:
    """The least shape that all of these fit into."""
    return PadTo(
        prompt_tokens=max(shape.prompt_tokens for shape in needed),
        image_slots=max(shape.image_slots for shape in needed),
        patches=max(shape.patches for shape in needed),
    )


def shape_of(prompts: Prompts) -> PadTo:
    """What prompts, on the host or on devices, have been padded to."""
    return PadTo(
        prompt_tokens=prompts.tokens.shape[-1],
        image_slots=prompts.patches.shape[-3],
        patches=prompts.patches.shape[-2],
    )


def round_up(size: int) -> int:
    """To the next of 4, 5, 6 and 7 times a power of two: by a quarter at most."""
    step = 2 ** max(0, (size - 1).bit_length() - 3)
    return math.ceil(size / step) * step


def _of_units(lengths: tuple[float, float, float, float], limit: int) -> Lengths:
    a, b, c, d = (min(limit, math.ceil(x / _LENGTH_UNIT) * _LENGTH_UNIT) for x in lengths)
    return a, b, c, d


def _fits(needed: PadTo, shape: PadTo) -> bool:
    return common([needed, shape]) == shape


def _cost(prompts: PadTo) -> int:
    """Of computing prompts, in patches: a token of Qwen2-VL-2B takes the FLOPs of about two."""
    return 2 * prompts.prompt_tokens + prompts.image_slots * prompts.patches


def _doubled(size: int, needed: int) -> int:
    """`size` times the least power of two that makes it hold `needed`."""
    size = size or needed
    while size < needed:
        size *= 2
    return size
