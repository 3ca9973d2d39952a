"""Streams of encoded prompts, made ahead in the background, whose position can be stored."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any, Self

import grain

from othink_jax.data.example import Example
from othink_jax.data.processing import EncodedPrompt, Processor
from othink_jax.data.sources import Source, UnreadableExample
from othink_jax.errors import UserError

_log = logging.getLogger(__name__)

Encoded = tuple[Example, EncodedPrompt]


@dataclasses.dataclass(frozen=True)
class _Skipped:
    """What stands in the stream for an example that cannot be used."""

    cause: str
    message: str


class _Encode:
    """Example number -> encoded prompt, or the reason why it is skipped."""

    def __init__(
        self, source: Source, processor: Processor, template: str, max_prompt_tokens: int
    ) -> None:
        self._source = source
        self._processor = processor
        self._template = template
        self._limit = max_prompt_tokens

    def __call__(self, index: int) -> Encoded | _Skipped:
        try:
            example = self._source[index]
        except UnreadableExample as error:
            return _Skipped("unreadable", str(error))
        text = self._template.replace("{question}", example.question)
        try:
            prompt = self._processor.encode(text, example.images)
        except UserError as error:
            return _Skipped("unreadable", f"{example.id}: {error}")
        if len(prompt.tokens) > self._limit:
            return _Skipped(
                "too long",
                f"{example.id}: its prompt has {len(prompt.tokens)} tokens, over the limit of"
                f" {self._limit}",
            )
        return example, prompt


class PromptLoader:
    """Endless shuffled batches of examples and their encoded prompts.

    The order is a function of the seed. Examples that cannot be read and prompts that are too long
    are skipped, counted in `skipped` by cause, and named in the log; a prompt is never cut.
    """

    def __init__(
        self,
        source: Source,
        processor: Processor,
        *,
        batch_size: int,
        seed: int,
        template: str,
        max_prompt_tokens: int,
    ) -> None:
        self.skipped: Counter[str] = Counter()
        self._size = len(source)
        self._batch_size = batch_size
        numbers = grain.MapDataset.range(self._size).shuffle(seed=seed).repeat()
        encode = _Encode(source, processor, template, max_prompt_tokens)
        # One thread, two batches ahead: the device computes while the host prepares.
        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_size)
        self._stream = iter(numbers.map(encode).to_iter_dataset(options))

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> tuple[list[Example], list[EncodedPrompt]]:
        """The next batch; raises UserError if a whole pass holds nothing that can be used."""
        batch: list[Encoded] = []
        in_a_row = 0
        while len(batch) < self._batch_size:
            item = next(self._stream)
            if not isinstance(item, _Skipped):
                batch.append(item)
                in_a_row = 0
                continue
            in_a_row += 1
            self.skipped[item.cause] += 1
            _log.warning("skipped %s", item.message)
            if in_a_row >= self._size:
                raise UserError(f"no example can be used; the last one: {item.message}")
        return [example for example, _ in batch], [prompt for _, prompt in batch]

    def get_state(self) -> dict[str, Any]:
        """The position in the stream, as a JSON object."""
        return {"stream": self._stream.get_state(), "skipped": dict(self.skipped)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called."""
        self._stream.set_state(state["stream"])
        self.skipped = Counter(state["skipped"])


def in_order(
    source: Source, processor: Processor, *, batch_size: int, template: str
) -> Iterator[tuple[list[Example], list[EncodedPrompt]]]:
    """Every example once, in order, the last batch as large as what is left.

    Raises:
      UserError: an example cannot be read; a test set is evaluated whole or not at all.
    """
    for start in range(0, len(source), batch_size):
        examples = [source[index] for index in range(start, min(start + batch_size, len(source)))]
        yield (
            examples,
            [
                processor.encode(template.replace("{question}", example.question), example.images)
                for example in examples
            ],
        )
