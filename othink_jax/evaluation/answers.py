"""The answers of a model to every question of a test set."""

import dataclasses
import functools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import EvaluateConfig
from othink_jax.data.example import Example, answer_format
from othink_jax.data.loader import in_order
from othink_jax.data.sources import Source
from othink_jax.errors import UserError
from othink_jax.evaluation.batches import Batch, Batches, Question
from othink_jax.evaluation.kept import Kept, answer
from othink_jax.evaluation.sampler import DoesNotFitError, Prompt, Sampler
from othink_jax.rewards import RewardExample
from othink_jax.sampling import prompt_keys
from othink_jax.training.parallel import Parallel

# Maximum number of questions too large for memory that the log names; others are only counted.
_NAMED = 10

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One completion of a test question."""

    number: int  # index of the question in its source
    sample: int = 0  # index of the completion among those of the question
    id: str
    question: str
    ground_truth: str
    model_output: str
    tokens: int  # length of the completion, its end-of-sequence token included
    finished: bool  # false if the length limit cut it
    readable: bool = True  # false if the question could not be read: no answer, counted as wrong
    example: RewardExample | None = None  # input of reward functions; None if not readable


def predict(
    checkpoint: Checkpoint, source: Source, config: EvaluateConfig, parallel: Parallel, kept: Kept
) -> list[Prediction]:
    """Answer every question of `source` `config.samples` times, except those already stored.

    An answer is stored as soon as it is generated. The samples of a question depend only on the
    seed, the batch size and the question's number, however batches are cut.

    Returns:
      Answers in the order of the source, those of a question consecutive. Questions that cannot be
      read (a broken image, a prompt that is too long) come last, unanswered, as many times each.

    Raises:
      UserError: a stored answer is to another question than the source's, or questions do not fit
        into memory. In the latter case, all others have been answered and stored.
    """
    batch_size = min(config.batch_size, len(source))
    batches = Batches(
        checkpoint.processor, checkpoint.config, batch_size=batch_size, shards=parallel.batch_shards
    )
    answering = _Answering(checkpoint, config, parallel, batch_size, kept)
    marked = answer_format(config.data)
    unreadable: list[Example] = []
    asked: dict[int, tuple[str, RewardExample]] = {}
    for batch in batches(_questions(checkpoint, source, config, batch_size, unreadable)):
        answering(batch)
        for question in batch.questions:  # keep no images: they take memory
            example, shown = question.example, checkpoint.processor.shown_sizes(question.prompt)
            asked[question.number] = example.id, example.for_rewards(shown, marked)
    if answering.too_large:
        raise UserError(answering.what_to_do(len(source)))
    left_out = (number for number in range(len(source)) if number not in asked)
    return [
        *(
            _answered(number, sample, *asked[number], completion)
            for number in sorted(asked)
            for sample, completion in enumerate(kept.completions(number))
        ),
        *(
            _unanswered(number, sample, example)
            for number, example in zip(left_out, unreadable, strict=True)
            for sample in range(config.samples)
        ),
    ]


def _questions(
    checkpoint: Checkpoint,
    source: Source,
    config: EvaluateConfig,
    batch_size: int,
    unreadable: list[Example],
) -> Iterator[Question]:
    for number, example, prompt in in_order(
        source,
        checkpoint.processor,
        batch_size=batch_size,
        template=config.data.template,
        system_prompt=config.data.system_prompt,
        max_prompt_tokens=config.data.max_prompt_tokens,
        unreadable=unreadable,
    ):
        yield Question(number=number, example=example, prompt=prompt)


class _Answering:
    """Answers batches, and stores the answers."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EvaluateConfig,
        parallel: Parallel,
        batch_size: int,
        kept: Kept,
    ) -> None:
        self.too_large: list[str] = []  # questions that do not fit into memory, and why
        self._sampler = Sampler(checkpoint, config.sampling, parallel, samples=config.samples)
        self._decode = checkpoint.processor.decode
        self._kept = kept
        self._batch_size = batch_size
        self._samples = config.samples
        self._keys = functools.lru_cache(lambda step: prompt_keys(config.seed, step, batch_size))

    def __call__(self, batch: Batch) -> None:
        digests = [question.digest for question in batch.questions]
        pairs = list(zip(batch.questions, digests, strict=True))
        if all(self._kept.holds(question.number, digest) for question, digest in pairs):
            return
        # The whole batch, so that it is the same as in an uninterrupted evaluation.
        prompts = [self._prompt(question) for question in batch.questions]
        for count, drawn in self._sampler(prompts, batch.pad, batch.rows):
            part, pairs = pairs[:count], pairs[count:]
            if isinstance(drawn, DoesNotFitError):
                self._leave_out([question for question, _ in part], drawn)
                continue
            # The padding rows of a batch have no question.
            rows = zip(part, drawn.tokens, drawn.mask, drawn.finished, strict=False)
            self._kept.add(
                [
                    answer(question.number, digest, self._completions(*drawn_row))
                    for (question, digest), *drawn_row in rows
                ]
            )

    def _completions(
        self, tokens: np.ndarray, mask: np.ndarray, finished: np.ndarray
    ) -> list[dict[str, Any]]:
        """Completions of a question as they are stored, from arrays [G, T] and [G]."""
        return [
            {
                "model_output": self._decode(row, real),
                "tokens": int(real.sum()),
                "finished": bool(whole),
            }
            for row, real, whole in zip(tokens, mask, finished, strict=True)
        ]

    def _prompt(self, question: Question) -> Prompt:
        step, row = divmod(question.number, self._batch_size)
        return Prompt(encoded=question.prompt, key=self._keys(step)[row])

    def _leave_out(self, questions: list[Question], reason: DoesNotFitError) -> None:
        for question in questions:
            self.too_large.append(f"{_size(question)}: {reason}")
            if len(self.too_large) <= _NAMED:
                _log.warning("does not fit into memory: %s", self.too_large[-1])

    def what_to_do(self, examples: int) -> str:
        """Error message about the questions that are too large."""
        count = len(self.too_large)
        fewer = ", and fewer --samples take less" if self._samples > 1 else ""
        return (
            f"{count} of {examples} questions {'does' if count == 1 else 'do'} not fit into memory,"
            f" such as {self.too_large[0]}. The other answers are kept: the same command goes on"
            " where there is more memory. --max-prompt-tokens counts long prompts as answered"
            f" wrongly; --max-pixels makes images smaller{fewer}, for another --out"
        )


def _size(question: Question) -> str:
    images = [f"an image of {image.width}x{image.height}" for image in question.example.images]
    sizes = [f"{len(question.prompt.tokens)} prompt tokens", *images]
    return f"{question.example.id} ({', '.join(sizes)})"


def _answered(
    number: int, sample: int, identifier: str, example: RewardExample, completion: dict[str, Any]
) -> Prediction:
    return Prediction(
        number=number,
        sample=sample,
        id=identifier,
        question=example.question,
        ground_truth=example.answer,
        example=example,
        **completion,
    )


def _unanswered(number: int, sample: int, example: Example) -> Prediction:
    return Prediction(
        number=number,
        sample=sample,
        id=example.id,
        question=example.question,
        ground_truth=example.answer,
        model_output="",
        tokens=0,
        finished=True,
        readable=False,
    )
