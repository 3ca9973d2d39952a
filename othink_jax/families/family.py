"""What a model family is to the rest of the package."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from othink_jax.families.table import Entry
from othink_jax.model.config import VLMConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One model type of the hub: how it maps to ours, and back."""

    model_type: str  # as config.json names it
    architecture: str  # the class in transformers
    # The shape that a config.json describes, not checked. KeyError and TypeError are taken for a
    # missing entry
    read: Callable[[Mapping[str, Any]], VLMConfig]
    # A config.json without `model_type` and `architectures`
    write: Callable[[VLMConfig], dict[str, Any]]
    entries: Callable[[VLMConfig], Iterable[Entry]]  # every tensor, in the hub's order
    # Of the vision tower and of the language model: parts that all shapes of the family have
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    timestamps: bool = False  # whether the time of a video's frames stands in the text
