"""Levels of the importance ratio, and the surrogates that take it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from othink_jax import rl
from tests.test_rl_losses import JUNK

LEVELS = [
    rl.token_log_ratio,
    rl.sequence_log_ratio,
    rl.gspo_token_log_ratio,
    rl.trajectory_log_ratio,
]
OLD = jnp.array([[-1.0, -2.0, -3.0], [-1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
LOGP = OLD + jnp.array([[0.3, -0.1, 0.4], [0.5, 9.0, 9.0], [9.0, 9.0, 9.0]])
MASK = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
WEIGHTS = jnp.array([[1.0, 2.0, 3.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("level", "value", "slope"),
    [
        (LEVELS[0], [[0.3, -0.1, 0.4], [0.5, 0, 0], [0, 0, 0]], [[1, 2, 3], [4, 0, 0], [0, 0, 0]]),
        (LEVELS[1], [[0.2, 0.2, 0.2], [0.5, 0, 0], [0, 0, 0]], [[2, 2, 2], [4, 0, 0], [0, 0, 0]]),
        (LEVELS[2], [[0.2, 0.2, 0.2], [0.5, 0, 0], [0, 0, 0]], [[1, 2, 3], [4, 0, 0], [0, 0, 0]]),
        (LEVELS[3], [[0.6, 0.6, 0.6], [0.5, 0, 0], [0, 0, 0]], [[6, 6, 6], [4, 0, 0], [0, 0, 0]]),
    ],
)
def test_levels_and_their_gradients_by_hand(level, value, slope, compiled):
    def weighted(logp, old_logp):
        return (WEIGHTS * level(logp, old_logp, MASK)).sum()

    level, gradient = jax.tree.map(
        jax.jit if compiled else lambda f: f, (level, jax.grad(weighted, (0, 1)))
    )
    np.testing.assert_allclose(level(LOGP, OLD, MASK), value, rtol=1e-5, atol=1e-7)
    by_logp, by_old_logp = gradient(LOGP, OLD)
    np.testing.assert_allclose(by_logp, slope, rtol=1e-6)
    np.testing.assert_array_equal(by_old_logp, 0.0)


@pytest.mark.parametrize("junk", JUNK)
@pytest.mark.parametrize("level", LEVELS)
def test_whatever_stands_in_padding_changes_no_level(level, junk):
    def weighted(logp, old_logp):
        return (WEIGHTS * rl.to_ratio(level(logp, old_logp, MASK))).sum()

    run = jax.value_and_grad(weighted)
    clean = run(LOGP, OLD)
    for dirty in ((jnp.where(MASK, LOGP, junk), OLD), (LOGP, jnp.where(MASK, OLD, junk))):
        jax.tree.map(np.testing.assert_array_equal, run(*dirty), clean)


def test_ratio_is_cut_off_where_it_would_overflow():
    value_and_gradient = jax.vmap(jax.value_and_grad(rl.to_ratio))
    log_ratio = jnp.array([-jnp.inf, 0.0, 1.0, 25.0, 500.0, jnp.inf])
    values, gradients = value_and_gradient(log_ratio)
    np.testing.assert_allclose(values, [0, 1, np.e, *3 * [np.exp(20)]], rtol=1e-6)
    np.testing.assert_allclose(gradients, [0, 1, np.e, 0, 0, 0], rtol=1e-6)


# Ratios below, within and above the bounds 0.8 and 1.2, and beyond 3 and 4; for A = 1, then A = -2.
RATIOS = jnp.array([0.5, 1.0, 1.5, 3.5, 5.0])
SLOPES = {1.0: [-1, -1, 0, 0, 0], -2.0: [0, 2, 2, 2, 2]}


@pytest.mark.parametrize(
    ("surrogate", "bound", "advantage", "values"),
    [
        (rl.ppo_clip, np.inf, 1.0, [-0.5, -1.0, -1.2, -1.2, -1.2]),
        (rl.ppo_clip, np.inf, -2.0, [1.6, 2.0, 3.0, 7.0, 10.0]),
        (rl.dual_ppo_clip, 3.0, 1.0, [-0.5, -1.0, -1.2, -1.2, -1.2]),
        (rl.dual_ppo_clip, 3.0, -2.0, [1.6, 2.0, 3.0, 6.0, 6.0]),
        (rl.two_sided_ppo_clip, 4.0, 1.0, [-0.5, -1.0, -1.2, -1.2, -1.2]),
        (rl.two_sided_ppo_clip, 4.0, -2.0, [1.6, 2.0, 3.0, 7.0, 8.0]),
    ],
)
def test_clipped_surrogates_by_hand(surrogate, bound, advantage, values):
    given, gradient = jax.vmap(jax.value_and_grad(surrogate))(RATIOS, 0 * RATIOS + advantage)
    np.testing.assert_allclose(given, values, rtol=1e-6)
    np.testing.assert_allclose(
        gradient, np.where(bound > RATIOS, SLOPES[advantage], 0.0), rtol=1e-6
    )


@pytest.mark.parametrize(("advantage", "tau"), [(1.0, 1.0), (-2.0, 1.05), (0.0, 1.05)])
def test_sapo_gate_has_the_slope_of_the_advantage_where_the_ratio_is_one(advantage, tau):
    values, slopes = jax.vmap(jax.value_and_grad(rl.sapo_gate))(RATIOS, 0 * RATIOS + advantage)
    np.testing.assert_allclose(values[1], -2 / tau * advantage, rtol=1e-6)
    gate = 1 / (1 + np.exp(-tau * (RATIOS - 1)))
    np.testing.assert_allclose(values, -4 / tau * gate * advantage, rtol=1e-5)
    np.testing.assert_allclose(slopes, -4 * gate * (1 - gate) * advantage, rtol=1e-5)
    np.testing.assert_allclose(slopes[1], -advantage, rtol=1e-6)


def test_ppo_clip_is_the_surrogate_of_grpo_to_the_last_bit():
    rng = np.random.default_rng(0)
    old_logp = jnp.array(-rng.exponential(1.0, 100), jnp.float32)
    logp = old_logp + jnp.array(rng.normal(0, 0.3, 100), jnp.float32)
    advantages = jnp.array(rng.normal(0, 1, 100), jnp.float32)
    bounds = {"clip_low": 0.1, "clip_high": 0.28}
    np.testing.assert_array_equal(
        rl.ppo_clip(rl.to_ratio(logp - old_logp), advantages, **bounds),
        rl.clipped_surrogate(logp, old_logp, advantages, **bounds),
    )
