"""Streams of encoded prompts, made ahead in the background, whose position can be stored."""

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


_Item = tuple[Example, EncodedPrompt] | _Skipped


class _Encode:
    """Example number -> encoded prompt, or the reason why there is none."""

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
    """One user turn: the images before the text, or each where the text has a placeholder."""
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
    """Encode by one background thread, two batches ahead: the device works while the host does."""
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2 * batch_size)
    return iter(numbers.map(encode).to_iter_dataset(options))


@dataclasses.dataclass(frozen=True)
class _Finding:
    """What a process tells the others of an example that it has prepared."""

    position: int  # in the order of the whole run
    index: int  # in the source
    cause: str  # why the example cannot be used; empty if it can
    text: str  # the message that goes with the cause; of a usable example, its digest


class _Prepared:
    """Encoded prompts by their position in the order of a run, made ahead by one thread."""

    def __init__(self, order: grain.MapDataset, encode: _Encode) -> None:
        self._order = order
        self._encode = encode
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._made: dict[int, concurrent.futures.Future[tuple[_Item, _Finding]]] = {}

    def begin(self, positions: Iterable[int]) -> None:
        """Have these positions prepared in the background."""
        for position in positions:
            if position not in self._made:
                self._made[position] = self._thread.submit(self._prepare, position)

    def __getitem__(self, position: int) -> tuple[_Item, _Finding]:
        self.begin([position])
        return self._made[position].result()

    def keep(self, first: int, last: int) -> None:
        """Forget all positions but those from `first` up to `last`, which is not kept."""
        self._made = {p: made for p, made in self._made.items() if first <= p < last}

    def close(self) -> None:
        """Prepare nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, position: int) -> tuple[_Item, _Finding]:
        index = int(self._order[position])
        item = self._encode(index)
        if isinstance(item, _Skipped):
            return item, _Finding(position, index, item.cause, item.message)
        return item, _Finding(position, index, "", _digest(item[0]))


def _digest(example: Example) -> str:
    """A fingerprint of all that a run reads of an example."""
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
    """Shuffled batches of examples and their encoded prompts, without an end.

    The order is a function of the seed, another one each epoch; a batch may span two epochs.
    Examples that cannot be read and those that are too long are skipped, counted in `skipped` by
    cause (each time they come up), listed in `left_out`, and named in the log once (those of a
    `Stream` once an epoch), the first ten of them; no text is ever cut.

    Each process of a run has its own block of rows of every batch. The processes tell each other
    which examples cannot be used, so the rows of a batch are the same, in the same order, however
    many processes there are.
    """

    skipped: Counter[str]  # `unreadable` and `too_long`, of all processes
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
        system_prompt: str | None = None,
        answers: AnswerFormat = ANSWER_TAGS,
        share: tuple[int, int] = (0, 1),
        exchange: Callable[[Any], list[Any]] = _alone,
    ) -> None:
        """Args:
        source: of examples, not empty.
        processor: of the model.
        batch_size: prompts of a batch, of all processes.
        seed: of the order, in [0, 2**32).
        template: the user's words; {question} is replaced.
        max_prompt_tokens: longer prompts, image tokens included, are skipped; None skips none.
        max_completion_tokens: the examples' solutions are encoded as completions, and longer ones
            skipped; None encodes none.
        system_prompt: the system's turn before the user's; None leaves it to the chat template.
        answers: how the answers of solutions are marked.
        share: this is process `share[0]` of `share[1]`, a divisor of `batch_size`.
        exchange: gives the JSON values that all processes call it with, in their order; needed
          where there are several.

        Raises:
          ValueError: several processes without `exchange`.
          UserError: the chat template shows no system prompt.
        """
        if share[1] > 1 and exchange is _alone:
            raise ValueError(f"{share[1]} processes need a way to exchange findings")
        self.skipped = Counter()
        self.left_out = {}
        self._size = len(source)
        self._batch_size = batch_size
        rows = batch_size // share[1]
        self._own = slice(share[0] * rows, (share[0] + 1) * rows)
        self._exchange = exchange
        self._position = 0  # of the next example, in the order of the whole run
        self._begun = 0  # where the last batch began
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
          UserError: not one example can be used, or not one of a thousand in a row.
        """
        found: dict[int, _Finding] = {}
        while any(position not in found for position in self._chosen(found)):
            unknown = [position for position in self._of_own(found) if position not in found]
            self._prepared.begin(unknown)
            told = [dataclasses.astuple(self._prepared[position][1]) for position in unknown]
            for finding in itertools.starmap(_Finding, itertools.chain(*self._exchange(told))):
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
        """Positions of the next batch, as far as is known which examples can be used."""
        usable = (
            position
            for position in itertools.count(self._position)
            if position not in found or not found[position].cause
        )
        return list(itertools.islice(usable, self._batch_size))

    def _of_own(self, found: Mapping[int, _Finding]) -> list[int]:
        return self._chosen(found)[self._own]

    def _look_ahead(self) -> None:
        """Have two more batches prepared: the device works while the host does."""
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
        """Go on where `get_state` was called, with any number of processes.

        The texts of the whole data set are compared, unless it is a stream, and the last batch
        before it, which is read again, images and all.

        Raises:
          UserError: it is not what it was, or cannot be read.
        """
        read = [state[name] for name in ("examples", "source", "position", "digest")]
        if state["digest"]:
            self._position = state["begun"]
            next(self)
            if [self._size, self._source_digest, self._position, self._digest] != read:
                raise UserError(
                    "the data set is not what this run has read: its examples, their order or"
                    " their images have changed"
                )
        self._position, self._begun = state["position"], state["begun"]
        self._digest = state["digest"]
        self.skipped = Counter(state["skipped"])

    def close(self) -> None:
        """Prepare nothing more."""
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
    """Every example once, in order, with its number in the source and its encoded prompt.

    Args:
      source, processor, template, system_prompt, max_prompt_tokens: as of `PromptLoader`.
      batch_size: two times so many are prepared ahead.
      unreadable: examples that cannot be used, as those that `PromptLoader` skips, are appended
        here for the caller to count, and the first ten are named in the log; without it, the first
        of them is an error.

    Raises:
      UnreadableExample: an example cannot be used, and `unreadable` is not given.
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
