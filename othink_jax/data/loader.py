"""Streams of encoded prompts, made ahead in the background, whose position can be stored."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import grain

from othink_jax.data.example import Example, UnreadableExample
from othink_jax.data.processing import EncodedPrompt, Processor
from othink_jax.data.sources import Source
from othink_jax.data.stream import Stream
from othink_jax.errors import UserError

_log = logging.getLogger(__name__)

Batch = tuple[list[Example], list[EncodedPrompt]]

# So many examples in a row that cannot be used tell that hardly any can.
_HOPELESS = 1000
# Examples left out that the log names; further ones are only counted.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class _Skipped:
    """What stands in the stream for an example that cannot be used."""

    index: int  # in the source
    cause: str
    message: str
    example: Example  # as of `UnreadableExample`


class _Encode:
    """Example number -> encoded prompt, or the reason why there is none."""

    def __init__(
        self,
        source: Source,
        processor: Processor,
        *,
        template: str,
        max_prompt_tokens: int | None = None,
        max_completion_tokens: int | None = None,
    ) -> None:
        self._source = source
        self._processor = processor
        self._template = template
        self._max_prompt_tokens = max_prompt_tokens
        self._max_completion_tokens = max_completion_tokens

    def __call__(self, index: int) -> tuple[Example, EncodedPrompt] | _Skipped:
        try:
            example = self._source[index]
        except UnreadableExample as error:
            return _Skipped(index, "unreadable", str(error), error.example)
        text = self._template.replace("{question}", example.question)
        try:
            prompt = self._processor.encode(text, example.images)
            if self._max_completion_tokens is not None:
                completion = self._processor.encode_answer(example.solution)
                prompt = dataclasses.replace(prompt, completion=completion)
        except UserError as error:
            return _Skipped(index, "unreadable", f"{example.id}: {error}", example)
        for part, tokens, limit in (
            ("prompt", prompt.tokens, self._max_prompt_tokens),
            ("completion", prompt.completion, self._max_completion_tokens),
        ):
            if tokens is not None and limit is not None and len(tokens) > limit:
                reason = f"its {part} has {len(tokens)} tokens, over max_{part}_tokens = {limit}"
                return _Skipped(index, "too_long", f"{example.id}: {reason}", example)
        return example, prompt


def _ahead(numbers: grain.MapDataset, encode: _Encode, batch_size: int) -> grain.DatasetIterator:
    """Encode by one background thread, two batches ahead: the device works while the host does."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_size)
    return iter(numbers.map(encode).to_iter_dataset(options))


class PromptLoader:
    """Shuffled batches of examples and their encoded prompts, without an end.

    The order is a function of the seed, another one each epoch; a batch may span two epochs.
    Examples that cannot be read and those that are too long are skipped, counted in `skipped` by
    cause (each time they come up), listed in `left_out`, and named in the log once (those of a
    `Stream` once an epoch), the first ten of them; no text is ever cut.
    """

    skipped: Counter[str]  # `unreadable` and `too_long`
    left_out: dict[int, str]  # what was skipped since this loader was made, by number: why

    def __init__(
        self,
        source: Source,
        processor: Processor,
        *,
        batch_size: int,
        seed: int,
        template: str,
        max_prompt_tokens: int | None,
        max_completion_tokens: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        """Args:
        source: of examples, not empty.
        processor: of the model.
        batch_size: prompts of a batch.
        seed: of the order, in [0, 2**32).
        template: the user's words; {question} is replaced.
        max_prompt_tokens: longer prompts, image tokens included, are skipped; None skips none.
        max_completion_tokens: the examples' solutions are encoded as completions, and longer ones
            skipped; None encodes none.
        share: of the stream, the process `share[0]` of `share[1]` takes every so many-th example.
        """
        self.skipped = Counter()
        self._size = len(source)
        self._batch_size = batch_size
        self.left_out = {}
        numbers = grain.MapDataset.range(len(source))
        if isinstance(source, Stream):
            source = source.shuffled(seed)
        else:
            numbers = numbers.shuffle(seed=seed).repeat()
        numbers = numbers[share[0] :: share[1]]
        encode = _Encode(
            source,
            processor,
            template=template,
            max_prompt_tokens=max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
        )
        self._stream = _ahead(numbers, encode, batch_size)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
          UserError: not one example can be used, or not one of a thousand in a row.
        """
        batch: list[tuple[Example, EncodedPrompt]] = []
        in_a_row = 0
        while len(batch) < self._batch_size:
            item = next(self._stream)
            if not isinstance(item, _Skipped):
                batch.append(item)
                in_a_row = 0
                continue
            self._skip(item)
            in_a_row += 1
            if len(self.left_out) == self._size or in_a_row >= _HOPELESS:
                raise UserError(
                    f"{in_a_row} examples in a row cannot be used; the last one: {item.message}"
                )
        return _columns(batch)

    def _skip(self, item: _Skipped) -> None:
        self.skipped[item.cause] += 1
        if item.index not in self.left_out:
            self.left_out[item.index] = item.message
            if len(self.left_out) <= _NAMED:
                _log.warning("skipped %s", item.message)

    def get_state(self) -> dict[str, Any]:
        """The position in the stream, as a JSON object."""
        return {"stream": self._stream.get_state(), "skipped": dict(self.skipped)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called."""
        self._stream.set_state(state["stream"])
        self.skipped = Counter(state["skipped"])


def in_order(
    source: Source,
    processor: Processor,
    *,
    batch_size: int,
    template: str,
    max_prompt_tokens: int | None = None,
    unreadable: list[Example] | None = None,
) -> Iterator[tuple[int, Example, EncodedPrompt]]:
    """Every example once, in order, with its number in the source and its encoded prompt.

    Args:
      source, processor, template, max_prompt_tokens: as of `PromptLoader`.
      batch_size: two times so many are prepared ahead.
      unreadable: examples that cannot be used, as those that `PromptLoader` skips, are appended
        here for the caller to count, and the first ten are named in the log; without it, the first
        of them is an error.

    Raises:
      UnreadableExample: an example cannot be used, and `unreadable` is not given.
    """
    encode = _Encode(source, processor, template=template, max_prompt_tokens=max_prompt_tokens)
    numbers = grain.MapDataset.range(len(source))
    for number, item in enumerate(_ahead(numbers, encode, batch_size)):
        if not isinstance(item, _Skipped):
            yield number, *item
        elif unreadable is None:
            raise UnreadableExample(item.message, item.example)
        else:
            unreadable.append(item.example)
            if len(unreadable) <= _NAMED:
                _log.warning("cannot be answered: %s", item.message)


def _columns(batch: list[tuple[Example, EncodedPrompt]]) -> Batch:
    return [example for example, _ in batch], [prompt for _, prompt in batch]
