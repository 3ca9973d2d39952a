"""The Hugging Face config.json of a Qwen2-VL or Qwen2.5-VL, read and written."""

from collections.abc import Mapping
from typing import Any

from othink_jax.errors import UserError
from othink_jax.model.config import Qwen2VLConfig, TextConfig, VisionConfig, WindowsConfig

QWEN2_VL, QWEN2_5_VL = "qwen2_vl", "qwen2_5_vl"  # as `model_type` names them
_ARCHITECTURES = {
    QWEN2_VL: "Qwen2VLForConditionalGeneration",
    QWEN2_5_VL: "Qwen2_5_VLForConditionalGeneration",
}
_VISION_ACTIVATIONS = {QWEN2_VL: "quick_gelu", QWEN2_5_VL: "silu"}
_TEXT_NAMES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
)
# Those that both model types have; in older files not all of them stand.
_VISION_NAMES = ("depth", "num_heads", "patch_size", "temporal_patch_size", "spatial_merge_size")
_TOKEN_NAMES = (
    *("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
)


def from_hf(config: Mapping[str, Any]) -> Qwen2VLConfig:
    """Read a config.json, in the flat layout of the hub or the nested one of transformers 5.

    Raises:
      UserError: another model type, a missing entry, or a feature that the models lack.
    """
    model_type = config.get("model_type")
    if model_type not in _ARCHITECTURES:
        raise UserError(
            f"config.json is of model_type {model_type!r}; those that work are"
            f" {' and '.join(map(repr, _ARCHITECTURES))}"
        )
    text = _object(config, "text_config") or config
    vision = _object(config, "vision_config")
    rope = _object(text, "rope_parameters") or _object(text, "rope_scaling")
    _check_agreement(config, text, _object(text, "rope_parameters"), _object(text, "rope_scaling"))
    try:
        made = Qwen2VLConfig(
            text=TextConfig(
                **{name: text[name] for name in _TEXT_NAMES},
                rope_theta=_number(rope.get("rope_theta") or text["rope_theta"], "rope_theta"),
                mrope_section=tuple(rope["mrope_section"]),
            ),
            vision=_vision_from_hf(vision, model_type),
            # transformers 5 keeps the flag at the top; older nested files, with the text.
            tie_word_embeddings=_flag(config, "tie_word_embeddings")
            or _flag(text, "tie_word_embeddings"),
            **{name: config[name] for name in _TOKEN_NAMES},
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"config.json lacks an entry of {model_type}: {error}") from error
    _check_features(text, vision, rope, _VISION_ACTIVATIONS[model_type])
    made.check()
    return made


def _object(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry that is an object itself; an empty one if it is not there."""
    found = config.get(name) or {}
    if not isinstance(found, Mapping):
        raise UserError(f"config.json: {name} is no JSON object")
    return found


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float):
        raise UserError(f"config.json: {name} is {value!r}, not a number")
    return float(value)


def _flag(config: Mapping[str, Any], name: str) -> bool:
    found = config.get(name) or False
    if not isinstance(found, bool):
        raise UserError(f"config.json: {name} is {found!r}, neither true nor false")
    return found


def _check_agreement(*places: Mapping[str, Any]) -> None:
    """Raise UserError where an entry stands in several places and is not the same in all.

    Most files have each once. Whichever was taken could be a stale one, of a model whose weights
    have the same shapes and whose numbers are others.
    """
    for name in (*_TEXT_NAMES, "rope_theta", "mrope_section"):
        stated = [place[name] for place in places if place.get(name) is not None]
        if any(value != stated[0] for value in stated):
            raise UserError(
                f"config.json says several things of {name}: {', '.join(map(str, stated))}"
            )


def _vision_from_hf(vision: Mapping[str, Any], model_type: str) -> VisionConfig:
    common = {name: vision[name] for name in _VISION_NAMES if name in vision}
    common["in_channels"] = vision.get("in_channels", vision.get("in_chans", 3))
    if model_type == QWEN2_VL:
        return VisionConfig(
            **common,
            embed_dim=vision["embed_dim"],
            intermediate_size=vision["embed_dim"] * vision["mlp_ratio"],
            hidden_size=vision["hidden_size"],
        )
    return VisionConfig(
        **common,
        embed_dim=vision["hidden_size"],
        intermediate_size=vision["intermediate_size"],
        hidden_size=vision["out_hidden_size"],
        windows=WindowsConfig(
            window_size=vision["window_size"],
            full_layers=tuple(vision["fullatt_block_indexes"]),
            tokens_per_second=vision["tokens_per_second"],
        ),
    )


def _check_features(
    text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any], activation: str
) -> None:
    if _flag(text, "use_sliding_window"):
        raise UserError("config.json asks for sliding-window attention, which is not supported")
    for tower, wanted in ((text, "silu"), (vision, activation)):
        if tower.get("hidden_act", wanted) != wanted:
            raise UserError(f"config.json: hidden_act {tower['hidden_act']!r} is not {wanted!r}")
    # Before "rope_type" the key was "type"; the hub calls plain M-RoPE "mrope".
    for kind in (rope.get("type"), rope.get("rope_type")):
        if kind not in (None, "default", "mrope"):
            raise UserError(f"config.json: positions of type {kind!r} are not supported")


def to_hf(config: Qwen2VLConfig) -> dict[str, Any]:
    """The hub's flat layout, which transformers loads too. Raises UserError as `check` does."""
    config.check()
    text = {name: getattr(config.text, name) for name in _TEXT_NAMES}
    model_type = QWEN2_VL if config.vision.windows is None else QWEN2_5_VL
    return {
        "architectures": [_ARCHITECTURES[model_type]],
        "model_type": model_type,
        **text,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rope_theta": config.text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(config.text.mrope_section)},
        "use_sliding_window": False,
        "tie_word_embeddings": config.tie_word_embeddings,
        **{name: getattr(config, name) for name in _TOKEN_NAMES},
        "vision_config": {
            **_vision_to_hf(config.vision),
            "model_type": model_type,
            "in_chans": config.vision.in_channels,
            "hidden_act": _VISION_ACTIVATIONS[model_type],
        },
    }


def _vision_to_hf(vision: VisionConfig) -> dict[str, Any]:
    common = {name: getattr(vision, name) for name in _VISION_NAMES}
    if vision.windows is None:
        return common | {
            "embed_dim": vision.embed_dim,
            "mlp_ratio": vision.intermediate_size // vision.embed_dim,
            "hidden_size": vision.hidden_size,
        }
    return common | {
        "hidden_size": vision.embed_dim,
        "intermediate_size": vision.intermediate_size,
        "out_hidden_size": vision.hidden_size,
        "window_size": vision.windows.window_size,
        "fullatt_block_indexes": list(vision.windows.full_layers),
        "tokens_per_second": vision.windows.tokens_per_second,
    }
