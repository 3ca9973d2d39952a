"""A stack of equal layers, unrolled or scanned, behind one interface.

Unrolled layers take longer to compile and run faster. Scanned layers compile once for any depth;
their parameters are stacked along a leading layer axis.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, PyTree

from othink_jax.config import ComputeConfig, Remat
from othink_jax.model.collectives import axis_size
from othink_jax.model.linear import PRODUCT
from othink_jax.model.sharding import FSDP

_T = TypeVar("_T")


def make_stack(
    make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs, compute: ComputeConfig
) -> nnx.Module:
    """`depth` layers as an `nnx.List`, or one module whose parameters have a leading layer axis."""
    if not compute.scans(depth):
        return nnx.List([make(rngs) for _ in range(depth)])
    return nnx.vmap(make, in_axes=0)(rngs.split(depth))


def run_stack(
    stack: nnx.Module,
    x: _T,
    apply: Callable[[Any, _T, Any], tuple[_T, Any]],
    extras: tuple[Any, ...] | None = None,
    *,
    remat: Remat = "none",
) -> tuple[_T, tuple[Any, ...]]:
    """Run `x` through the layers.

    Args:
      stack: from `make_stack`.
      x: input of the first layer; a tree of arrays.
      apply: `(layer, x, extra of this layer) -> (x, output of this layer)`.
      extras: one entry per layer, such as its keys and values; None gives every layer None.
      remat: what each layer keeps for the backward pass; the numbers are the same.

    Returns:
      `x` after the last layer, and the layers' outputs, one entry per layer.
    """
    if isinstance(stack, nnx.List):
        outputs = []
        for number, layer in enumerate(stack):
            run = _checkpointed(functools.partial(apply, layer), remat)
            x, output = run(x, None if extras is None else extras[number])
            outputs.append(output)
        return x, tuple(outputs)

    step, rows, depth = _scanned(stack, apply, extras, remat)
    x, outputs = jax.lax.scan(step, x, rows)
    return x, tuple(jax.tree.map(operator.itemgetter(i), outputs) for i in range(depth))


def run_stack_keeping(
    stack: nnx.Module,
    x: Float[Array, "..."],
    apply: Callable[[Any, Array, Any], tuple[Array, Any]],
    extras: tuple[Any, ...] | None = None,
    *,
    layers: tuple[int, ...],
    remat: Remat = "none",
) -> tuple[Float[Array, "..."], tuple[Float[Array, "..."], ...]]:
    """As `run_stack`, but returns the states after some layers instead of the layers' outputs.

    Scanned layers hold no other states for this.

    Args:
      stack, x, apply, extras, remat: as for `run_stack`; `x` is one array.
      layers: indices of these layers, in ascending order.
    """

    def state_as_output(layer: Any, x: Array, extra: Any) -> tuple[Array, Array]:
        x, _ = apply(layer, x, extra)
        return x, x

    if isinstance(stack, nnx.List):
        x, states = run_stack(stack, x, state_as_output, extras, remat=remat)
        return x, tuple(states[number] for number in layers)

    step, rows, depth = _scanned(stack, apply, extras, remat)
    places = np.full(depth, len(layers))  # other layers overwrite one additional slot
    places[list(layers)] = np.arange(len(layers))

    def body(carry: tuple[Array, Array], row: Any) -> tuple[tuple[Array, Array], None]:
        x, kept = carry
        x, _ = step(x, row[0])
        return (x, jax.lax.dynamic_update_index_in_dim(kept, x, row[1], 0)), None

    kept = jnp.zeros((len(layers) + 1, *x.shape), x.dtype)
    (x, kept), _ = jax.lax.scan(body, (x, kept), (rows, jnp.asarray(places)))
    return x, tuple(kept[: len(layers)])


def _scanned(
    stack: nnx.Module,
    apply: Callable[[Any, _T, Any], tuple[_T, Any]],
    extras: tuple[Any, ...] | None,
    remat: Remat,
) -> tuple[Callable[[_T, Any], tuple[_T, Any]], Any, int]:
    """Step function of a scan over layers, the scanned inputs, and the number of layers."""
    graphdef, params = nnx.split(stack)
    depth = jax.tree.leaves(params)[0].shape[0]
    stacked = None if extras is None else jax.tree.map(lambda *rows: jnp.stack(rows), *extras)

    def step(x: _T, row: Any) -> tuple[_T, Any]:
        layer_params, extra = row
        layer = nnx.merge(graphdef, layer_params)
        return _checkpointed(functools.partial(apply, layer), remat)(x, extra)

    return step, (params, stacked), depth


def _checkpointed(run: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    if remat == "none":
        # On a mesh, the backward pass all-gathers a layer's matrices again.
        return jax.checkpoint(run, policy=_not_gathered) if axis_size(FSDP) > 1 else run
    keep = jax.checkpoint_policies.save_only_these_names(PRODUCT) if remat == "dots" else None
    return jax.checkpoint(run, policy=keep)


def _not_gathered(_: Any, *__: Any, **settings: Any) -> bool:
    """Checkpoint policy: keep everything except the results of `gather_matrix`, which is a call."""
    called = settings.get("call_jaxpr")
    return called is None or all(each.primitive.name != "all_gather" for each in called.eqns)


def match_layout(tree: _T, *, like: PyTree) -> _T:
    """Convert a tree of parameters, or of optimizer moments, to the layer layout of `like`.

    Args:
      tree: numpy or JAX arrays; each tower is a dict with the key `layers`.
      like: the same tree with layers stacked or not, as wanted; its leaves may be anything.
    """

    def convert(tower: Any, wanted: Any) -> Any:
        if not _is_tower(tower) or _is_stacked(tower) == _is_stacked(wanted):
            return tower
        change = _stacked if _is_stacked(wanted) else _unstacked
        return tower | {"layers": change(tower["layers"])}

    return jax.tree.map(convert, tree, like, is_leaf=_is_tower)


def unrolled(tree: _T) -> _T:
    """Convert a tree, as `match_layout` does, to unstacked layers."""

    def convert(tower: Any) -> Any:
        if not _is_tower(tower) or not _is_stacked(tower):
            return tower
        return tower | {"layers": _unstacked(tower["layers"])}

    return jax.tree.map(convert, tree, is_leaf=_is_tower)


def _is_tower(node: Any) -> bool:
    return isinstance(node, dict) and "layers" in node


def _is_stacked(tower: dict[str, Any]) -> bool:
    return not all(isinstance(key, int) for key in tower["layers"])


def _stacked(layers: dict[int, Any]) -> dict[str, Any]:
    def stack(*leaves: Any) -> Any:
        return (jnp if isinstance(leaves[0], jax.Array) else np).stack(leaves)

    return jax.tree.map(stack, *(layers[number] for number in sorted(layers)))


def _unstacked(layers: dict[str, Any]) -> dict[int, Any]:
    depth = jax.tree.leaves(layers)[0].shape[0]
    return {number: jax.tree.map(operator.itemgetter(number), layers) for number in range(depth)}
