"""The shape of a Qwen2-VL or Qwen2.5-VL."""

import dataclasses
import math

from othink_jax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """What the vision tower of Qwen2.5-VL has beside that of Qwen2-VL: attention inside windows."""

    window_size: int  # side of a window, pixels
    full_layers: tuple[int, ...]  # numbers of the layers that attend to the whole image
    tokens_per_second: int  # M-RoPE positions that a second of a video takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower."""

    depth: int  # layers
    embed_dim: int  # width
    intermediate_size: int  # width of the MLP
    num_heads: int
    hidden_size: int  # width of what the merger puts out: that of the text tower
    in_channels: int = 3
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames
    spatial_merge_size: int = 2  # patches along each side of a merge window
    windows: WindowsConfig | None = None  # of Qwen2.5-VL, whose layers are others too; else None

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
        """Width of an attention head."""
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

    def check(self) -> None:
        """Raise UserError if there is no model of this shape."""
        self._check_numbers()
        self._check_sizes()

    def _check_numbers(self) -> None:
        text = self.text
        for name in ("rope_theta", "rms_norm_eps"):
            value = getattr(text, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise UserError(f"config.json: {name} is {value!r}, not a positive number")
        whole = {
            "mrope_section": text.mrope_section,
            "fullatt_block_indexes": self.vision.windows.full_layers if self.vision.windows else (),
            "a token's id": (
                *(self.image_token_id, self.video_token_id),
                *(self.vision_start_token_id, self.vision_end_token_id),
            ),
        }
        for name, values in whole.items():
            if not all(type(value) is int and value >= 0 for value in values):
                raise UserError(f"config.json: {name} is no whole number: {values}")
        towers: list[TextConfig | VisionConfig | WindowsConfig] = [self.text, self.vision]
        if self.vision.windows is not None:
            towers.append(self.vision.windows)
        wrong = [
            f"{field.name} is {getattr(tower, field.name)!r}"
            for tower in towers
            for field in dataclasses.fields(tower)
            if field.type is int
            and not (type(getattr(tower, field.name)) is int and getattr(tower, field.name) > 0)
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
            f"vision: a width of {vision.embed_dim} is not a multiple of 4 * num_heads": (
                vision.embed_dim % (4 * vision.num_heads)
            ),
            f"vision: hidden_size {vision.hidden_size} is not the text's {text.hidden_size}": (
                vision.hidden_size != text.hidden_size
            ),
            f"mrope_section {text.mrope_section} has not three numbers": (
                len(text.mrope_section) != 3
            ),
            "fullatt_block_indexes names a layer that is not there": (
                vision.windows is not None
                and any(layer >= vision.depth for layer in vision.windows.full_layers)
            ),
            # The file has the quotient only.
            "vision: the MLP's width is not a multiple of the tower's": (
                vision.windows is None and vision.intermediate_size % vision.embed_dim
            ),
            "vision: window_size is not a multiple of a merge window": (
                vision.windows is not None
                and vision.windows.window_size % (vision.patch_size * vision.spatial_merge_size)
            ),
        }
        found = [fault for fault, wrong in faults.items() if wrong]
        if found:
            raise UserError(f"config.json: {'; '.join(found)}")
