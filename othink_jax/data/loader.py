"""Resumable streams of encoded prompts, prefetched by a background thread."""

import concurrent.futures
import dataclasses
import hashlib
import itertools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import grain
from PIL import Image

from othink_jax.data.example import PLACEHOLDER, Example, UnreadableExample
from othink_jax.data.mixture import Mixture
from othink_jax.data.processing import EncodedPrompt, Processor, system_turn
from othink_jax.data.sources import Source
from othink_jax.data.stream import Stream
from othink_jax.errors import UserError
from othink_jax.rewards import ANSWER_TAGS, AnswerFormat

_log = logging.getLogger(__name__)

Batch = tuple[list[Example], list[EncodedPrompt]]

# Give up after this many consecutive unusable examples.
_HOPELESS = 1000
# Skipped examples that the log names; further ones are only counted.
_NAMED = 10


@dataclasses.dataclass(frozen=True)
class _Skipped:
    """Stand-in for an unusable example in the stream."""

    index: int  # in the source
    cause: str
    message: str
    example: Example  # see `UnreadableExample`


_Item = tuple[Example, EncodedPrompt] | _Skipped


class _Encode:
    """Maps an example's index to its encoded prompt, or to the reason why there is none."""

    def __init__(
        self,
        source: Source,
        processor: Processor,
        *,
        template: str,
        system_prompt: str | None = None,
        answers: AnswerFormat = ANSWER_TAGS,
        max_prompt_tokens: int | None = None,
        max_completion_tokens: int | None = None,
    ) -> None:
        if system_prompt is not None:
            processor.check_system_prompt(system_prompt)
        self._source = source
        self._system_prompt = system_prompt
        self._answers = answers
        self._processor = processor
        self._template = template
        self._max_prompt_tokens = max_prompt_tokens
        self._max_completion_tokens = max_completion_tokens

    def __call__(self, index: int) -> _Item:
        try:
            example = self._source[index]
        except UnreadableExample as error:
            return _Skipped(index, "unreadable", str(error), error.example)
        text = self._template.replace("{question}", example.question)
        try:
            turns = _turn(text, example.images)
            if self._system_prompt is not None:
                turns = [system_turn(self._system_prompt), *turns]
            prompt = self._processor.encode_chat(turns)
            if self._max_completion_tokens is not None:
                solution = self._answers.written(example.solution)
                completion = self._processor.encode_answer(solution)
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


def _turn(text: str, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """One user turn: images at their placeholders in the text, or before a text without any."""
    parts = text.split(PLACEHOLDER)
    shown = [{"type": "image", "image": image} for image in images]
    if len(parts) == 1:
        content = [*shown, {"type": "text", "text": text}]
    elif len(parts) == len(images) + 1:
        texts = [{"type": "text", "text": part} for part in parts]
        mixed = itertools.chain.from_iterable(itertools.zip_longest(texts, shown))
        content = [part for part in mixed if part is not None and part.get("text") != ""]
    else:
        raise UserError(
            f"the prompt has {len(parts) - 1} {PLACEHOLDER} placeholder(s), but there are"
            f" {len(images)} image(s)"
        )
    return [{"role": "user", "content": content}]


def _ahead(numbers: grain.MapDataset, encode: _Encode, batch_size: int) -> grain.DatasetIterator:
    """Encode in one background thread, two batches ahead, so that host and device overlap."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_size)
    return iter(numbers.map(encode).to_iter_dataset(options))


@dataclasses.dataclass(frozen=True)
class _Finding:
    """Outcome of preparing one example, as the processes exchange it."""

    position: int  # in the global order of the run
    index: int  # in the source
    cause: str  # why the example is unusable; empty if it is usable
    text: str  # message for the cause; digest of a usable example


class _Prepared:
    """Encoded prompts by position in the global order of a run, prefetched by one thread."""

    def __init__(self, order: grain.MapDataset, encode: _Encode) -> None:
        self._order = order
        self._encode = encode
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._made: dict[int, concurrent.futures.Future[tuple[_Item, _Finding]]] = {}

    def begin(self, positions: Iterable[int]) -> None:
        """Submit these positions to the background thread."""
        for position in positions:
            if position not in self._made:
                self._made[position] = self._thread.submit(self._prepare, position)

    def __getitem__(self, position: int) -> tuple[_Item, _Finding]:
        self.begin([position])
        return self._made[position].result()

    def keep(self, first: int, last: int) -> None:
        """Drop all positions outside [first, last)."""
        self._made = {p: made for p, made in self._made.items() if first <= p < last}

    def close(self) -> None:
        """Shut the thread down and cancel queued positions."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, position: int) -> tuple[_Item, _Finding]:
        index = int(self._order[position])
        item = self._encode(index)
        if isinstance(item, _Skipped):
            return item, _Finding(position, index, item.cause, item.message)
        return item, _Finding(position, index, "", _digest(item[0]))


def _digest(example: Example) -> str:
    """SHA-256 of everything that a run reads of an example."""
    pictures = [
        f"{image.size} {hashlib.sha256(image.tobytes()).hexdigest()}" for image in example.images
    ]
    columns = [repr(example.columns)] if example.columns else []
    texts = (example.question, example.answer, example.solution)
    return _digest_of([*texts, *pictures, *columns])


def _digest_of(texts: Iterable[str]) -> str:
    made = hashlib.sha256()
    for text in texts:
        made.update(f"{len(text)} {text}".encode(errors="surrogatepass"))
    return made.hexdigest()


def _alone(value: Any) -> list[Any]:
    return [value]


class PromptLoader:
    """Endless shuffled batches of examples and their encoded prompts.

    The order is a function of the seed and changes every epoch; a batch may span two epochs.
    Unreadable and too long examples are skipped; no text is ever truncated. `skipped` counts each
    occurrence by cause. `left_out` lists each skipped example once, those of a `Stream` once an
    epoch. The log names the first ten of them.

    Each process of a run has its own block of rows of every batch. The processes exchange which
    examples are unusable, so the rows of a batch and their order do not depend on the number of
    processes.
    """

    skipped: Counter[str]  # counts of `unreadable` and `too_long` over all processes
    left_out: dict[int, str]  # reason by index in the source, since this loader was made

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
        system_prompt: str | None = None,
        answers: AnswerFormat = ANSWER_TAGS,
        share: tuple[int, int] = (0, 1),
        all_gather: Callable[[Any], list[Any]] = _alone,
    ) -> None:
        """Args:
          source: examples, not empty.
          processor: the model's.
          batch_size: prompts per batch over all processes.
          seed: of the shuffle, in [0, 2**32).
          template: text of the user's turn; {question} is replaced.
          max_prompt_tokens: skip longer prompts, image tokens included; None skips none.
          max_completion_tokens: encode solutions as completions and skip longer ones; None encodes
            none.
          system_prompt: text of a system turn before the user's; None leaves it to the chat
            template.
          answers: how encoded solutions mark their answers.
          share: index of this process and number of processes; the latter divides `batch_size`.
          all_gather: all-gather of JSON values in the order of the processes; required if there are
            several.

        Raises:
          ValueError: there are several processes, but `all_gather` is not given.
          UserError: the chat template does not show the system prompt.
        """
        if share[1] > 1 and all_gather is _alone:
            raise ValueError(f"{share[1]} processes need a way to exchange findings")
        self.skipped = Counter()
        self.left_out = {}
        self._size = len(source)
        self._batch_size = batch_size
        rows = batch_size // share[1]
        self._own = slice(share[0] * rows, (share[0] + 1) * rows)
        self._all_gather = all_gather
        self._position = 0  # of the next example, in the global order of the run
        self._begun = 0  # first position of the last batch
        self._digest = ""  # of the last batch; empty before the first
        self._source_digest = _digest_of(source.texts())
        order = grain.MapDataset.range(len(source))
        if isinstance(source, Stream):
            source = source.shuffled(seed)
        elif isinstance(source, Mixture):
            order = source.order(seed)
        else:
            order = order.shuffle(seed=seed).repeat()
        encode = _Encode(
            source,
            processor,
            template=template,
            system_prompt=system_prompt,
            answers=answers,
            max_prompt_tokens=max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
        )
        self._prepared = _Prepared(order, encode)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """This process's rows of the next batch.

        Raises:
          UserError: no example is usable, or none of a thousand in a row.
        """
        found: dict[int, _Finding] = {}
        while any(position not in found for position in self._chosen(found)):
            unknown = [position for position in self._of_own(found) if position not in found]
            self._prepared.begin(unknown)
            told = [dataclasses.astuple(self._prepared[position][1]) for position in unknown]
            for finding in itertools.starmap(_Finding, itertools.chain(*self._all_gather(told))):
                found[finding.position] = finding
            self._check_hope(found)
        chosen = self._chosen(found)
        batch = [self._prepared[position][0] for position in self._of_own(found)]
        for position in sorted(found):
            if found[position].cause:
                self._skip(found[position])
        self._digest = _digest_of(found[position].text for position in chosen)
        self._begun, self._position = self._position, chosen[-1] + 1
        self._look_ahead()
        return _columns([item for item in batch if not isinstance(item, _Skipped)])

    def _chosen(self, found: Mapping[int, _Finding]) -> list[int]:
        """Positions of the next batch; an example counts as usable until found otherwise."""
        usable = (
            position
            for position in itertools.count(self._position)
            if position not in found or not found[position].cause
        )
        return list(itertools.islice(usable, self._batch_size))

    def _of_own(self, found: Mapping[int, _Finding]) -> list[int]:
        return self._chosen(found)[self._own]

    def _look_ahead(self) -> None:
        """Prefetch two more batches, so that host and device overlap."""
        first, size = self._position, self._batch_size
        self._prepared.keep(first, first + 2 * size)
        for begin in (first, first + size):
            self._prepared.begin(range(begin, begin + size)[self._own])

    def _check_hope(self, found: Mapping[int, _Finding]) -> None:
        latest = (found[position] for position in sorted(found, reverse=True))
        in_a_row = list(itertools.takewhile(lambda finding: finding.cause, latest))
        useless = self.left_out.keys() | {finding.index for finding in in_a_row}
        if in_a_row and (len(useless) == self._size or len(in_a_row) >= _HOPELESS):
            raise UserError(
                f"{min(len(in_a_row), self._size)} examples in a row cannot be used; the last one:"
                f" {in_a_row[0].text}"
            )

    def _skip(self, finding: _Finding) -> None:
        self.skipped[finding.cause] += 1
        if finding.index not in self.left_out:
            self.left_out[finding.index] = finding.text
            if len(self.left_out) <= _NAMED:
                _log.warning("skipped %s", finding.text)

    def get_state(self) -> dict[str, Any]:
        """The position in the stream, as a JSON object; the same for all processes of a run."""
        return {
            "examples": self._size,
            "source": self._source_digest,
            "position": self._position,
            "begun": self._begun,
            "digest": self._digest,
            "skipped": dict(self.skipped),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Resume where `get_state` was called, with any number of processes.

        Two comparisons detect changed data: the texts of the whole data set (skipped for a
        stream), and the last batch, which is read again with its images.

        Raises:
          UserError: the data have changed or cannot be read.
        """
        same = [self._size, self._source_digest] == [state["examples"], state["source"]]
        if same and state["digest"]:  # a batch has been read
            self._position = state["begun"]
            next(self)
            same = [self._position, self._digest] == [state["position"], state["digest"]]
        if not same:
            raise UserError(
                "the data set is not what this run has read: its examples, their order or their"
                " images have changed"
            )
        self._position, self._begun = state["position"], state["begun"]
        self._digest = state["digest"]
        self.skipped = Counter(state["skipped"])

    def close(self) -> None:
        """Stop prefetching."""
        self._prepared.close()


def in_order(
    source: Source,
    processor: Processor,
    *,
    batch_size: int,
    template: str,
    system_prompt: str | None = None,
    max_prompt_tokens: int | None = None,
    unreadable: list[Example] | None = None,
) -> Iterator[tuple[int, Example, EncodedPrompt]]:
    """Every example once, in order, with its index in the source and its encoded prompt.

    Args:
      source, processor, template, system_prompt, max_prompt_tokens: see `PromptLoader`.
      batch_size: half the number of prompts that are prefetched.
      unreadable: list to which the examples that `PromptLoader` would skip are appended, for the
        caller to count; the log names the first ten. None raises at the first of them.

    Raises:
      UnreadableExample: an example is unusable, and `unreadable` is not given.
    """
    encode = _Encode(
        source,
        processor,
        template=template,
        system_prompt=system_prompt,
        max_prompt_tokens=max_prompt_tokens,
    )
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
