"""What a source yields: a question about images, and its answer."""

import dataclasses

from PIL import Image


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One question with its images, its answer and a worked solution."""

    id: str  # unique in its source
    images: tuple[Image.Image, ...]  # RGB, in the order the prompt shows them; may be empty
    question: str  # the bare question, no instruction about the form of the answer
    answer: str  # ground truth, what stands between the answer tags
    solution: str  # what supervised fine-tuning learns: <think>...</think> <answer>...</answer>


def solution_text(thought: str, answer: str) -> str:
    """A response in the form that the format reward asks for."""
    return f"<think>{thought}</think> <answer>{answer}</answer>"
