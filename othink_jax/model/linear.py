"""The linear layer of both towers."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from othink_jax.config import LoRAConfig
from othink_jax.model.precision import wide_einsum

# The name of linear layers' outputs, which `--remat dots` keeps. A policy that looks for products
# instead does not see those inside `wide_einsum`, and keeps the float32 before the rounding.
PRODUCT = "product"

# U(-1, 1) / sqrt(inputs), as PEFT draws it.
_init_lora_a = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Linear(nnx.Linear):
    """`nnx.Linear` as one product of two matrices, however many axes lead, rounded once.

    On a CPU a training step of the embedded model is a quarter faster this way, for XLA is slow at
    gradients of weights that sum over several axes; elsewhere the reshapes cost nothing. Rounded
    before the bias as well as after it, bf16 is a tenth farther from f32.

    With `lora`, the layer is that of x W + b + scale (x A) B (arXiv 2106.09685), whose A [In, rank]
    and B [rank, Out] are float32 parameters of their own. B begins as zero, and then not a bit of
    the output differs.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(in_features, out_features, rngs=rngs, **settings)
        self.lora = lora
        if lora is not None:
            shape_a, shape_b = (in_features, lora.lora_rank), (lora.lora_rank, out_features)
            self.lora_a = nnx.LoRAParam(_init_lora_a(rngs.params(), shape_a, jnp.float32))
            self.lora_b = nnx.LoRAParam(jnp.zeros(shape_b, jnp.float32))

    def __call__(
        self, inputs: Float[Array, "*b In"], out_sharding: Any = None
    ) -> Float[Array, "*b Out"]:
        flat = inputs.reshape(-1, inputs.shape[-1]).astype(self.dtype)
        kernel = self.kernel[...].astype(self.dtype)
        if self.bias is None:
            out = flat @ kernel
        else:
            bias = self.bias[...].astype(self.dtype)
            out = (wide_einsum("ni,io->no", flat, kernel) + bias).astype(self.dtype)
        if self.lora is not None:
            low = checkpoint_name(flat @ self.lora_a[...].astype(self.dtype), PRODUCT)
            out += self.lora.scale * (low @ self.lora_b[...].astype(self.dtype))
        out = out.reshape(*inputs.shape[:-1], self.out_features)
        return checkpoint_name(out, PRODUCT)
