"""What a source yields: a question about images, and its answer."""

import dataclasses

from PIL import Image

from othink_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One question with its images, its answer and a worked solution."""

    id: str  # unique in its source
    images: tuple[Image.Image, ...]  # RGB, in the order the prompt shows them; may be empty
    question: str  # the bare question, no instruction about the form of the answer
    answer: str  # ground truth, what stands between the answer tags
    solution: str  # what supervised fine-tuning learns: <think>...</think> <answer>...</answer>


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
    """A response in the form that the format reward asks for."""
    return f"<think>{thought}</think> <answer>{answer}</answer>"
