"""Importance weights of foreign rollouts, and the masks of what to learn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from othink_jax import rl
from tests.test_rl_losses import JUNK

MASK = jnp.array([[True, True, True], [True, False, False], [False, False, False]])
LOG_WEIGHTS = jnp.log(jnp.array([[0.25, 1.0, 4.0], [2.0, 8.0, 8.0], [8.0, 8.0, 8.0]]))


def test_truncated_weights_by_hand():
    weights = rl.truncated_weights(LOG_WEIGHTS, MASK, cap=2.5)
    np.testing.assert_allclose(weights, [[0.25, 1, 2.5], [2, 0, 0], [0, 0, 0]], rtol=1e-6)


def test_masked_weights_by_hand():
    weights = rl.masked_weights(LOG_WEIGHTS, MASK, low=0.5, high=2.5)
    np.testing.assert_allclose(weights, [[0, 1, 0], [2, 0, 0], [0, 0, 0]], rtol=1e-6)


def test_weights_of_sequences_are_those_of_the_product_of_their_tokens():
    log_weights = rl.trajectory_log_ratio(LOG_WEIGHTS, jnp.zeros((3, 3)), MASK)
    weights = rl.truncated_weights(log_weights, MASK, cap=1.5)
    np.testing.assert_allclose(weights, [[1, 1, 1], [1.5, 0, 0], [0, 0, 0]], rtol=1e-6)


@pytest.mark.parametrize(
    "weigh",
    [
        lambda x: rl.truncated_weights(x, MASK, cap=2.5),
        lambda x: rl.masked_weights(x, MASK, low=0.5, high=2.5),
    ],
)
def test_weights_are_constants_and_blind_to_padding(weigh):
    run = jax.value_and_grad(lambda x: weigh(x).sum())
    value, gradient = run(LOG_WEIGHTS)
    np.testing.assert_array_equal(gradient, 0.0)
    for junk in JUNK:
        dirty = run(jnp.where(MASK, LOG_WEIGHTS, junk))
        np.testing.assert_array_equal(dirty[0], value)
        np.testing.assert_array_equal(dirty[1], 0.0)
    # A real weight that is nan is seen in the loss, not taken for one that lies outside.
    assert np.isnan(weigh(LOG_WEIGHTS.at[0, 0].set(jnp.nan))[0, 0])
    assert np.isfinite(weigh(LOG_WEIGHTS.at[0, 0].set(1e4))).all()


def test_off_policy_sequences_with_negative_advantage_are_left_out():
    """Mean of log pi_old - log pi: 0.3 over three tokens, 0.5 over one, and -1 over one."""
    old_logp = jnp.array([[-1.0, -1.0, -1.0], [-1.0, 0, 0], [-1.0, 0, 0], [0, 0, 0]])
    logp = old_logp - jnp.array([[0.1, 0.2, 0.6], [0.5, 9, 9], [-1.0, 9, 9], [9, 9, 9]])
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [1, 0, 0], [0, 0, 0]], bool)

    def kept(advantages, delta, logp=logp):
        return rl.off_policy_sequence_mask(
            logp, old_logp, jnp.array(advantages), mask, delta=delta
        ).tolist()

    negative = [-1.0, -1.0, -1.0, -1.0]
    assert kept(negative, 0.4) == [True, False, True, True]
    assert kept(negative, 0.2) == [False, False, True, True]
    assert kept([0.0, 1.0, -1.0, 1.0], 0.2) == [True, True, True, True]
    for junk in JUNK:
        assert kept(negative, 0.4, jnp.where(mask, logp, junk)) == [True, False, True, True]
    # A real nan keeps its sequence, so that the loss shows it.
    assert kept(negative, 0.4, logp.at[1, 0].set(jnp.nan)) == [True, True, True, True]


@pytest.mark.parametrize("compiled", [False, True])
def test_top_entropy_mask_by_hand(compiled):
    mask = jnp.array([[True, True, True, False], [True, True, False, False], [False] * 4])
    entropy = jnp.array([[0.1, 0.9, 0.5, 7.0], [0.2, 0.7, 7.0, 7.0], [7.0, 7.0, 7.0, 7.0]])

    def top(share, entropy=entropy):
        run = lambda x: rl.top_entropy_mask(x, mask, share=share)  # noqa: E731
        return np.asarray((jax.jit(run) if compiled else run)(entropy)).astype(int).tolist()

    # Of five tokens, sorted 0.1, 0.2, 0.5, 0.7, 0.9: the quantile 0.8 lies at 0.74, 0.5 at 0.5.
    assert top(0.2) == [[0, 1, 0, 0], [0, 0, 0, 0], [0] * 4]
    assert top(0.5) == [[0, 1, 1, 0], [0, 1, 0, 0], [0] * 4]
    assert top(1.0) == np.asarray(mask).astype(int).tolist()
    for junk in JUNK:
        assert top(0.2, jnp.where(mask, entropy, junk)) == top(0.2)
    nothing = rl.top_entropy_mask(entropy, jnp.zeros_like(mask), share=0.2)
    assert not nothing.any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: rl.truncated_weights(x, MASK, cap=0.0), "cap must be > 0 and finite, got 0.0"),
        (lambda x: rl.masked_weights(x, MASK, low=2.0, high=1.0), "low < high .*, got 2.0 and 1.0"),
        (lambda x: rl.top_entropy_mask(x, MASK, share=0.0), r"share must be in \(0, 1\], got 0.0"),
        (
            lambda x: rl.off_policy_sequence_mask(x, x, x[:, 0], MASK, delta=-0.1),
            "delta must be > 0 and finite, got -0.1",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(LOG_WEIGHTS)
