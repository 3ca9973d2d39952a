"""How parameters are cut over a mesh of devices: one rule a kind of layer, written once.

The mesh has two axes. `fsdp` cuts every matrix, which the devices put together again when its layer
runs, and the prompts of a batch. `tensor` cuts the matrices the way Megatron-LM does (arXiv
1909.08053, section 3): layers that open a block by their outputs and layers that close it by their
inputs, so that between the two no device needs what another one computed.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

FSDP, TENSOR = "fsdp", "tensor"

_CLOSING = ("o", "down", "proj", "fc2", "merger_fc2")  # the last layers of their blocks


def partition(path: Sequence[Any], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
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
    fitting = [
        axis if axis is not None and size % mesh.shape[axis] == 0 else None
        for axis, size in zip(rule, shape, strict=True)
    ]
    return NamedSharding(mesh, PartitionSpec(*fitting))


def _rule(layer: Any, parameter: Any) -> tuple[str | None, ...]:
    """The axes of the mesh along the last axes of a parameter."""
    if parameter == "embedding":
        return (TENSOR, FSDP)
    inputs, outputs = (TENSOR, FSDP) if layer in _CLOSING else (FSDP, TENSOR)
    if parameter == "kernel":
        return (inputs, outputs)
    if parameter == "lora_a":  # [In, rank]
        return (inputs, None)
    if parameter == "lora_b":  # [rank, Out]
        return (None, outputs)
    if parameter == "bias" and layer not in _CLOSING and "norm" not in str(layer):
        return (TENSOR,)
    return ()


def gathered(tree: PyTree, mesh: Mesh) -> PyTree:
    """As `shardings`, but cut along `tensor` alone: whole along `fsdp`, so that no device waits."""

    def whole(cut: NamedSharding) -> NamedSharding:
        axes = [None if axis == FSDP else axis for axis in cut.spec]
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree.map(whole, shardings(tree, mesh))


def shardings(tree: PyTree, mesh: Mesh) -> PyTree:
    """How each leaf of a tree of parameters, or of a training state, is cut."""
    return jax.tree.map_with_path(lambda path, leaf: partition(path, leaf.shape, mesh), tree)
