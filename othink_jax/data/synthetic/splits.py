"""Splits that are disjoint by construction: the content of a sample decides its split.

A sample's content is a canonical text of its subject, without details that do not matter to its
answer (positions of the things, wording of the question). A hash of the content names the one split
that may use it, so no content can occur in two splits, whatever the seeds and the sizes.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, get_args

import numpy as np

from othink_jax.errors import UserError

# `test-ood` is not hashed: its scenes are made of shapes that no other split has.
Split = Literal["train", "validation", "test", "test-ood"]
SPLITS: tuple[Split, ...] = get_args(Split)

_T = TypeVar("_T")

# Shares of the contents: train 70%, validation 10%, test 20%.
_TRAIN_BELOW, _VALIDATION_BELOW, _BUCKETS = 70, 80, 100
# The smallest salt for which, at the default difficulty, every kind of geometry figure has at least
# one validation content, two test contents and half of its contents in train (some kinds have only
# eight), and no answer has more than a tenth of the test questions or a fifth of the validation
# questions.
_SALT = 4092
# A difficulty may leave a split no content at all: give up after this many misses in a row.
_MAX_PROPOSALS = 10_000


def split_of(content: str) -> Split:
    """The one split that may use this content."""
    digest = hashlib.blake2b(f"{_SALT}:{content}".encode(), digest_size=8).digest()
    bucket = int.from_bytes(digest, "big") % _BUCKETS
    if bucket < _TRAIN_BELOW:
        return "train"
    return "validation" if bucket < _VALIDATION_BELOW else "test"


def draw(
    rng: np.random.Generator,
    split: Split,
    propose: Callable[[np.random.Generator], tuple[str, _T]],
) -> _T:
    """Draw proposals (content, payload) until a content is of `split`, and return its payload.

    Raises:
      UserError: none of `_MAX_PROPOSALS` proposals belongs to the split.
    """
    for _ in range(_MAX_PROPOSALS):
        content, made = propose(rng)
        if split_of(content) == split:
            return made
    raise UserError(f"this difficulty leaves the {split} split nothing to show: widen it")


def pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """A uniform draw from `choices` (ten times faster than `rng.choice`)."""
    return choices[int(rng.integers(len(choices)))]
