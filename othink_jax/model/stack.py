"""A stack of equal layers, unrolled or scanned, behind one call.

Unrolled layers compile longer and run faster; scanned ones hold their parameters stacked, with a
leading layer axis, and compile once for any depth.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from othink_jax.model.collectives import axis_size
from othink_jax.model.linear import PRODUCT
from othink_jax.model.sharding import FSDP

# The residuals that each layer keeps for the backward pass; the rest is recomputed. `none`: all of
# them. `dots`: its input and the outputs of its linear layers, so that no product with weights is
# made again. `layer`: its input alone.
Remat = Literal["none", "dots", "layer"]


def make_stack(
    make: Callable[[nnx.Rngs], nnx.Module], depth: int, rngs: nnx.Rngs, scan: bool
) -> nnx.Module:
    """`depth` layers as an `nnx.List`, or one module whose parameters lead with the layer."""
    if not scan:
        return nnx.List([make(rngs) for _ in range(depth)])
    return nnx.vmap(make, in_axes=0)(rngs.split(depth))


def run_stack(
    stack: nnx.Module,
    x: jax.Array,
    apply: Callable[[Any, jax.Array, Any], tuple[jax.Array, Any]],
    extras: tuple[Any, ...] | None = None,
    *,
    remat: Remat = "none",
) -> tuple[jax.Array, tuple[Any, ...]]:
    """Send `x` through the layers.

    Args:
      stack: from `make_stack`.
      x: what the first layer gets.
      apply: `(layer, x, extra of this layer) -> (x, output of this layer)`.
      extras: one entry a layer, such as its keys and values; None gives every layer None.
      remat: what each layer keeps for the backward pass; the numbers are the same.

    Returns:
      what the last layer puts out, and the layers' outputs, one entry a layer.
    """
    if isinstance(stack, nnx.List):
        outputs = []
        for number, layer in enumerate(stack):
            run = _checkpointed(functools.partial(apply, layer), remat)
            x, output = run(x, None if extras is None else extras[number])
            outputs.append(output)
        return x, tuple(outputs)

    graphdef, params = nnx.split(stack)
    depth = jax.tree.leaves(params)[0].shape[0]
    stacked = None if extras is None else jax.tree.map(lambda *rows: jnp.stack(rows), *extras)

    def body(x: jax.Array, row: Any) -> tuple[jax.Array, Any]:
        layer_params, extra = row
        layer = nnx.merge(graphdef, layer_params)
        return _checkpointed(functools.partial(apply, layer), remat)(x, extra)

    x, outputs = jax.lax.scan(body, x, (params, stacked))
    return x, tuple(jax.tree.map(operator.itemgetter(i), outputs) for i in range(depth))


def _checkpointed(run: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    if remat == "none":
        # On a mesh, a layer's matrices are put together again for the backward pass.
        return jax.checkpoint(run, policy=_not_gathered) if axis_size(FSDP) > 1 else run
    keep = jax.checkpoint_policies.save_only_these_names(PRODUCT) if remat == "dots" else None
    return jax.checkpoint(run, policy=keep)


def _not_gathered(_: Any, *__: Any, **settings: Any) -> bool:
    """For `jax.checkpoint`: all may be kept but what `gather_matrix` gives, which is one call."""
    called = settings.get("call_jaxpr")
    return called is None or all(each.primitive.name != "all_gather" for each in called.eqns)


def stack_layers(layers: dict[Any, Any]) -> dict[Any, Any]:
    """Parameters of an unrolled stack (keyed by layer number) as those of a scanned one."""
    rows = [layers[number] for number in sorted(layers)]

    def stack(*leaves: Any) -> Any:
        return (np if isinstance(leaves[0], np.ndarray) else jnp).stack(leaves)

    return jax.tree.map(stack, *rows)
