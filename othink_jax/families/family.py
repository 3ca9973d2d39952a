"""The interface of a model family to the rest of the package."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from othink_jax.families.table import Entry
from othink_jax.model.config import VLMConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One model type of the hub, and its mapping to ours and back."""

    model_type: str  # name in config.json
    architecture: str  # the class in transformers
    # Reads a config.json without checking it. KeyError and TypeError are reported as a missing
    # entry
    read: Callable[[Mapping[str, Any]], VLMConfig]
    # Makes a config.json without `model_type` and `architectures`
    write: Callable[[VLMConfig], dict[str, Any]]
    entries: Callable[[VLMConfig], Iterable[Entry]]  # every tensor, in the hub's order
    # Settings that all models of the family share: of the vision tower, of the language model
    vision: Mapping[str, Any]
    text: Mapping[str, Any]
    timestamps: bool = False  # whether the text states the time of a video's frames
