"""Architecture of a vision-language model of the Qwen families: sizes and optional parts."""

import dataclasses
import math
from typing import Literal

from othink_jax.errors import UserError

Norm = Literal["layer", "rms"]
# GELU as CLIP approximates it, GELU approximated by a tanh, or a gated MLP.
VisionMLP = Literal["quick_gelu", "gelu_tanh", "swiglu"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowsConfig:
    """Window attention of most vision layers, in square windows of an image (Qwen2.5-VL)."""

    window_size: int  # side of a window, pixels
    full_layers: tuple[int, ...]  # indices of the layers that attend to the whole image


@dataclasses.dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """The vision tower."""

    depth: int  # layers
    embed_dim: int  # width
    intermediate_size: int  # width of the MLP
    num_heads: int
    hidden_size: int  # output width of a merger; equals the width of the text tower
    in_channels: int = 3
    patch_size: int = 14  # pixels
    temporal_patch_size: int = 2  # frames
    spatial_merge_size: int = 2  # patches along each side of a merge window
    norm: Norm = "layer"
    mlp: VisionMLP = "quick_gelu"
    patch_bias: bool = False  # whether the patch embedding has a bias
    windows: WindowsConfig | None = None  # None: every layer attends to the whole image
    position_grid: int | None = None  # side of the square grid of learned positions; None: none
    # Indices of the layers whose states are also merged, for the first text layers (DeepStack)
    deepstack: tuple[int, ...] = ()

    @property
    def patch_dim(self) -> int:
        """Values per patch (C)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def feature_dim(self) -> int:
        """Values per merge window (F): `hidden_size`, and again for each DeepStack layer."""
        return self.hidden_size * (1 + len(self.deepstack))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextConfig:
    """The language model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int  # width of an attention head
    rope_theta: float
    mrope_section: tuple[int, int, int]  # number of rotary frequencies for time, height, width
    rms_norm_eps: float
    mrope_interleaved: bool = False  # whether axes alternate by frequency; else each has a block
    qkv_bias: bool = True
    qk_norm: bool = False  # whether queries and keys are normalised, head by head


@dataclasses.dataclass(frozen=True, kw_only=True)
class VLMConfig:
    """Both towers, and the special tokens that join them."""

    model_type: str  # name of the family in config.json; see `othink_jax.families`
    text: TextConfig
    vision: VisionConfig
    tie_word_embeddings: bool
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    # M-RoPE positions per second of a video (Qwen2.5-VL); None: one per time step
    tokens_per_second: int | None = None

    def check(self) -> None:
        """Raise UserError if sizes are invalid or do not go together."""
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
            "deepstack_visual_indexes": self.vision.deepstack,
            "a token's id": (
                *(self.image_token_id, self.video_token_id),
                *(self.vision_start_token_id, self.vision_end_token_id),
            ),
        }
        for name, values in whole.items():
            if not all(type(value) is int and value >= 0 for value in values):
                raise UserError(f"config.json: {name} is no whole number: {values}")
        # Tokens, checked above, may be 0; None is the default of what a model may lack.
        counts = [
            (field.name, getattr(part, field.name))
            for part in (self, self.text, self.vision, self.vision.windows)
            if part is not None
            for field in dataclasses.fields(part)
            if field.type in (int, int | None)
            and not field.name.endswith("token_id")
            and not (field.type is not int and getattr(part, field.name) is None)
        ]
        wrong = [f"{name} is {value!r}" for name, value in counts if not _is_positive(value)]
        if wrong:
            raise UserError(f"config.json: not a positive whole number: {', '.join(wrong)}")

    def _check_sizes(self) -> None:
        text, vision = self.text, self.vision
        faults = {
            "num_attention_heads is not a multiple of num_key_value_heads": (
                text.num_attention_heads % text.num_key_value_heads
            ),
            f"mrope_section {text.mrope_section} does not add up to half the head dimension"
            f" {text.head_dim}": 2 * sum(text.mrope_section) != text.head_dim,
            # Half of a head's rotary pairs follow the row, the other half the column.
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
            "deepstack_visual_indexes are not numbers of layers in rising order, or are more than"
            " there are text layers": (
                list(vision.deepstack) != sorted(set(vision.deepstack))
                or any(layer >= vision.depth for layer in vision.deepstack)
                or len(vision.deepstack) > text.num_hidden_layers
            ),
            "vision: window_size is not a multiple of a merge window": (
                vision.windows is not None
                and vision.windows.window_size % (vision.patch_size * vision.spatial_merge_size)
            ),
        }
        found = [fault for fault, wrong in faults.items() if wrong]
        if found:
            raise UserError(f"config.json: {'; '.join(found)}")


def _is_positive(value: object) -> bool:
    return type(value) is int and value > 0
