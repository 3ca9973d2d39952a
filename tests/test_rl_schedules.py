"""The KL weight: its schedules (Eq. 3) and its place in the optimizer state."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax import rl


@pytest.mark.parametrize("compiled", [False, True])
def test_dynamic_kl_equals_hand_computed_values(compiled):
    schedule = rl.dynamic_kl(0.0, 0.02, 100, 0.3)
    schedule = jax.jit(schedule) if compiled else schedule
    counts = [0, 15, 30, 65, 100, 101, 5000]
    expected = [0.01, 0.005, 0.0, 0.01, 0.02, 0.02, 0.02]
    np.testing.assert_allclose(schedule(jnp.array(counts)), expected, rtol=1e-5, atol=1e-9)
    for count, value in zip(counts, expected, strict=True):
        assert schedule(count).dtype == jnp.float32
        np.testing.assert_allclose(schedule(count), value, rtol=1e-5, atol=1e-9)


@settings(deadline=None, max_examples=100)
@given(
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 5000),
    st.floats(0.01, 0.99),
    st.floats(0, 1),
)
def test_dynamic_kl_equals_equation_3_at_any_step(low, spread, t, fraction, where):
    low, high, s = low, low + spread, round(where * t)
    w, middle = fraction * t, (low + low + spread) / 2
    falling = middle - (middle - low) * s / w
    rising = low + (high - low) * (s - w) / (t - w)
    value = rl.dynamic_kl(low, high, t, fraction)(s)
    np.testing.assert_allclose(value, falling if s <= w else rising, rtol=1e-5, atol=1e-5)
    assert low - 1e-6 <= value <= high + 1e-6


def test_constant_kl_is_constant():
    schedule = rl.constant_kl(0.04)
    np.testing.assert_array_equal(schedule(jnp.arange(5)), np.full(5, 0.04, np.float32))
    assert schedule(3).dtype == jnp.float32
    assert schedule(3).shape == ()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("kl_min", (-0.1, 0.1, 10, 0.3)),
        ("kl_min", (math.nan, 0.1, 10, 0.3)),
        ("kl_max", (0.2, 0.1, 10, 0.3)),
        ("kl_max", (0.2, math.inf, 10, 0.3)),
        ("total_steps", (0.1, 0.2, 0, 0.3)),
        ("exploration_fraction", (0.1, 0.2, 10, 0.0)),
        ("exploration_fraction", (0.1, 0.2, 10, 1.0)),
    ],
)
def test_dynamic_kl_says_which_number_is_wrong(name, arguments):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        rl.dynamic_kl(*arguments)


@pytest.mark.parametrize("value", [-0.01, math.nan, math.inf])
def test_constant_kl_refuses_what_is_no_weight(value):
    with pytest.raises(ValueError, match="value must be"):
        rl.constant_kl(value)


def test_state_holds_the_weight_of_the_update_to_come():
    schedule = rl.dynamic_kl(0.04, 0.1, 10)
    tx = rl.carry_kl_coef(schedule)
    state = tx.init({"w": jnp.ones(2)})
    for step in range(13):
        assert state.kl_step == step
        assert state.kl_step.dtype == jnp.int32
        assert rl.kl_coef(state) == schedule(step)
        _, state = tx.update({"w": jnp.ones(2)}, state)


def test_gradients_pass_through_unchanged():
    tx = rl.carry_kl_coef(rl.constant_kl(0.1))
    gradients = {"w": jnp.array([1.0, -2.0]), "b": jnp.bfloat16(3.0)}
    updates, _ = tx.update(gradients, tx.init(gradients), gradients, value=1.0)
    assert updates is gradients


def test_weight_stays_float32_beside_bfloat16_parameters():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    tx = optax.chain(optax.adamw(1e-3), rl.carry_kl_coef(rl.dynamic_kl(0.04, 0.1, 10)))
    state = tx.init(params)
    for step in range(3):
        assert rl.kl_coef(state).dtype == jnp.float32
        np.testing.assert_allclose(rl.kl_coef(state), rl.dynamic_kl(0.04, 0.1, 10)(step), rtol=1e-6)
        _, state = jax.jit(tx.update)(params, state, params)


def carrier():
    return rl.carry_kl_coef(rl.constant_kl(0.25))


@pytest.mark.parametrize(
    "tx",
    [
        carrier(),
        optax.chain(carrier(), optax.adam(1e-3)),
        optax.chain(optax.clip(1.0), optax.chain(optax.adamw(1e-3), optax.chain(carrier()))),
        optax.apply_if_finite(optax.chain(optax.adam(1e-3), carrier()), 3),
    ],
)
def test_weight_is_found_in_any_nesting(tx):
    # A parameter of the same name is in Adam's moments, and must not be taken for it.
    params = {"kl_coef": jnp.ones(2), "kl_step": jnp.ones(2)}
    assert rl.kl_coef(tx.init(params)) == 0.25
    assert jax.jit(rl.kl_coef)(tx.init(params)) == 0.25


def test_missing_or_doubled_weight_is_refused():
    params = {"w": jnp.ones(2)}
    with pytest.raises(ValueError, match="found 0: put carry_kl_coef"):
        rl.kl_coef(optax.adam(1e-3).init(params))
    with pytest.raises(ValueError, match="found 2"):
        rl.kl_coef(optax.chain(carrier(), carrier()).init(params))


def test_a_weight_that_reacts_rises_above_the_target_and_falls_below_it():
    """gain 0.5: far above the target, by half of the limit 0.2; a tenth below it, by 0.05."""
    tx = rl.adapt_kl_coef(0.04, target=0.2, gain=0.5)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = tx.init(params)
    coefs = [float(rl.kl_coef(state))]
    for kl in (1.0, 0.2, 0.18):
        updates, state = tx.update(params, state, params, kl=jnp.float32(kl))
        assert updates is params
        coefs.append(float(rl.kl_coef(state)))
    assert coefs == pytest.approx([0.04, 0.044, 0.044, 0.044 * 0.95])
    assert state.kl_step == 3
    assert state.kl_coef.dtype == jnp.float32


@pytest.mark.parametrize("name", ["initial", "target", "gain", "limit"])
def test_a_reacting_weight_says_which_number_is_wrong(name):
    numbers = {"initial": 0.04, "target": 0.2, "gain": 0.1, "limit": 0.2, name: 0.0}
    with pytest.raises(ValueError, match=f"{name} must be > 0"):
        rl.adapt_kl_coef(**numbers)
