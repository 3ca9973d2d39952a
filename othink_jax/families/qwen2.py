"""Qwen2-VL (arXiv 2409.12191) and Qwen2.5-VL (arXiv 2502.13923): one language model, two towers."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from othink_jax.errors import UserError
from othink_jax.families.family import Family
from othink_jax.families.reading import (
    TEXT_NAMES,
    TOKEN_NAMES,
    VISION_NAMES,
    check_features,
    object_of,
    read_rest,
    read_text,
    text_of,
)
from othink_jax.families.table import (
    Entry,
    Path,
    attention_block,
    linear,
    merger,
    norm,
    patch_embedding,
    text_tower,
)
from othink_jax.model.config import VisionConfig, VLMConfig, WindowsConfig

_VISION: dict[str, Any] = {"patch_bias": False, "position_grid": None, "deepstack": ()}
_VISION_2: dict[str, Any] = {**_VISION, "norm": "layer", "mlp": "quick_gelu", "windows": None}
_VISION_2_5: dict[str, Any] = {**_VISION, "norm": "rms", "mlp": "swiglu"}
_TEXT = {"mrope_interleaved": False, "qkv_bias": True, "qk_norm": False}


def _read_2(config: Mapping[str, Any]) -> VLMConfig:
    vision = object_of(config, "vision_config")
    made = VisionConfig(
        **_common(vision),
        **_VISION_2,
        embed_dim=vision["embed_dim"],
        intermediate_size=vision["embed_dim"] * vision["mlp_ratio"],
        hidden_size=vision["hidden_size"],
    )
    return _read(config, made, model_type="qwen2_vl", activation="quick_gelu")


def _read_2_5(config: Mapping[str, Any]) -> VLMConfig:
    vision = object_of(config, "vision_config")
    made = VisionConfig(
        **_common(vision),
        **_VISION_2_5,
        embed_dim=vision["hidden_size"],
        intermediate_size=vision["intermediate_size"],
        hidden_size=vision["out_hidden_size"],
        windows=WindowsConfig(
            window_size=vision["window_size"],
            full_layers=tuple(vision["fullatt_block_indexes"]),
        ),
    )
    return _read(
        config,
        made,
        model_type="qwen2_5_vl",
        activation="silu",
        tokens_per_second=vision["tokens_per_second"],
    )


def _read(
    config: Mapping[str, Any], vision: VisionConfig, *, activation: str, **rest: Any
) -> VLMConfig:
    made = VLMConfig(
        text=read_text(config, head_dim=_head_dim(text_of(config)), **_TEXT),
        vision=vision,
        **read_rest(config),
        **rest,
    )
    check_features(config, activation=activation)
    return made


def _head_dim(text: Mapping[str, Any]) -> int:
    """Width of a head, which config.json does not state."""
    width, heads = text["hidden_size"], text["num_attention_heads"]
    if not all(type(number) is int and number > 0 for number in (width, heads)):
        return 1  # `VLMConfig.check` reports which of them is wrong
    if width % heads:
        raise UserError("config.json: hidden_size is not a multiple of num_attention_heads")
    return int(width // heads)


def _common(vision: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: vision[name] for name in VISION_NAMES if name in vision}
    return found | {"in_channels": vision.get("in_channels", vision.get("in_chans", 3))}


def _write_2(config: VLMConfig) -> dict[str, Any]:
    vision = config.vision
    if vision.intermediate_size % vision.embed_dim:  # config.json states only the quotient
        raise UserError("config.json: vision: the MLP's width is not a multiple of the tower's")
    return _write(
        config,
        model_type="qwen2_vl",
        embed_dim=vision.embed_dim,
        mlp_ratio=vision.intermediate_size // vision.embed_dim,
        hidden_size=vision.hidden_size,
        hidden_act="quick_gelu",
    )


def _write_2_5(config: VLMConfig) -> dict[str, Any]:
    vision = config.vision
    if vision.windows is None or config.tokens_per_second is None:
        raise UserError("a qwen2_5_vl has windows and tokens_per_second, and this shape has not")
    return _write(
        config,
        model_type="qwen2_5_vl",
        hidden_size=vision.embed_dim,
        intermediate_size=vision.intermediate_size,
        out_hidden_size=vision.hidden_size,
        window_size=vision.windows.window_size,
        fullatt_block_indexes=list(vision.windows.full_layers),
        tokens_per_second=config.tokens_per_second,
        hidden_act="silu",
    )


def _write(config: VLMConfig, **vision: Any) -> dict[str, Any]:
    """The config.json in the hub's flat layout, which transformers also loads."""
    text = config.text
    if text.head_dim * text.num_attention_heads != text.hidden_size:
        raise UserError("head_dim times num_attention_heads is not hidden_size, as it has to be")
    return {
        **{name: getattr(text, name) for name in TEXT_NAMES},
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rope_theta": text.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(text.mrope_section)},
        "use_sliding_window": False,
        "tie_word_embeddings": config.tie_word_embeddings,
        **{name: getattr(config, name) for name in TOKEN_NAMES},
        "vision_config": {
            **{name: getattr(config.vision, name) for name in VISION_NAMES},
            "in_chans": config.vision.in_channels,
            **vision,
        },
    }


def _entries(mlp: Callable[[str, Path, VisionConfig], Iterator[Entry]]) -> Callable[..., Any]:
    """`Family.entries` for a vision tower with this MLP."""

    def entries(config: VLMConfig) -> Iterator[Entry]:
        v = config.vision
        yield from patch_embedding("visual.patch_embed.proj", config)
        for i in range(v.depth):
            name, path = f"visual.blocks.{i}", ("visual", "layers", i)
            yield from attention_block(name, path, v)
            yield from mlp(f"{name}.mlp", path, v)
        bias = v.norm == "layer"
        yield from norm("visual.merger.ln_q", ("visual", "merger_norm"), v.embed_dim, bias=bias)
        yield from merger("visual.merger.mlp.0", "visual.merger.mlp.2", ("visual",), v)
        yield from text_tower("model", config)

    return entries


def _plain_mlp(name: str, path: Path, vision: VisionConfig) -> Iterator[Entry]:
    width, hidden = vision.embed_dim, vision.intermediate_size
    yield from linear(f"{name}.fc1", (*path, "fc1"), width, hidden, bias=True)
    yield from linear(f"{name}.fc2", (*path, "fc2"), hidden, width, bias=True)


def _gated_mlp(name: str, path: Path, vision: VisionConfig) -> Iterator[Entry]:
    width, hidden = vision.embed_dim, vision.intermediate_size
    for ours in ("gate", "up"):
        yield from linear(f"{name}.{ours}_proj", (*path, ours), width, hidden, bias=True)
    yield from linear(f"{name}.down_proj", (*path, "down"), hidden, width, bias=True)


QWEN2_VL = Family(
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    read=_read_2,
    write=_write_2,
    entries=_entries(_plain_mlp),
    vision=_VISION_2,
    text=_TEXT,
)
QWEN2_5_VL = Family(
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    read=_read_2_5,
    write=_write_2_5,
    entries=_entries(_gated_mlp),
    vision=_VISION_2_5,
    text=_TEXT,
)
