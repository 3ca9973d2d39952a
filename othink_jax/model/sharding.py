"""Sharding of parameters over a mesh of devices: one rule for each kind of layer.

The mesh has two axes. `fsdp` shards the rows of a batch and every matrix. `tensor` shards matrices
as Megatron-LM does (arXiv 1909.08053, section 3): the layers that open a block by their outputs,
the layers that close it by their inputs. Between the two, no device needs the result of another.
`model.collectives` holds the communication.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree, Shaped

from othink_jax.errors import UserError
from othink_jax.model.config import VLMConfig

FSDP, TENSOR = "fsdp", "tensor"

# Axis of a linear layer that `tensor` shards. `heads`: none, but each device computes the columns
# of its own heads. A shard would not follow the heads: queries, keys and values lie side by side,
# and there may be fewer key-value heads than devices.
Cut = Literal["outputs", "inputs", "heads", "nothing"]

_Axis = str | tuple[str, ...] | None  # mesh axes that shard one array axis

_CLOSING = ("o", "down", "proj", "fc2", "merger_fc2")  # the last layers of their blocks

_KERNEL: dict[Cut, tuple[_Axis, _Axis]] = {
    "outputs": (FSDP, TENSOR),
    "inputs": (TENSOR, FSDP),
    "heads": ((FSDP, TENSOR), None),
    "nothing": ((FSDP, TENSOR), None),
}


def cut_of(layer: Any) -> Cut:
    """How a linear layer of this name is sharded along `tensor`."""
    if layer == "patch_embed":  # it opens no block
        return "nothing"
    if layer in ("k", "v", "qkv"):
        return "heads"
    return "inputs" if layer in _CLOSING else "outputs"


def partition(
    path: Sequence[Any], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> NamedSharding:
    """Sharding of one array: a parameter, or optimizer state under the same path.

    An array axis is sharded only over mesh axes that divide it. An array without a rule is
    replicated.

    Args:
      path: keys of JAX's tree utilities; the last two name layer and parameter.
      shape: shape of the array, with a leading layer axis if layers are scanned.
      mesh: mesh with the axes `fsdp` and `tensor`.
    """
    keys = [getattr(key, "key", None) for key in path[-2:]]
    rule = _rule(*keys) if len(keys) == 2 else ()
    rule = (None,) * (len(shape) - len(rule)) + rule if len(shape) >= len(rule) else ()

    axes = (_fitting(axis, size, mesh) for axis, size in zip(rule, shape, strict=True))
    return NamedSharding(mesh, PartitionSpec(*axes))


def _fitting(along: _Axis, size: int, mesh: Mesh | AbstractMesh) -> _Axis:
    """The longest prefix of these mesh axes whose sizes divide `size`."""
    axes = names(along)
    while size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else next(iter(axes), None)


def names(along: Any) -> tuple[str, ...]:
    """Mesh axes in one entry of a `PartitionSpec`."""
    if along is None:
        return ()
    return (along,) if isinstance(along, str) else along


def _rule(layer: Any, parameter: Any) -> tuple[_Axis, ...]:
    """Mesh axes that shard the last axes of a parameter."""
    if parameter == "embedding":
        return (TENSOR, FSDP)
    inputs, outputs = _KERNEL[cut_of(layer)]
    if parameter == "kernel":
        return (inputs, outputs)
    if parameter == "lora_a":  # [In, rank]
        return (inputs, None)
    if parameter == "lora_b":  # [rank, Out]
        return (None, outputs)
    if parameter == "bias" and outputs == TENSOR and "norm" not in str(layer):
        return (TENSOR,)
    return ()


def decoding_shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """As `shardings`, but replicated along `fsdp`, so that no device waits for an all-gather."""

    def whole(cut: NamedSharding) -> NamedSharding:
        axes = (None if FSDP in names(along) else along for along in cut.spec)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(whole, shardings(tree, mesh))


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """Sharding of each leaf of a tree of parameters, or of a training state."""
    return jax.tree.map_with_path(lambda path, leaf: partition(path, leaf.shape, mesh), tree)


def place_shards(x: Any, sharding: NamedSharding) -> Shaped[jax.Array, "..."]:
    """Shard an array over a mesh; this process reads only its own part.

    Args:
      x: an array in memory, or an object that reads a part when it is indexed.
      sharding: target sharding.
    """
    shape = x.shape

    def spans(index: tuple[slice, ...] | None) -> list[tuple[int, int]]:
        assert index is not None  # the device belongs to this process
        return [axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True)]

    # Read once, not once per device: slicing columns of row-major storage reads all of its rows.
    own = [spans(index) for index in sharding.addressable_devices_indices_map(shape).values()]
    begins = [min(begin for begin, _ in axis) for axis in zip(*own, strict=True)]
    ends = [max(end for _, end in axis) for axis in zip(*own, strict=True)]
    whole = np.asarray(x) if isinstance(x, jax.Array) else x
    part = np.asarray(whole[tuple(map(slice, begins, ends))])

    def piece(index: tuple[slice, ...] | None) -> np.ndarray:
        within = zip(spans(index), begins, strict=True)
        return np.array(part[tuple(slice(a - begin, b - begin) for (a, b), begin in within)])

    return jax.make_array_from_callback(shape, sharding, piece).block_until_ready()


def check_tensor(config: VLMConfig, tensor: int) -> None:
    """Raise UserError if a model cannot be sharded over `tensor` devices along `tensor`."""
    text, vision = config.text, config.vision
    shared = text.num_key_value_heads if tensor % text.num_key_value_heads else tensor
    sizes = {
        "attention heads": text.num_attention_heads,
        "key-value heads": shared,
        "hidden units of the language model": text.intermediate_size,
        "heads of the vision tower": vision.num_heads,
        "hidden units of the vision tower": vision.intermediate_size,
    }
    for name, size in sizes.items():
        if size % tensor:
            raise UserError(f"--tensor {tensor} does not divide the {size} {name} of the model")
