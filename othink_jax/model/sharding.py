"""How parameters are cut over a mesh of devices: one rule a kind of layer, written once.

The mesh has two axes. `fsdp` cuts the rows of a batch, and every matrix. `tensor` cuts matrices the
way Megatron-LM does (arXiv 1909.08053, section 3): layers that open a block by their outputs and
layers that close it by their inputs, so that between the two no device needs what another one
computed. What devices tell each other is written in `model.collectives`.
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

# Axis of a linear layer that `tensor` cuts. `heads`: nothing, but a device takes the columns of its
# heads, where a cut would not follow them: of queries, keys and values side by side, and of
# key-value heads, which may be fewer than devices.
Cut = Literal["outputs", "inputs", "heads", "nothing"]

_Axis = str | tuple[str, ...] | None  # axes of the mesh along one of an array

_CLOSING = ("o", "down", "proj", "fc2", "merger_fc2")  # the last layers of their blocks

_KERNEL: dict[Cut, tuple[_Axis, _Axis]] = {
    "outputs": (FSDP, TENSOR),
    "inputs": (TENSOR, FSDP),
    "heads": ((FSDP, TENSOR), None),
    "nothing": ((FSDP, TENSOR), None),
}


def cut_of(layer: Any) -> Cut:
    """Of a linear layer of this name."""
    if layer == "patch_embed":  # what follows it is no block
        return "nothing"
    if layer in ("k", "v", "qkv"):
        return "heads"
    return "inputs" if layer in _CLOSING else "outputs"


def partition(
    path: Sequence[Any], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> NamedSharding:
    """How one array is cut: a parameter, or what an optimizer keeps of it under the same path.

    An axis of the array that does not divide stays whole, and so does all that is no parameter's.

    Args:
      path: keys of JAX's tree utilities; the last two name layer and parameter.
      shape: of the array, which leads with the layer where layers are scanned.
      mesh: with the axes `fsdp` and `tensor`.
    """
    keys = [getattr(key, "key", None) for key in path[-2:]]
    rule = _rule(*keys) if len(keys) == 2 else ()
    rule = (None,) * (len(shape) - len(rule)) + rule if len(shape) >= len(rule) else ()

    axes = (_fitting(axis, size, mesh) for axis, size in zip(rule, shape, strict=True))
    return NamedSharding(mesh, PartitionSpec(*axes))


def _fitting(along: _Axis, size: int, mesh: Mesh | AbstractMesh) -> _Axis:
    """The first of these axes of the mesh, as far as they divide."""
    axes = names(along)
    while size % math.prod(mesh.shape[axis] for axis in axes):
        axes = axes[:-1]
    return axes if len(axes) > 1 else next(iter(axes), None)


def names(along: Any) -> tuple[str, ...]:
    """The axes of the mesh in one entry of a `PartitionSpec`."""
    if along is None:
        return ()
    return (along,) if isinstance(along, str) else along


def _rule(layer: Any, parameter: Any) -> tuple[_Axis, ...]:
    """The axes of the mesh along the last axes of a parameter."""
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


def gathered(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """As `shardings`, but cut along `tensor` alone: whole along `fsdp`, so that no device waits."""

    def whole(cut: NamedSharding) -> NamedSharding:
        axes = (None if FSDP in names(along) else along for along in cut.spec)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(whole, shardings(tree, mesh))


def shardings(tree: PyTree, mesh: Mesh | AbstractMesh) -> PyTree:
    """How each leaf of a tree of parameters, or of a training state, is cut."""
    return jax.tree.map_with_path(lambda path, leaf: partition(path, leaf.shape, mesh), tree)


def cut(x: Any, sharding: NamedSharding) -> Shaped[jax.Array, "..."]:
    """An array cut over the devices of a mesh, of which this process reads the part of its own.

    Args:
      x: in memory, or one whose parts can be read by an index.
      sharding: how it is cut.
    """
    shape = x.shape

    def spans(index: tuple[slice, ...] | None) -> list[tuple[int, int]]:
        assert index is not None  # it is of a device of this process
        return [axis.indices(size)[:2] for axis, size in zip(index, shape, strict=True)]

    # Once, and not for each device: to cut columns, the whole of what is stored by rows is read.
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
    """Raise UserError if a model cannot be cut into so many along `tensor`."""
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
