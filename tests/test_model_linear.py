"""The linear layer in bf16: rounded once, and differentiated as in f32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from othink_jax.model.linear import Linear

INPUTS, OUTPUTS, ROWS = 48, 40, 500


@pytest.fixture(scope="module")
def layer():
    made = Linear(INPUTS, OUTPUTS, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    made.bias[...] = jax.random.normal(jax.random.key(1), OUTPUTS, jnp.bfloat16)
    return made


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(2), (5, ROWS // 5, INPUTS), jnp.bfloat16)


def test_product_and_bias_are_rounded_together(layer, x):
    exact = np.asarray(x, np.float64) @ np.asarray(layer.kernel[...], np.float64)
    exact = jnp.asarray(exact + np.asarray(layer.bias[...], np.float64), jnp.bfloat16)
    made = layer(x)
    assert made.dtype == jnp.bfloat16
    # Rounded before the sum as well, three in ten of them would differ.
    assert (made == exact).mean() > 0.999


def test_gradients_are_those_of_f32_as_far_as_bf16_tells(layer, x):
    graphdef, weights = nnx.split(layer)
    weight = jax.random.normal(jax.random.key(3), (*x.shape[:-1], OUTPUTS), jnp.bfloat16)

    def loss(weights, x):
        return (nnx.merge(graphdef, weights)(x) * weight).astype(jnp.float32).sum()

    made = jax.grad(loss, argnums=(0, 1))(weights, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.bfloat16)}
    flat, pulled = (np.asarray(array, np.float64).reshape(ROWS, -1) for array in (x, weight))
    exact = (flat.T @ pulled, pulled.sum(axis=0), pulled @ np.asarray(layer.kernel[...]).T)
    found = (made[0].kernel[...], made[0].bias[...], made[1].reshape(ROWS, -1))
    for own, expected in zip(found, exact, strict=True):
        scale = np.abs(expected).max()
        np.testing.assert_allclose(
            np.asarray(own, np.float64) / scale, expected / scale, rtol=0, atol=2**-8
        )
