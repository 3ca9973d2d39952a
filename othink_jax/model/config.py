"""The shape of a Qwen2-VL, read from and written to the Hugging Face config.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from othink_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower."""

    depth: int  # layers
    embed_dim: int  # width
    num_heads: int
    mlp_ratio: int  # width of the MLP over the width of the tower
    hidden_size: int  # width of what the merger puts out: that of the text tower
    in_channels: int = 3
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames
    spatial_merge_size: int = 2  # patches along each side of a merge window

    @property
    def patch_dim(self) -> int:
        """Numbers of a patch (C)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The language model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float
    mrope_section: tuple[int, int, int]  # rotary frequencies for time, height, width
    rms_norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen2VLConfig:
    """Both towers and the tokens that join them."""

    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> "Qwen2VLConfig":
        """Read a config.json, in the flat layout of the hub or the nested one of transformers 5.

        Raises:
          UserError: another model type, a missing entry, or a feature that Qwen2-VL lacks.
        """
        if config.get("model_type") != "qwen2_vl":
            raise UserError(
                f"config.json is of model_type {config.get('model_type')!r}; only 'qwen2_vl' works"
            )
        text = config.get("text_config") or config
        vision = config.get("vision_config") or {}
        rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
        try:
            made = cls(
                text=TextConfig(
                    **{name: text[name] for name in _TEXT_NAMES},
                    rope_theta=float(rope.get("rope_theta") or text["rope_theta"]),
                    mrope_section=tuple(rope["mrope_section"]),
                ),
                vision=VisionConfig(
                    **{name: vision[name] for name in _VISION_NAMES if name in vision},
                    in_channels=vision.get("in_channels", vision.get("in_chans", 3)),
                ),
                # transformers 5 keeps the flag at the top; older nested files, with the text.
                tie_word_embeddings=bool(
                    config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
                ),
                **{name: config[name] for name in _TOKEN_NAMES},
            )
        except (KeyError, TypeError) as error:
            raise UserError(f"config.json lacks an entry of Qwen2-VL: {error}") from error
        made._check_features(text, vision, rope)
        made._check_numbers()
        made._check_sizes()
        return made

    def _check_features(
        self, text: Mapping[str, Any], vision: Mapping[str, Any], rope: Mapping[str, Any]
    ) -> None:
        if text.get("use_sliding_window"):
            raise UserError("config.json asks for sliding-window attention, which is not supported")
        for tower, wanted in ((text, "silu"), (vision, "quick_gelu")):
            if tower.get("hidden_act", wanted) != wanted:
                raise UserError(
                    f"config.json: hidden_act {tower['hidden_act']!r} is not {wanted!r}"
                )
        # Before "rope_type" the key was "type"; the hub calls plain M-RoPE "mrope".
        for kind in (rope.get("type"), rope.get("rope_type")):
            if kind not in (None, "default", "mrope"):
                raise UserError(f"config.json: positions of type {kind!r} are not supported")

    def _check_numbers(self) -> None:
        wrong = [
            f"{field.name} is {getattr(tower, field.name)!r}"
            for tower in (self.text, self.vision)
            for field in dataclasses.fields(tower)
            if field.type is int
            and not (isinstance(getattr(tower, field.name), int) and getattr(tower, field.name) > 0)
        ]
        if wrong:
            raise UserError(f"config.json: not a positive whole number: {', '.join(wrong)}")

    def _check_sizes(self) -> None:
        text, vision = self.text, self.vision
        faults = {
            "hidden_size is not a multiple of num_attention_heads": (
                text.hidden_size % text.num_attention_heads
            ),
            "num_attention_heads is not a multiple of num_key_value_heads": (
                text.num_attention_heads % text.num_key_value_heads
            ),
            f"mrope_section {text.mrope_section} does not add up to half the head dimension"
            f" {text.head_dim}": 2 * sum(text.mrope_section) != text.head_dim,
            # A quarter of a head's numbers turn with the row, as many with the column, in pairs.
            "vision: embed_dim is not a multiple of 4 * num_heads": (
                vision.embed_dim % (4 * vision.num_heads)
            ),
            f"vision: hidden_size {vision.hidden_size} is not the text's {text.hidden_size}": (
                vision.hidden_size != text.hidden_size
            ),
        }
        found = [fault for fault, wrong in faults.items() if wrong]
        if found:
            raise UserError(f"config.json: {'; '.join(found)}")

    def to_hf(self) -> dict[str, Any]:
        """The hub's flat layout, which transformers loads too."""
        text = {name: getattr(self.text, name) for name in _TEXT_NAMES}
        vision = {name: getattr(self.vision, name) for name in _VISION_NAMES}
        return {
            "architectures": ["Qwen2VLForConditionalGeneration"],
            "model_type": "qwen2_vl",
            **text,
            "hidden_act": "silu",
            "max_position_embeddings": 32768,
            "rope_theta": self.text.rope_theta,
            "rope_scaling": {"type": "mrope", "mrope_section": list(self.text.mrope_section)},
            "use_sliding_window": False,
            "tie_word_embeddings": self.tie_word_embeddings,
            **{name: getattr(self, name) for name in _TOKEN_NAMES},
            "vision_config": {
                **vision,
                "model_type": "qwen2_vl",
                "in_chans": self.vision.in_channels,
                "hidden_act": "quick_gelu",
            },
        }


_TEXT_NAMES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "rms_norm_eps"),
)
_VISION_NAMES = (
    *("depth", "embed_dim", "num_heads", "mlp_ratio", "hidden_size", "patch_size"),
    *("temporal_patch_size", "spatial_merge_size"),
)
_TOKEN_NAMES = (
    *("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"),
)
