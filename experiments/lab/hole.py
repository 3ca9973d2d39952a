"""A reward with a known hole."""

import re

from othink_jax.rewards import RewardExample

_NUMBER = re.compile(r"\d+")


def mentions(text: str, example: RewardExample) -> bool:
    """Whether the true answer is anywhere among the numbers of a completion.

    The hole: a completion that counts through many numbers is sure to mention the right one, even
    if it answers with another.
    """
    return example.answer.strip() in _NUMBER.findall(text)
