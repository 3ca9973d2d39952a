"""Rewards for choices, words and numbers, and penalties for long or repetitive texts."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from othink_jax.rewards.answers import read_answer
from othink_jax.rewards.functions import RewardExample

_CHOICE = re.compile(r"(?:\(([A-Za-z])\)[.:]?|([A-Za-z])(?:[.:)]|$))\s*(.*)", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d{1,15})(?:\.\d{1,15})?|[-+]?\.\d{1,15}")
_LONG = 1000  # characters that cost a whole point
_WORDS = 3  # words of an n-gram of `repetition`


def choice(text: str, example: RewardExample) -> float:
    """1.0 if the answer names the right choice by its letter or its text, else 0.0.

    The column `choices` or `options` holds the texts: a list, or a dict by letters. Without such a
    column, letters are compared with letters and texts with texts. An answer is wrong if its letter
    and its text belong to different choices. Case and white space do not count.
    """
    given = example.answer_in(text)
    options = _options(example.columns)
    wanted = _chosen(example.answer, options)
    if wanted is None:
        raise ValueError(f"the truth {example.answer!r} is none of the choices")
    return float(given is not None and _chosen(given, options) == wanted)


def _options(columns: Mapping[str, Any]) -> dict[str, str]:
    """Texts of the choices by capital letter; empty if no column has them."""
    held = columns.get("choices", columns.get("options"))
    if held is None:
        return {}
    if isinstance(held, list):
        held = {chr(ord("A") + number): text for number, text in enumerate(held)}
    if not isinstance(held, dict):
        raise ValueError(f"the choices must be a list or a dict, and are {type(held).__name__}")
    if not all(isinstance(text, str | int | float) for text in held.values()):
        raise ValueError("each of the choices must be a text or a number")
    return {str(letter).upper(): _plain(str(text)) for letter, text in held.items()}


def _chosen(text: str, options: Mapping[str, str]) -> str | None:
    """Letter of the choice that a text names, or the text if there are no letters; else None."""
    for letter, option in options.items():
        if _plain(text) == option:
            return letter
    match = _CHOICE.fullmatch(text.strip())
    letter = (match[1] or match[2]).upper() if match else read_answer(text).choice
    if not letter:
        return None if options else _plain(text)
    rest = _plain(match[3]) if match else ""
    if options and (letter not in options or rest not in ("", options[letter])):
        return None
    return letter


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def anls(text: str, example: RewardExample) -> float:
    """Similarity of the answer to the truth, 1 - edits / length, and 0 up to one half; 0 to 1.

    The metric of scene-text and document question answering (arXiv 1905.13648, Eq. 1): Levenshtein
    distance over the length of the longer text. Case and white space do not count. If the column
    `answers` holds a list of truths, the nearest counts; else the example's answer is the truth.
    """
    given = example.answer_in(text)
    if given is None:
        return 0.0
    truths = example.columns.get("answers") or [example.answer]
    if not isinstance(truths, list):
        raise ValueError(f"the column answers must be a list, and is {type(truths).__name__}")
    return max(_similarity(_plain(given), _plain(str(truth))) for truth in truths)


def _similarity(a: str, b: str) -> float:
    longest = max(len(a), len(b))
    # The distance is at least the difference of the lengths.
    if 2 * abs(len(a) - len(b)) >= longest > 0:
        return 0.0
    similar = 1 - _edits(a, b) / max(longest, 1)
    return similar if similar > 0.5 else 0.0


def _edits(a: str, b: str) -> int:
    """Levenshtein distance: characters to insert, delete or replace."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]


def relaxed_accuracy(text: str, example: RewardExample) -> float:
    """1.0 if a number lies within 5% of the truth, or a text equals the truth, else 0.0.

    The metric of chart question answering (ChartQA, arXiv 2203.10244). A percentage counts as its
    number divided by 100; only 0 is within 5% of 0.
    """
    given = example.answer_in(text)
    if given is None:
        return 0.0
    number, truth = _number(given), _number(example.answer)
    if number is None or truth is None:
        return float(_plain(given) == _plain(example.answer))
    # A small tolerance: exactly 5% in decimal can be more in binary.
    return float(abs(number - truth) <= 0.05 * abs(truth) * (1 + 1e-9))


def _number(text: str) -> float | None:
    text = text.strip()
    value = text.removesuffix("%").rstrip()
    if not _NUMBER.fullmatch(value):
        return None
    number = float(value.replace(",", ""))
    return number / 100 if text.endswith("%") else number


def length(text: str, example: RewardExample) -> float:
    """A penalty for long texts: -1 for a thousand characters or more, proportional below; -1 to 0.

    For a penalty on token counts near their limit, use `--overlong-cache`.
    """
    return -min(1.0, len(text) / _LONG)


def repetition(text: str, example: RewardExample) -> float:
    """A penalty for repetitive texts: minus the share of repeated word trigrams; -1 to 0.

    The n-gram penalty of arXiv 2502.03373 over the whole text. Words are split at white space; case
    does not count.
    """
    words = text.lower().split()
    runs = [tuple(words[i : i + _WORDS]) for i in range(len(words) - _WORDS + 1)]
    return len(set(runs)) / len(runs) - 1 if runs else 0.0


def _penalty(function: Any) -> Any:
    function.maximum = 0.0
    return function


TEXT_REWARDS: Mapping[str, Callable[[str, RewardExample], float]] = {
    "choice": choice,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "length": _penalty(length),
    "repetition": _penalty(repetition),
}
