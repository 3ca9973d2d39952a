"""All communication between the devices of a mesh.

Inside `per_device` and `mean_gradient`, a function sees its device's rows of the batch, and its
device's shards of the parameters as `model.sharding` defines them.

Along `fsdp`, a layer's matrices are all-gathered when it runs, and again in the backward pass;
their gradients are reduce-scattered (ZeRO stage 3, arXiv 1910.02054). No row leaves its device.
Along `tensor`, `enter` and `leave` bracket a block of layers: f and g of Megatron-LM (arXiv
1909.08053, figure 3).

Without a mesh, every function here is the identity or its equivalent on one device.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import DTypeLike, Float, Int, PyTree

from othink_jax.model.precision import at_least_f32
from othink_jax.model.sharding import FSDP, TENSOR, names, shardings
from othink_jax.types import Array

_T = TypeVar("_T")


# Programs


def over(mesh: Mesh) -> AbstractContextManager[None]:
    """Context for tracing a program that runs on this mesh."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def axis_size(axis: str) -> int:
    """Number of devices along an axis of the mesh that is being traced; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.shape[axis] if axis in mesh.axis_names else 1  # `pmap` has an axis of its own


def per_device(
    fn: Callable[..., _T], rules: Sequence[Callable[..., PyTree]] = (shardings,)
) -> Callable[..., _T]:
    """Run fn(params, *batches) on each device for its own rows; results have a leading row axis.

    Args:
      fn: the function, which sees its device's shards.
      rules: sharding rules, one for each tree of parameters; these are fn's first arguments.
    """
    rows = PartitionSpec(FSDP)

    def run(*given: PyTree) -> _T:
        cut = [_specs(params, rule) for params, rule in zip(given, rules, strict=False)]
        specs = (*cut, *(rows,) * (len(given) - len(rules)))
        return _shard_map(fn, in_specs=specs, out_specs=rows)(*given)

    return run


def mean_gradient(
    fn: Callable[..., tuple[_T, Any]], params: _T, frozen: PyTree, batch: PyTree
) -> tuple[_T, Any]:
    """Mean of fn(params, frozen, batch) -> (gradient, metrics) over blocks of rows.

    Each device along `fsdp` has one block; without a mesh there is one. A quantity of the whole
    batch, such as its number of tokens, is computed beforehand and closed over by `fn`.
    """
    blocks = axis_size(FSDP)
    if blocks * axis_size(TENSOR) == 1:
        return fn(params, frozen, batch)
    cut = _specs(params, shardings)

    def of_rows(params: _T, frozen: PyTree, batch: PyTree) -> tuple[_T, Any]:
        gradient, metrics = fn(params, frozen, batch)

        def mean(leaf: Array, spec: PartitionSpec) -> Array:
            # `gather_matrix` has summed the gradient of a parameter sharded along `fsdp` already.
            summed = any(FSDP in names(along) for along in spec)
            return (leaf if summed else jax.lax.psum(leaf, FSDP)) / blocks

        return jax.tree.map(mean, gradient, cut), jax.lax.pmean(metrics, FSDP)

    return _shard_map(
        of_rows,
        in_specs=(cut, _specs(frozen, shardings), PartitionSpec(FSDP)),
        out_specs=(cut, PartitionSpec()),
    )(params, frozen, batch)


def _specs(params: PyTree, rule: Callable[..., PyTree]) -> PyTree:
    return jax.tree.map(lambda cut: cut.spec, rule(params, jax.sharding.get_abstract_mesh()))


def _shard_map(fn: Callable[..., _T], **specs: Any) -> Callable[..., _T]:
    # No check of axes along which values vary: it would require every loop in `fn` to mark its
    # constants as varying.
    return jax.shard_map(fn, check_vma=False, **specs)


# Along `fsdp`


def gather_matrix(matrix: Float[Array, "i o"], shape: tuple[int, ...]) -> Float[Array, "I O"]:
    """All-gather a parameter to the shape that a device computes with; see `gather_for`."""
    return gather_for(1, matrix, shape)[0]


def gather_for(
    uses: int, matrix: Float[Array, "i o"], shape: tuple[int, ...]
) -> tuple[Float[Array, "I O"], ...]:
    """All-gather a parameter once for several uses; returns one copy for each use.

    The backward pass sums the cotangents over uses and devices in at least float32. Each device
    keeps its shard of the sum.
    """
    for axis, size in enumerate(shape):
        pieces = size // matrix.shape[axis]
        if pieces > axis_size(FSDP):
            matrix = _gather_tensor(axis, matrix)
        if pieces > 1:
            return _gather_fsdp(axis, uses, matrix)
    return (matrix,) * uses


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather_fsdp(axis: int, uses: int, matrix: Array) -> tuple[Array, ...]:
    return (jax.lax.all_gather(matrix, FSDP, axis=axis, tiled=True),) * uses


def _gather_fsdp_forward(axis: int, uses: int, matrix: Array) -> tuple[tuple[Array, ...], None]:
    return _gather_fsdp(axis, uses, matrix), None


def _gather_fsdp_backward(
    axis: int, uses: int, _: None, cotangents: tuple[Array, ...]
) -> tuple[Array]:
    dtype = cotangents[0].dtype
    wide = sum(each.astype(at_least_f32(dtype)) for each in cotangents)
    total = jax.lax.psum_scatter(wide, FSDP, scatter_dimension=axis, tiled=True)
    return (total.astype(dtype),)


_gather_fsdp.defvjp(_gather_fsdp_forward, _gather_fsdp_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gather_tensor(axis: int, matrix: Array) -> Array:
    """All-gather along `tensor`; every device has the same cotangent and takes its shard of it."""
    return jax.lax.all_gather(matrix, TENSOR, axis=axis, tiled=True)


def _gather_tensor_forward(axis: int, matrix: Array) -> tuple[Array, int]:
    return _gather_tensor(axis, matrix), matrix.shape[axis]


def _gather_tensor_backward(axis: int, size: int, cotangent: Array) -> tuple[Array]:
    first = jax.lax.axis_index(TENSOR) * size
    return (jax.lax.dynamic_slice_in_dim(cotangent, first, size, axis),)


_gather_tensor.defvjp(_gather_tensor_forward, _gather_tensor_backward)


def embed_tokens(
    table: Float[Array, "v d"],
    index: Int[Array, "*b"],
    shape: tuple[int, int],
    dtype: DTypeLike,
) -> Float[Array, "*b D"]:
    """table[index], cast to `dtype`, for a table [V, D] that may be sharded along both axes.

    Sharded along D: each device looks up its columns for the tokens of all devices, then an
    all-to-all exchanges columns for rows. This moves less data than an all-gather of the table.
    Sharded along V: each device looks up the rows it has, and the results are summed.
    """
    vocabulary, width = shape
    cut_columns = table.shape[1] != width
    if cut_columns:
        index = jax.lax.all_gather(index, FSDP, tiled=True)
    if table.shape[0] == vocabulary:
        taken = jnp.take(table, index, axis=0).astype(dtype)
    else:
        own, here = _local_tokens(index, table.shape[0])
        taken = jnp.where(here[..., None], jnp.take(table, own, axis=0), 0).astype(dtype)
    if cut_columns:
        taken = jax.lax.all_to_all(taken, FSDP, split_axis=0, concat_axis=index.ndim, tiled=True)
    return taken if table.shape[0] == vocabulary else leave(taken)


def _local_tokens(index: Array, count: int) -> tuple[Array, Array]:
    """Token indices within this device's vocabulary shard (0 if outside), and which are inside."""
    own = index - count * jax.lax.axis_index(TENSOR)
    here = (own >= 0) & (own < count)
    return jnp.where(here, own, 0), here


# Along `tensor`


def local_size(size: int) -> int:
    """Number of hidden units per device; raises ValueError if `size` is not divisible.

    `sharding.check_tensor` reports this to the user earlier.
    """
    count = axis_size(TENSOR)
    if size % count:
        raise ValueError(f"{size} units do not divide over {count} devices")
    return size // count


def local_vocabulary(size: int) -> int:
    """Vocabulary size per device; a vocabulary that is not divisible stays unsharded."""
    count = axis_size(TENSOR)
    return size if size % count else size // count


def enter(x: Float[Array, "*b n"]) -> Float[Array, "*b n"]:
    """Input of a block sharded along `tensor`: the identity; its cotangents are summed."""
    return x if axis_size(TENSOR) == 1 else _enter(x)


def leave(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Output of a block sharded along `tensor`: the sum over the devices."""
    return x if axis_size(TENSOR) == 1 else _leave(x)


@jax.custom_vjp
def _enter(x: Array) -> Array:
    return x


@jax.custom_vjp
def _leave(x: Array) -> Array:
    return jax.lax.psum(x, TENSOR)


_enter.defvjp(lambda x: (x, None), lambda _, cotangent: (jax.lax.psum(cotangent, TENSOR),))
_leave.defvjp(lambda x: (_leave(x), None), lambda _, cotangent: (cotangent,))


def local_heads(heads: int) -> int:
    """Number of heads per device; one if there are fewer heads than devices."""
    return max(1, heads // axis_size(TENSOR))


def local_columns(x: Float[Array, "*b n"], heads: int, parts: int) -> Float[Array, "*b m"]:
    """Columns of this device's heads, from a matrix [..., parts * heads * n] that all devices have.

    Neighbouring devices share a head if there are fewer heads than devices.
    """
    count = axis_size(TENSOR)
    if count == 1:
        return x
    blocks = enter(x).reshape(*x.shape[:-1], parts, heads, -1)
    first = jax.lax.axis_index(TENSOR) * heads // count
    own = jax.lax.dynamic_slice_in_dim(blocks, first, local_heads(heads), axis=-2)
    return own.reshape(*x.shape[:-1], -1)


def gather_vocabulary(logits: Float[Array, "*b v"], vocabulary: int) -> Float[Array, "*b V"]:
    """All-gather logits from vocabulary shards [..., v] to [..., V]; not differentiable."""
    if logits.shape[-1] == vocabulary:
        return logits
    return jax.lax.all_gather(logits, TENSOR, axis=logits.ndim - 1, tiled=True)


def log_prob_of(
    logits: Float[Array, "n v"], targets: Int[Array, " n"], vocabulary: int
) -> Float[Array, " n"]:
    """log_softmax(logits)[targets] in f32, for logits [n, V] or a vocabulary shard of them."""
    if logits.shape[-1] == vocabulary:
        chosen = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)
    own, here = _local_tokens(targets, logits.shape[-1])
    chosen = jnp.take_along_axis(logits, own[:, None], axis=-1)[:, 0]
    top, log_total = _normaliser(logits)
    return leave(jnp.where(here, chosen, 0.0)) - top - log_total


def log_softmax_of(logits: Float[Array, "n v"], vocabulary: int) -> Float[Array, "n v"]:
    """log_softmax(logits) in f32, for logits [n, V] or a vocabulary shard of them."""
    if logits.shape[-1] == vocabulary:
        return jax.nn.log_softmax(logits, axis=-1)
    top, log_total = _normaliser(logits)
    # `enter`, since each device subtracts the sum from its own shard.
    return logits - top[:, None] - enter(log_total)[:, None]


def _normaliser(logits: Array) -> tuple[Array, Array]:
    """Maximum, and log of the sum of exp(logits - maximum), over the shards [n, v] of all devices.

    The maximum cancels, so it needs no gradient.
    """
    top = jax.lax.pmax(jax.lax.stop_gradient(logits.max(axis=-1)), TENSOR)
    total = leave(jnp.exp(logits - top[:, None]).sum(axis=-1))
    return top, jnp.log(total)


def sum_over_vocabulary(values: Float[Array, "n v"], vocabulary: int) -> Float[Array, " n"]:
    """values.sum(axis=-1), for values [n, V] or a vocabulary shard of them."""
    total = values.sum(axis=-1)
    return total if values.shape[-1] == vocabulary else leave(total)
