"""Rows of an invertible table: name of each tensor on the hub, and its path here."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Shaped

from othink_jax.model.config import VisionConfig, VLMConfig

Path = tuple[Any, ...]  # keys of the nested parameter dict; layers are numbered by int
HEAD = ("text", "head", "kernel")  # path of the output head


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: its name on the hub, its path here, and how the two relate."""

    name: str
    path: Path
    transposed: bool  # torch's Linear is [out, in], ours [in, out]
    hub_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor here."""
        if not self.transposed:
            return self.hub_shape
        # The Conv3d kernel of the patch embedding becomes a matrix that acts on flattened patches.
        outputs, *inputs = self.hub_shape
        return (math.prod(inputs), outputs)

    # Not `nbytes`: Orbax gets entries too, and would take it for the attribute of an array.
    def bytes_in(self, dtype: np.dtype) -> int:
        """Size of the tensor in this dtype, bytes."""
        return math.prod(self.hub_shape) * dtype.itemsize

    def to_hub(self, tensor: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """Convert our tensor to the hub's layout: transposed back, in the hub's shape."""
        return (tensor.T if self.transposed else tensor).reshape(self.hub_shape)


def linear(name: str, path: Path, inputs: int, outputs: int, *, bias: bool) -> Iterator[Entry]:
    """Entries of a linear layer."""
    yield Entry(f"{name}.weight", (*path, "kernel"), True, (outputs, inputs))
    if bias:
        yield Entry(f"{name}.bias", (*path, "bias"), False, (outputs,))


def norm(name: str, path: Path, width: int, *, bias: bool) -> Iterator[Entry]:
    """Entries of a norm."""
    yield Entry(f"{name}.weight", (*path, "scale"), False, (width,))
    if bias:
        yield Entry(f"{name}.bias", (*path, "bias"), False, (width,))


def patch_embedding(name: str, config: VLMConfig) -> Iterator[Entry]:
    """Entries of the patch embedding, a convolution whose windows do not overlap."""
    v, path = config.vision, ("visual", "patch_embed")
    kernel = (v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    yield Entry(f"{name}.weight", (*path, "kernel"), True, (v.embed_dim, *kernel))
    if v.patch_bias:
        yield Entry(f"{name}.bias", (*path, "bias"), False, (v.embed_dim,))


def attention_block(name: str, path: Path, config: VisionConfig) -> Iterator[Entry]:
    """Entries of a vision block's norms and attention, which all families call alike."""
    width, bias = config.embed_dim, config.norm == "layer"
    yield from norm(f"{name}.norm1", (*path, "norm1"), width, bias=bias)
    yield from norm(f"{name}.norm2", (*path, "norm2"), width, bias=bias)
    yield from linear(f"{name}.attn.qkv", (*path, "qkv"), width, 3 * width, bias=True)
    yield from linear(f"{name}.attn.proj", (*path, "proj"), width, width, bias=True)


def merger(first: str, second: str, path: Path, config: VisionConfig) -> Iterator[Entry]:
    """Entries of a merger's two linear layers, named `first` and `second` on the hub."""
    window = config.embed_dim * config.spatial_merge_size**2
    yield from linear(first, (*path, "merger_fc1"), window, window, bias=True)
    yield from linear(second, (*path, "merger_fc2"), window, config.hidden_size, bias=True)


def text_tower(prefix: str, config: VLMConfig) -> Iterator[Entry]:
    """Entries of the language model, whose names all families share.

    Args:
      prefix: prefix of the names, except of the head's.
      config: config of the model.
    """
    t = config.text
    width, queries = t.hidden_size, t.num_attention_heads * t.head_dim
    kv = t.num_key_value_heads * t.head_dim
    path: Path = ("text", "embed", "embedding")
    yield Entry(f"{prefix}.embed_tokens.weight", path, False, (t.vocab_size, width))
    for i in range(t.num_hidden_layers):
        name, path = f"{prefix}.layers.{i}", ("text", "layers", i)
        yield from norm(f"{name}.input_layernorm", (*path, "norm1"), width, bias=False)
        yield from norm(f"{name}.post_attention_layernorm", (*path, "norm2"), width, bias=False)
        for ours, size in (("q", queries), ("k", kv), ("v", kv)):
            projection = f"{name}.self_attn.{ours}_proj"
            yield from linear(projection, (*path, ours), width, size, bias=t.qkv_bias)
        for ours in ("q", "k") if t.qk_norm else ():
            each = f"{name}.self_attn.{ours}_norm"
            yield from norm(each, (*path, f"{ours}_norm"), t.head_dim, bias=False)
        yield from linear(f"{name}.self_attn.o_proj", (*path, "o"), queries, width, bias=False)
        for ours in ("gate", "up"):
            mlp = f"{name}.mlp.{ours}_proj"
            yield from linear(mlp, (*path, ours), width, t.intermediate_size, bias=False)
        yield from linear(
            f"{name}.mlp.down_proj", (*path, "down"), t.intermediate_size, width, bias=False
        )
    yield from norm(f"{prefix}.norm", ("text", "norm"), width, bias=False)
    if not config.tie_word_embeddings:
        yield from linear("lm_head", HEAD[:-1], width, t.vocab_size, bias=False)
