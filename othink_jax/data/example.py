"""Examples: questions about images, and their answers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from PIL import Image

from othink_jax.config import DataConfig
from othink_jax.errors import UserError, quoted, writable
from othink_jax.rewards import AnswerFormat, RewardExample

# Place of an image in a question, if not all images go before it; as in EasyR1, verl and LLaVA
PLACEHOLDER = "<image>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One question with its images, its answer and a worked solution.

    Raises UserError if a text cannot be written as UTF-8. Texts go into logs, records and
    predictions, where a single unwritable one would lose all others.
    """

    id: str  # unique in its source
    images: tuple[Image.Image, ...]  # RGB, in the order the prompt shows them; may be empty
    # the bare question, no instruction about the form of the answer; the images go before it, or to
    # its `<image>` placeholders
    question: str
    answer: str  # ground truth: the text between the answer tags
    solution: str  # target of supervised fine-tuning: <think>...</think> <answer>...</answer>
    # further columns of its row that hold plain data, if they are read; see `RewardExample`
    columns: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("id", "question", "answer", "solution"):
            text = getattr(self, name)
            if writable(text) != text:
                raise UserError(f"its {name} is not UTF-8 text: {quoted(text)}")

    def for_rewards(
        self, shown_sizes: tuple[tuple[int, int], ...], answers: AnswerFormat
    ) -> RewardExample:
        """The example as reward functions see it: its texts as they are, sizes but no pixels.

        Args:
          shown_sizes: width and height of each image after resizing for the model, pixels.
          answers: how the answer of a completion is marked.
        """
        return RewardExample(
            question=self.question,
            answer=self.answer,
            solution=self.solution,
            columns=self.columns,
            image_sizes=tuple(image.size for image in self.images),
            shown_sizes=shown_sizes,
            answer_format=answers,
        )


def answer_format(config: DataConfig) -> AnswerFormat:
    """The answer format of a configuration.

    Raises:
      UserError: its tag or its pattern is invalid.
    """
    try:
        return AnswerFormat(config.answer_tag, config.answer_pattern)
    except ValueError as error:
        raise UserError(str(error)) from error


class UnreadableExample(UserError):
    """One example that cannot be used: training skips it, evaluation counts it as wrong."""

    def __init__(self, message: str, example: Example) -> None:
        """Args:
        message: which example, and what is wrong with it.
        example: its id, and as much of its texts as could be read; no images.
        """
        super().__init__(message)
        self.example = example


def solution_text(thought: str, answer: str) -> str:
    """A response in the form that the format reward expects."""
    return f"<think>{thought}</think> <answer>{answer}</answer>"
