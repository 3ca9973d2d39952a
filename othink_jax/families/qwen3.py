"""Qwen3-VL (arXiv 2511.21631), the dense sizes.

Beyond Qwen2-VL it has learned positions of patches, the states of some vision layers added after
the first text layers (DeepStack, arXiv 2406.04334), interleaved axes of M-RoPE, normalised queries
and keys, and the time of a video's frames as text.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from othink_jax.errors import UserError
from othink_jax.families.family import Family
from othink_jax.families.reading import (
    TEXT_NAMES,
    TOKEN_NAMES,
    VISION_NAMES,
    check_features,
    flag,
    object_of,
    read_rest,
    read_text,
    rope_of,
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
from othink_jax.model.config import VisionConfig, VLMConfig

_TYPE, _ACTIVATION = "qwen3_vl", "gelu_pytorch_tanh"
_VISION: dict[str, Any] = {"norm": "layer", "mlp": "gelu_tanh", "patch_bias": True, "windows": None}
_TEXT = {"mrope_interleaved": True, "qkv_bias": False, "qk_norm": True}


def _read(config: Mapping[str, Any]) -> VLMConfig:
    text, vision = text_of(config), object_of(config, "vision_config")
    if flag(text, "attention_bias"):
        raise UserError("config.json: attention_bias is true, which is not supported")
    if rope_of(config).get("mrope_interleaved") is False:
        raise UserError("config.json: mrope_interleaved is false, which is not supported")
    made = VLMConfig(
        model_type=_TYPE,
        text=read_text(config, head_dim=text["head_dim"], **_TEXT),
        vision=VisionConfig(
            **{name: vision[name] for name in VISION_NAMES if name in vision},
            **_VISION,
            in_channels=vision["in_channels"],
            embed_dim=vision["hidden_size"],
            intermediate_size=vision["intermediate_size"],
            hidden_size=vision["out_hidden_size"],
            position_grid=_side(vision["num_position_embeddings"]),
            deepstack=tuple(vision["deepstack_visual_indexes"]),
        ),
        **read_rest(config),
    )
    check_features(config, activation=_ACTIVATION)
    return made


def _side(positions: Any) -> int:
    if type(positions) is not int or positions < 1 or math.isqrt(positions) ** 2 != positions:
        raise UserError(f"config.json: num_position_embeddings {positions!r} is not a square")
    return math.isqrt(positions)


def _write(config: VLMConfig) -> dict[str, Any]:
    text, vision = config.text, config.vision
    if vision.position_grid is None:
        raise UserError("a qwen3_vl has learned positions, and this shape has none")
    rope = {
        "rope_type": "default",
        "mrope_interleaved": True,
        "mrope_section": list(text.mrope_section),
    }
    return {
        "tie_word_embeddings": config.tie_word_embeddings,
        **{name: getattr(config, name) for name in TOKEN_NAMES},
        "text_config": {
            "model_type": f"{_TYPE}_text",
            **{name: getattr(text, name) for name in TEXT_NAMES},
            "head_dim": text.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "max_position_embeddings": 262144,
            "rope_theta": text.rope_theta,
            "rope_scaling": rope,
            "tie_word_embeddings": config.tie_word_embeddings,
        },
        "vision_config": {
            "model_type": _TYPE,
            **{name: getattr(vision, name) for name in VISION_NAMES},
            "in_channels": vision.in_channels,
            "hidden_size": vision.embed_dim,
            "intermediate_size": vision.intermediate_size,
            "out_hidden_size": vision.hidden_size,
            "hidden_act": _ACTIVATION,
            "num_position_embeddings": vision.position_grid**2,
            "deepstack_visual_indexes": list(vision.deepstack),
        },
    }


def _entries(config: VLMConfig) -> Iterator[Entry]:
    v = config.vision
    width, hidden, tower = v.embed_dim, v.intermediate_size, "model.visual"
    assert v.position_grid is not None
    yield from patch_embedding(f"{tower}.patch_embed.proj", config)
    grid = (v.position_grid**2, width)
    yield Entry(f"{tower}.pos_embed.weight", ("visual", "position_table"), False, grid)
    for i in range(v.depth):
        name, path = f"{tower}.blocks.{i}", ("visual", "layers", i)
        yield from attention_block(name, path, v)
        yield from linear(f"{name}.mlp.linear_fc1", (*path, "fc1"), width, hidden, bias=True)
        yield from linear(f"{name}.mlp.linear_fc2", (*path, "fc2"), hidden, width, bias=True)
    mergers: dict[str, tuple[Path, int]] = {f"{tower}.merger": (("visual",), width)}
    for i in range(len(v.deepstack)):
        window = width * v.spatial_merge_size**2
        mergers[f"{tower}.deepstack_merger_list.{i}"] = (("visual", "deepstack", i), window)
    for name, (path, normed) in mergers.items():
        yield from norm(f"{name}.norm", (*path, "merger_norm"), normed, bias=True)
        yield from merger(f"{name}.linear_fc1", f"{name}.linear_fc2", path, v)
    yield from text_tower("model.language_model", config)


QWEN3_VL = Family(
    model_type=_TYPE,
    architecture="Qwen3VLForConditionalGeneration",
    read=_read,
    write=_write,
    entries=_entries,
    vision=_VISION,
    text=_TEXT,
    timestamps=True,
)
