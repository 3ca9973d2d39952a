"""What is computed in float32 whatever the model's dtype is, and in float64 in a float64 model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from othink_jax.types import Array


def at_least_f32(dtype: DTypeLike) -> Any:
    """float32 for narrower floating types, the type itself for wider ones."""
    return jnp.promote_types(dtype, jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def wide_einsum(subscripts: str, x: Array, y: Array) -> Array:
    """`jnp.einsum` of two arrays of one dtype, accumulated and returned in at least float32.

    Its gradient rounds the cotangent to the dtype of the operands first, as the cotangent of any
    other layer is. A product of float32 by bfloat16 is none that matrix units know: it would run as
    float32, at a fraction of their speed.
    """
    return jnp.einsum(subscripts, x, y, preferred_element_type=at_least_f32(x.dtype))


def _forward(subscripts: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return wide_einsum(subscripts, x, y), (x, y)


def _backward(
    subscripts: str, operands: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
    _, transpose = jax.vjp(functools.partial(jnp.einsum, subscripts), *operands)
    return transpose(cotangent.astype(operands[0].dtype))


wide_einsum.defvjp(_forward, _backward)
