"""Disjoint splits by construction: what a sample shows decides the split it belongs to.

A sample's content is a canonical text of what it is about, without what does not matter to its
answer (where things stand, how the question is put). A hash of the content names the one split that
may use it, so no content can occur in two splits, whatever the seeds and the sizes.
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
# The first of 0, 1, 2, ... that gives every kind of geometry figure, at the default difficulty, at
# least one validation and two test contents, and half of its own to train (some have only eight),
# and leaves no answer more than a tenth of the test questions or a fifth of the validation's.
_SALT = 4092
# A difficulty may leave a split no content at all; this many misses in a row are proof enough.
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
    """Draw proposals (content and whatever goes with it) until the content belongs to `split`.

    Raises:
        UserError: nothing that `propose` makes seems to belong to the split.
    """
    for _ in range(_MAX_PROPOSALS):
        content, made = propose(rng)
        if split_of(content) == split:
            return made
    raise UserError(f"this difficulty leaves the {split} split nothing to show: widen it")


def pick(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
    """One of `choices`, each as likely (ten times faster than `rng.choice`)."""
    return choices[int(rng.integers(len(choices)))]
