"""The linear layer of both towers."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from othink_jax.config import LoRAConfig
from othink_jax.model.collectives import (
    axis_size,
    enter,
    gather_for,
    gather_matrix,
    leave,
    local_columns,
    local_size,
)
from othink_jax.model.precision import wide_einsum
from othink_jax.model.sharding import FSDP, Cut

_M = TypeVar("_M", bound=nnx.Module)

# Checkpoint name of the outputs of linear layers, which `--remat dots` keeps. A policy that looks
# for products instead misses those inside `wide_einsum`, and keeps float32 before the rounding.
PRODUCT = "product"

# U(-1, 1) / sqrt(inputs), as in PEFT.
_init_lora_a = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Linear(nnx.Linear):
    """`nnx.Linear` as one product of two matrices, for any leading axes, rounded once.

    On a CPU this makes a training step of the embedded model a quarter faster: XLA is slow at
    weight gradients that sum over several axes. Elsewhere the reshapes cost nothing. A bf16 result
    that is rounded before the bias as well as after it is a tenth farther from f32.

    With `lora`, the layer computes x W + b + scale (x A) B (arXiv 2106.09685). A [In, rank] and
    B [rank, Out] are additional float32 parameters. B starts at zero, which leaves every bit of the
    output unchanged.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        cut: Cut = "outputs",
        heads: int = 1,
        parts: int = 1,
        lora: LoRAConfig | None = None,
        **settings: Any,
    ) -> None:
        """Initialise random weights.

        Args:
          in_features: In.
          out_features: Out.
          rngs: random keys of the weights.
          cut: axis of the layer that the mesh axis `tensor` shards. With `outputs` and `heads`, the
            caller must pass the input through `enter`.
          heads, parts: the output axis is [parts, heads, size of a head], for the cut `heads`.
          lora: adapters; None for none.
          **settings: arguments of `nnx.Linear`.
        """
        super().__init__(in_features, out_features, rngs=rngs, **settings)
        self.cut: Cut = cut
        self.heads, self.parts = heads, parts
        self.lora = lora
        if lora is not None:
            shape_a, shape_b = (in_features, lora.lora_rank), (lora.lora_rank, out_features)
            self.lora_a = nnx.LoRAParam(_init_lora_a(rngs.params(), shape_a, jnp.float32))
            self.lora_b = nnx.LoRAParam(jnp.zeros(shape_b, jnp.float32))

    def __call__(
        self, inputs: Float[Array, "*b In"], out_sharding: Any = None
    ) -> Float[Array, "*b Out"]:
        flat = inputs.reshape(-1, inputs.shape[-1]).astype(self.dtype)
        kernel = self._matrix("kernel")
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        if self.cut == "heads":
            kernel = self._local_columns(kernel)
            bias = None if bias is None else self._local_columns(bias)
        if bias is None:
            out = self._sum(flat @ kernel)
        else:
            product = self._sum(wide_einsum("ni,io->no", flat, kernel))
            out = (product + bias).astype(self.dtype)
        if self.lora is not None:
            out += self.lora.scale * self._adapted(flat)
        out = out.reshape(*inputs.shape[:-1], -1)
        return checkpoint_name(out, PRODUCT)

    def _adapted(self, flat: Float[Array, "n In"]) -> Float[Array, "n Out"]:
        """(x A) B, without the scale."""
        # GPU compilers merge products that share x: they would build [W, A] anew at each token.
        flat = jax.lax.optimization_barrier(flat)
        a = self._matrix("lora_a")
        b = self._matrix("lora_b")
        # `enter`: a device that computes some of the outputs has a part of A's gradient.
        low = self._sum(flat @ (enter(a) if self.cut in ("outputs", "heads") else a))
        b = self._local_columns(b) if self.cut == "heads" else b
        return checkpoint_name(low, PRODUCT) @ b

    def _local_columns(self, x: Array) -> Array:
        return local_columns(x, self.heads, self.parts)

    def _sum(self, product: Array) -> Array:
        return leave(product) if self.cut == "inputs" else product

    def gather_for_uses(self, uses: int) -> list[dict[str, Float[Array, "..."]]]:
        """All-gather each matrix once for several uses; returns the matrices by name for each."""
        names = ("kernel",) if self.lora is None else ("kernel", "lora_a", "lora_b")
        made = {name: gather_for(uses, self._shard(name), self._shape(name)) for name in names}
        return [{name: made[name][use] for name in names} for use in range(uses)]

    def _matrix(self, name: str) -> Array:
        return gather_matrix(self._shard(name), self._shape(name))

    def _shard(self, name: str) -> Array:
        return getattr(self, name)[...].astype(self.dtype)

    def _shape(self, name: str) -> tuple[int, int]:
        """Shape of a matrix in the product of one device."""
        rank = 0 if self.lora is None else self.lora.lora_rank
        rows = local_size(self.in_features) if self.cut == "inputs" else self.in_features
        columns = local_size(self.out_features) if self.cut == "outputs" else self.out_features
        return (rank if name == "lora_b" else rows, rank if name == "lora_a" else columns)


def for_uses(module: _M, uses: int) -> tuple[_M, ...]:
    """Copies of a module for several uses in one program; they share one all-gather of matrices.

    Otherwise every use would all-gather the matrices again and reduce-scatter its own gradient.
    """
    if axis_size(FSDP) == 1:
        return (module,) * uses
    graphdef, state = nnx.split(module)
    copies = [nnx.to_pure_dict(state) for _ in range(uses)]
    for path, layer in nnx.iter_graph(module):
        if isinstance(layer, Linear):
            for copy, matrices in zip(copies, layer.gather_for_uses(uses), strict=True):
                _at(copy, path).update(matrices)
    return tuple(nnx.merge(graphdef, copy) for copy in copies)


def _at(tree: dict[Any, Any], path: tuple[Any, ...]) -> dict[Any, Any]:
    for key in path:
        tree = tree[key]
    return tree
