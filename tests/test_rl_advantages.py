"""Rewards and advantages: Eq. 1 and 2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from othink_jax import rl


def test_format_reward_is_weighted_by_alpha():
    accuracy, form = jnp.array([1.0, 1.0, 0.0, 0.0]), jnp.array([1.0, 0.0, 1.0, 0.0])
    np.testing.assert_array_equal(rl.total_reward(accuracy, form), [2, 1, 1, 0])
    np.testing.assert_array_equal(rl.total_reward(accuracy, form, alpha=0.25), [1.25, 1, 0.25, 0])


@pytest.mark.parametrize("compiled", [False, True])
def test_advantages_equal_hand_computed_ones(compiled):
    def advantages(rewards):
        return rl.group_advantages(rewards, ddof=0, eps=0.0), rl.group_advantages(rewards)

    rewards = jnp.array([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 3.0]])
    plain, as_r1v = (jax.jit(advantages) if compiled else advantages)(rewards)
    np.testing.assert_allclose(plain, [[1, -1, -1, 1], [1, -1, -1, 1]], rtol=1e-6)
    # mean 1/2, squared deviations 4 * 1/4 over G - 1 = 3: std = sqrt(1/3) = 0.577350
    np.testing.assert_allclose(as_r1v[0], np.array([1, -1, -1, 1]) * 0.5 / 0.577450, rtol=1e-5)
    np.testing.assert_allclose(as_r1v[1], np.array([1, -1, -1, 1]) / 1.154801, rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(
    hnp.arrays(np.float32, (3, 5), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0])),
    st.sampled_from([0, 1]),
)
def test_advantages_equal_a_loop_over_groups(rewards, ddof):
    expected = np.zeros_like(rewards)
    for row, group in enumerate(rewards.astype(np.float64)):
        if len(set(group)) > 1:
            spread = np.sqrt(sum((r - sum(group) / 5) ** 2 for r in group) / (5 - ddof))
            expected[row] = [(r - sum(group) / 5) / (spread + 1e-4) for r in group]
    actual = rl.group_advantages(rewards, ddof=ddof)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("eps", [1e-4, 0.0])
@pytest.mark.parametrize("group_size", [2, 3, 7, 8])
def test_group_of_equal_rewards_has_exactly_zero_advantages(eps, group_size):
    rewards = np.array([[0.0], [1.0], [0.1], [2.3], [1e6 + 0.1]], np.float32)
    rewards = np.repeat(rewards, group_size, axis=1)
    np.testing.assert_array_equal(rl.group_advantages(rewards, eps=eps), 0.0)
    np.testing.assert_array_equal(jax.jit(lambda r: rl.group_advantages(r, eps=eps))(rewards), 0.0)


def test_nan_reward_spoils_its_own_group_only():
    advantages = rl.group_advantages(jnp.array([[jnp.nan, 1.0], [0.0, 1.0]]))
    assert np.isnan(advantages[0]).all()
    assert np.isfinite(advantages[1]).all()


def test_group_too_small_for_its_ddof_is_refused():
    with pytest.raises(ValueError, match="more than ddof=1 rewards, got 1"):
        rl.group_advantages(jnp.ones((4, 1)))
    np.testing.assert_array_equal(rl.group_advantages(jnp.ones((4, 1)), ddof=0), 0.0)


def test_negative_eps_is_refused():
    with pytest.raises(ValueError, match=r"eps must be >= 0, got -0\.1"):
        rl.group_advantages(jnp.ones((1, 2)), eps=-0.1)
