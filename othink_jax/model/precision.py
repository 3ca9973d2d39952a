"""Computation in at least float32, whatever the model's dtype; float64 in a float64 model."""

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

    The backward pass first rounds the cotangent to the dtype of `x`, as any other layer does.
    Matrix units have no float32 by bfloat16 product: it would run as float32, at a fraction of
    their speed.

    Products are computed in the dtype of `x`. If `y` is wider, so is its gradient. That gradient is
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
    """The dtype arguments of a Flax layer."""
    return {
        "dtype": jnp.dtype(compute.dtype),
        "param_dtype": jnp.dtype(compute.param_dtype or compute.dtype),
    }
