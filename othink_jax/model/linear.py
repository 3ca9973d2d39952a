"""The linear layer and the table of embeddings of the towers."""

from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Float, Int

from othink_jax.types import Array


class Linear(nnx.Linear):
    """`nnx.Linear` as one product of two matrices, however many axes lead.

    On a CPU a training step of the embedded model is a quarter faster this way, for XLA is slow at
    gradients of weights that sum over several axes; elsewhere the reshapes cost nothing.
    """

    def __call__(
        self, inputs: Float[Array, "*b In"], out_sharding: Any = None
    ) -> Float[Array, "*b Out"]:
        flat = super().__call__(inputs.reshape(-1, inputs.shape[-1]), out_sharding)
        return flat.reshape(*inputs.shape[:-1], self.out_features)


class Embed(nnx.Embed):
    """`nnx.Embed` that casts the rows it has taken, not the table it takes them from.

    So the gradients of a token's occurrences are added up in the dtype of the parameters. In
    bfloat16, the sum for a token that occurs hundreds of times stops growing.
    """

    def __call__(self, inputs: Int[Array, "*b"], out_sharding: Any = None) -> Float[Array, "*b D"]:
        return jnp.take(self.embedding[...], inputs, axis=0).astype(self.dtype)
