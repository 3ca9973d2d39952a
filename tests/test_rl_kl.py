"""Estimators of the KL divergence: Eq. 5 and its relatives."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax import rl

ESTIMATORS = [rl.kl_k1, rl.kl_k2, rl.kl_k3]
LN2 = 0.6931472


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("estimator", "twice_as_likely", "half_as_likely"),
    [
        (rl.kl_k1, LN2, -LN2),
        (rl.kl_k2, 0.2402265, 0.2402265),
        (rl.kl_k3, 0.5 + LN2 - 1, 2 - LN2 - 1),  # 0.1931472 and 0.3068528
    ],
)
def test_estimators_equal_hand_computed_values(
    estimator, twice_as_likely, half_as_likely, compiled
):
    run = jax.jit(estimator) if compiled else estimator
    ref_logp = jnp.array([-3.0, -3.0, -3.0])
    values = run(ref_logp + jnp.array([0.0, LN2, -LN2]), ref_logp)
    np.testing.assert_allclose(values, [0.0, twice_as_likely, half_as_likely], rtol=1e-6)


@pytest.mark.parametrize("estimator", [rl.kl_k1, rl.kl_k3])
def test_k1_and_k3_are_unbiased(estimator):
    """Their mean under the policy, summed over a whole vocabulary, is the divergence itself."""
    policy, reference = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.1, 0.2, 0.3, 0.4])
    divergence = np.sum(policy * np.log(policy / reference))
    values = estimator(jnp.log(policy), jnp.log(reference))
    np.testing.assert_allclose(np.sum(policy * values), divergence, rtol=1e-5)


@settings(deadline=None, max_examples=100)
@given(st.floats(-60.0, 0.0, width=32), st.floats(-60.0, 0.0, width=32))
def test_k3_equals_the_equation_and_is_not_negative(logp, ref_logp):
    d = min(float(np.float32(ref_logp) - np.float32(logp)), rl.MAX_LOG_RATIO)
    value = rl.kl_k3(jnp.float32(logp), jnp.float32(ref_logp))
    assert value >= 0
    np.testing.assert_allclose(value, np.expm1(d) - d, rtol=1e-5, atol=1e-6)


def test_k3_keeps_its_digits_where_policy_and_reference_nearly_agree():
    d = np.array([1e-3, -1e-3, 1e-4, -1e-4], np.float32)
    exact = np.expm1(d.astype(np.float64)) - d.astype(np.float64)
    np.testing.assert_allclose(rl.kl_k3(jnp.zeros(4), jnp.array(d)), exact, rtol=5e-3)


def test_k3_is_exact_up_to_its_bound_and_flat_beyond():
    value_and_gradient = jax.vmap(jax.value_and_grad(rl.kl_k3))
    d = np.array([-30.0, 0.0, 10.0, 19.0, 21.0, 100.0])
    values, gradients = value_and_gradient(-jnp.array(d), jnp.zeros(6))
    bounded = np.minimum(d, 20.0)
    np.testing.assert_allclose(values, np.expm1(bounded) - bounded, rtol=1e-5)
    np.testing.assert_allclose(gradients, np.where(d < 20, -np.expm1(d), 0.0), rtol=1e-5)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradients_are_finite_for_extreme_inputs(estimator):
    extremes = [-1e38, -1e30, -700.0, -100.0, 0.0, 100.0, 1e30]
    pairs = list(itertools.product(extremes, extremes))
    pairs += [(-np.inf, -1.0), (-1.0, -np.inf)] if estimator is rl.kl_k3 else []
    logp, ref_logp = jnp.array(pairs, jnp.float32).T
    gradients = jax.grad(lambda x, y: estimator(x, y).sum(), argnums=(0, 1))(logp, ref_logp)
    assert np.isfinite(gradients).all()
