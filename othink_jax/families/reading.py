"""Reading a config.json: checked entries, and the parts that the families share."""

from collections.abc import Mapping
from typing import Any

from othink_jax.errors import UserError
from othink_jax.model.config import TextConfig

TEXT_NAMES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
)
# Older files lack some of them.
VISION_NAMES = ("depth", "num_heads", "patch_size", "temporal_patch_size", "spatial_merge_size")
TOKEN_NAMES = (
    *("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
)


def object_of(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry that is a JSON object; an empty one if it is missing."""
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"config.json: {name} is no JSON object")
    return found


def flag(config: Mapping[str, Any], name: str) -> bool:
    """An entry that is true or false; false if it is missing."""
    found = config.get(name) or False
    if not isinstance(found, bool):
        raise UserError(f"config.json: {name} is {found!r}, neither true nor false")
    return found


def text_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The language model's entries, in the flat layout or the nested one."""
    return object_of(config, "text_config") or config


def rope_of(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The entries of rotary positions.

    Raises:
      UserError: an entry occurs in several places with different values.
    """
    text = text_of(config)
    places = [object_of(text, name) for name in ("rope_parameters", "rope_scaling")]
    _check_agreement(config, text, *places)
    return places[0] or places[1]


def _check_agreement(*places: Mapping[str, Any]) -> None:
    """Raise UserError if an entry occurs in several places with different values.

    Most files state each entry once. If two values differ, either could be stale: that of another
    model, whose weights have the same shapes but which computes other numbers.
    """
    for name in (*TEXT_NAMES, "head_dim", "rope_theta", "mrope_section"):
        stated = [place[name] for place in places if place.get(name) is not None]
        if any(value != stated[0] for value in stated):
            raise UserError(
                f"config.json says several things of {name}: {', '.join(map(str, stated))}"
            )


def read_text(config: Mapping[str, Any], *, head_dim: int, **parts: bool) -> TextConfig:
    """Read the config of the language model.

    Args:
      config: content of config.json, flat or nested.
      head_dim: width of a head.
      **parts: further settings of `TextConfig`.

    Raises:
      KeyError: an entry is missing.
      UserError: an entry is not a number, or occurs with different values.
    """
    text, rope = text_of(config), rope_of(config)
    theta = rope.get("rope_theta") or text["rope_theta"]
    if type(theta) not in (int, float):
        raise UserError(f"config.json: rope_theta is {theta!r}, not a number")
    return TextConfig(
        **{name: text[name] for name in TEXT_NAMES},
        head_dim=head_dim,
        rope_theta=float(theta),
        mrope_section=tuple(rope["mrope_section"]),
        **parts,
    )


def read_rest(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that join the towers: special tokens, and whether the embedding is the head."""
    return {
        # transformers 5 keeps the flag at the top level; older nested files, with the text.
        "tie_word_embeddings": flag(config, "tie_word_embeddings")
        or flag(text_of(config), "tie_word_embeddings"),
        **{name: config[name] for name in TOKEN_NAMES},
    }


def check_features(config: Mapping[str, Any], *, activation: str) -> None:
    """Raise UserError if a config.json asks for a feature that no family here has.

    Args:
      config: content of config.json.
      activation: activation of the vision tower's MLP.
    """
    text, rope = text_of(config), rope_of(config)
    if flag(text, "use_sliding_window"):
        raise UserError("config.json asks for sliding-window attention, which is not supported")
    for tower, wanted in ((text, "silu"), (object_of(config, "vision_config"), activation)):
        if tower.get("hidden_act", wanted) != wanted:
            raise UserError(f"config.json: hidden_act {tower['hidden_act']!r} is not {wanted!r}")
    # Before "rope_type" the key was "type"; the hub calls plain M-RoPE "mrope".
    for kind in (rope.get("type"), rope.get("rope_type")):
        if kind not in (None, "default", "mrope"):
            raise UserError(f"config.json: positions of type {kind!r} are not supported")
