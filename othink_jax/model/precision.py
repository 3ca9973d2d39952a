"""What is computed in float32 whatever the model's dtype is, and in float64 in a float64 model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from othink_jax.config import ComputeConfig
from othink_jax.types import Array


def at_least_f32(dtype: DTypeLike) -> Any:
    """float32 for narrower floating types, the type itself for wider ones."""
    return jnp.promote_types(dtype, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(subscripts: str, x: Array, y: Array) -> Array:
    """`jnp.einsum` of two arrays, accumulated and returned in at least float32.

    Its gradient rounds the cotangent to the dtype of `x` first, as the cotangent of any other layer
    is. A product of float32 by bfloat16 is none that matrix units know: it would run as float32, at
    a fraction of their speed.

    The products are those of the dtype of `x`. `y` may be wider: then so is its gradient, which is
    never rounded, for callers that sum it over several products.
    """
    return jnp.einsum(
        subscripts, x, y.astype(x.dtype), preferred_element_type=at_least_f32(x.dtype)
    )


def _forward(subscripts: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return wide_einsum(subscripts, x, y), (x, y)


def _backward(
    subscripts: str, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    x, y = operands
    cotangent = cotangent.astype(x.dtype)
    _, transpose = jax.vjp(functools.partial(jnp.einsum, subscripts), x, y.astype(x.dtype))
    of_x, of_y = transpose(cotangent)
    if y.dtype != x.dtype:
        inputs, outputs = subscripts.split("->")
        of, to = inputs.split(",")
        of_y = jnp.einsum(
            f"{outputs},{of}->{to}", cotangent, x, preferred_element_type=at_least_f32(y.dtype)
        )
    return of_x, of_y


wide_einsum.defvjp(_forward, _backward)


def dtypes_of(compute: ComputeConfig) -> dict[str, Any]:
    """The arguments of a layer of Flax that say them."""
    return {
        "dtype": jnp.dtype(compute.dtype),
        "param_dtype": jnp.dtype(compute.param_dtype or compute.dtype),
    }
