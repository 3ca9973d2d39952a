"""Model families: how the config.json and the tensors of each map to ours, and back.

A family is a module that defines a `Family`, and an entry of `FAMILIES`. Its parts are settings of
`model.config`. A part that no family has yet must first be added to `model`.
"""

from collections.abc import Mapping
from typing import Any

from othink_jax.errors import UserError
from othink_jax.families.family import Family
from othink_jax.families.qwen2 import QWEN2_5_VL, QWEN2_VL
from othink_jax.families.qwen3 import QWEN3_VL
from othink_jax.families.table import HEAD, Entry
from othink_jax.model.config import VLMConfig

__all__ = ["FAMILIES", "HEAD", "Entry", "Family", "entries", "family_of", "from_hf", "to_hf"]

FAMILIES: Mapping[str, Family] = {
    family.model_type: family for family in (QWEN2_VL, QWEN2_5_VL, QWEN3_VL)
}


def family_of(config: VLMConfig) -> Family:
    """The family of a model config."""
    return FAMILIES[config.model_type]


def from_hf(config: Mapping[str, Any]) -> VLMConfig:
    """Read a config.json, in the flat layout of the hub or the nested one of transformers 5.

    Raises:
      UserError: unknown model type, missing entry, or a feature that the models lack.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise UserError(
            f"config.json is of model_type {config.get('model_type')!r}; those that work are"
            f" {', '.join(map(repr, FAMILIES))}"
        )
    try:
        made = FAMILIES[model_type].read(config)
    except (KeyError, TypeError) as error:
        raise UserError(f"config.json lacks an entry of {model_type}: {error}") from error
    made.check()
    return made


def to_hf(config: VLMConfig) -> dict[str, Any]:
    """The config.json in the hub's layout, which transformers also loads.

    Raises:
      UserError: the config is invalid, or its family has no such model.
    """
    config.check()
    family = family_of(config)
    for part, wanted in ((config.text, family.text), (config.vision, family.vision)):
        wrong = [name for name, value in wanted.items() if getattr(part, name) != value]
        if wrong:
            raise UserError(f"no {family.model_type} has {', '.join(wrong)} as this shape does")
    return {
        "architectures": [family.architecture],
        "model_type": family.model_type,
        **family.write(config),
    }


def entries(config: VLMConfig) -> list[Entry]:
    """Every tensor of a model with this config, in the hub's layout and order."""
    return list(family_of(config).entries(config))
