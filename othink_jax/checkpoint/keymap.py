"""One invertible table between the hub's tensor names and our parameter paths."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Shaped

from othink_jax.model.config import Qwen2VLConfig, VisionConfig

Path = tuple[Any, ...]  # keys of the nested parameter dict; layers are numbered by int
HEAD, TIED_HEAD = ("text", "head", "kernel"), ("tied_head",)  # paths of an output head


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: its name on the hub, its path here, and how the two relate."""

    name: str
    path: Path
    transposed: bool  # torch's Linear is [out, in], ours [in, out]
    hub_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Ours."""
        if not self.transposed:
            return self.hub_shape
        # The Conv3d kernel of the patch embedding becomes the matrix it is on flattened patches.
        outputs, *inputs = self.hub_shape
        return (math.prod(inputs), outputs)

    # Not `nbytes`: Orbax, which is handed entries, would take it for the attribute of an array.
    def bytes_in(self, dtype: np.dtype) -> int:
        """Its size in this dtype."""
        return math.prod(self.hub_shape) * dtype.itemsize

    def to_hub(self, tensor: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Our tensor as Hugging Face has it: transposed back, in its own shape."""
        return (tensor.T if self.transposed else tensor).reshape(self.hub_shape)


def _linear(name: str, path: Path, inputs: int, outputs: int, *, bias: bool) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*path, "kernel"), True, (outputs, inputs))
    if bias:
        yield Entry(f"{name}.bias", (*path, "bias"), False, (outputs,))


def _norm(name: str, path: Path, width: int, *, bias: bool) -> Iterator[Entry]:
    yield Entry(f"{name}.weight", (*path, "scale"), False, (width,))
    if bias:
        yield Entry(f"{name}.bias", (*path, "bias"), False, (width,))


def _vision(config: Qwen2VLConfig) -> Iterator[Entry]:
    v = config.vision
    width, norm_bias = v.embed_dim, v.windows is None
    patch = (v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    yield Entry(
        "visual.patch_embed.proj.weight", ("visual", "patch_embed", "kernel"), True, (width, *patch)
    )
    for i in range(v.depth):
        name, path = f"visual.blocks.{i}", ("visual", "layers", i)
        yield from _norm(f"{name}.norm1", (*path, "norm1"), width, bias=norm_bias)
        yield from _norm(f"{name}.norm2", (*path, "norm2"), width, bias=norm_bias)
        yield from _linear(f"{name}.attn.qkv", (*path, "qkv"), width, 3 * width, bias=True)
        yield from _linear(f"{name}.attn.proj", (*path, "proj"), width, width, bias=True)
        yield from _vision_mlp(f"{name}.mlp", path, v)
    window = width * v.spatial_merge_size**2
    merger = "visual.merger"
    yield from _norm(f"{merger}.ln_q", ("visual", "merger_norm"), width, bias=norm_bias)
    yield from _linear(f"{merger}.mlp.0", ("visual", "merger_fc1"), window, window, bias=True)
    yield from _linear(
        f"{merger}.mlp.2", ("visual", "merger_fc2"), window, v.hidden_size, bias=True
    )


def _vision_mlp(name: str, path: Path, config: VisionConfig) -> Iterator[Entry]:
    width, hidden = config.embed_dim, config.intermediate_size
    if config.windows is None:
        yield from _linear(f"{name}.fc1", (*path, "fc1"), width, hidden, bias=True)
        yield from _linear(f"{name}.fc2", (*path, "fc2"), hidden, width, bias=True)
        return
    for ours in ("gate", "up"):
        yield from _linear(f"{name}.{ours}_proj", (*path, ours), width, hidden, bias=True)
    yield from _linear(f"{name}.down_proj", (*path, "down"), hidden, width, bias=True)


def _text(config: Qwen2VLConfig) -> Iterator[Entry]:
    t = config.text
    width, kv = t.hidden_size, t.num_key_value_heads * t.head_dim
    yield Entry(
        "model.embed_tokens.weight", ("text", "embed", "embedding"), False, (t.vocab_size, width)
    )
    for i in range(t.num_hidden_layers):
        name, path = f"model.layers.{i}", ("text", "layers", i)
        yield from _norm(f"{name}.input_layernorm", (*path, "norm1"), width, bias=False)
        yield from _norm(f"{name}.post_attention_layernorm", (*path, "norm2"), width, bias=False)
        for ours, size in (("q", width), ("k", kv), ("v", kv)):
            attention = f"{name}.self_attn.{ours}_proj"
            yield from _linear(attention, (*path, ours), width, size, bias=True)
        yield from _linear(f"{name}.self_attn.o_proj", (*path, "o"), width, width, bias=False)
        for ours in ("gate", "up"):
            mlp = f"{name}.mlp.{ours}_proj"
            yield from _linear(mlp, (*path, ours), width, t.intermediate_size, bias=False)
        yield from _linear(
            f"{name}.mlp.down_proj", (*path, "down"), t.intermediate_size, width, bias=False
        )
    yield from _norm("model.norm", ("text", "norm"), width, bias=False)
    if not config.tie_word_embeddings:
        yield from _linear("lm_head", HEAD[:-1], width, t.vocab_size, bias=False)


def entries(config: Qwen2VLConfig) -> list[Entry]:
    """Every tensor of a model of this shape, in the hub's layout and order."""
    return [*_vision(config), *_text(config)]


def tied_head(config: Qwen2VLConfig) -> Entry:
    """A second copy of the embedding that some files hold under the name of the head.

    It is no parameter of the model, and travels with the tensors so that nothing is lost.
    """
    shape = (config.text.vocab_size, config.text.hidden_size)
    return Entry("lm_head.weight", TIED_HEAD, False, shape)


def adapter_entries(config: Qwen2VLConfig, rank: int) -> list[Entry]:
    """Every tensor of a low-rank adapter, in PEFT's layout: two for each matrix of a text block.

    PEFT names the modules that they belong to as transformers does in memory.
    """
    made = []
    for entry in _text(config):
        if entry.path[-1] != "kernel" or "layers" not in entry.path:
            continue
        outputs, inputs = entry.hub_shape
        layer = entry.name.removeprefix("model.").removesuffix(".weight")
        module, path = f"base_model.model.model.language_model.{layer}", entry.path[:-1]
        made += [
            Entry(f"{module}.lora_A.weight", (*path, "lora_a"), True, (rank, inputs)),
            Entry(f"{module}.lora_B.weight", (*path, "lora_b"), True, (outputs, rank)),
        ]
    return made


def hub_name(name: str) -> str:
    """A tensor's name on the hub, from that or from the in-memory name of transformers 5."""
    name = re.sub(r"^model\.visual\.", "visual.", name)
    return re.sub(r"^model\.language_model\.", "model.", name)
