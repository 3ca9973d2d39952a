"""The advantages beside the group's, and the penalty of long completions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from othink_jax import rl

REWARDS = np.array([[1.0, 0.0, 0.0, 0.0], [2.0, 1.0, 1.0, 0.0], [0.1, 0.1, 0.1, 0.1]], np.float32)
# Names of those that give a group without signal zeros, whatever other groups got.
BY_GROUP = [name for name in rl.ADVANTAGES if name != "reinforce_pp"]


def spread(values):
    """Standard deviation with divisor n - 1, by hand."""
    values = np.ravel(values)
    return np.sqrt(sum((value - values.mean()) ** 2 for value in values) / (len(values) - 1))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mean", [[0.75, -0.25, -0.25, -0.25], [1, 0, 0, -1], [0] * 4]),
        ("rloo", [[1, -1 / 3, -1 / 3, -1 / 3], [4 / 3, 0, 0, -4 / 3], [0] * 4]),
        # k = 2: twice the mean lead over the three others, where there is one.
        ("pass_at_k", [[2, 0, 0, 0], [8 / 3, 2 / 3, 2 / 3, 0], [0] * 4]),
    ],
)
def test_advantages_equal_hand_computed_ones(name, expected, compiled):
    advantages = jax.jit(rl.ADVANTAGES[name]) if compiled else rl.ADVANTAGES[name]
    actual = advantages(REWARDS)
    assert actual.dtype == jnp.float32
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


def test_advantages_by_the_batch_equal_their_equations():
    rewards = REWARDS.astype(np.float64)
    centred = rewards - rewards.mean(axis=1, keepdims=True)
    expected = {
        "batch": centred / (spread(rewards) + 1e-4),
        "reinforce_pp": (rewards - rewards.mean()) / spread(rewards),
        "reinforce_pp_baseline": centred / spread(centred),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(rl.ADVANTAGES[name](REWARDS), values, rtol=1e-5, atol=1e-6)


def test_several_rewards_count_alike_whatever_their_spread():
    rewards = np.random.default_rng(0).normal(0, 1, (2, 6, 4))
    rewards[:, 2] = 0.1
    summed = 0.0
    for kind, weight in zip(rewards, (1.0, 0.5), strict=True):
        for row, group in enumerate(kind):
            part = np.zeros_like(kind)
            part[row] = weight * (group - group.mean()) / (spread(group) + 1e-4)
            summed = summed + part
    actual = rl.gdpo_advantages(np.float32(rewards), weights=[1.0, 0.5])
    np.testing.assert_allclose(actual, summed / (spread(summed) + 1e-4), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(actual[2], 0.0)
    rewards[1] *= 100
    scaled = rl.gdpo_advantages(np.float32(rewards), weights=[1.0, 0.5])
    np.testing.assert_allclose(scaled, actual, rtol=1e-3, atol=1e-3)  # eps beside the deviations


@pytest.mark.parametrize("group_size", [2, 3, 5])
def test_pass_at_k_is_the_mean_over_all_choices_of_others(group_size):
    rewards = np.random.default_rng(group_size).choice([0.0, 0.5, 1.0, 3.0], (6, group_size))
    for k in range(2, group_size + 1):
        expected = np.zeros_like(rewards)
        for row, i in np.ndindex(rewards.shape):
            rest = [rewards[row, j] for j in range(group_size) if j != i]
            choices = list(itertools.combinations(rest, k - 1))
            gains = [max(rewards[row, i], *others) - max(others) for others in choices]
            expected[row, i] = k * sum(gains) / len(choices)
        actual = rl.pass_at_k_advantages(np.float32(rewards), k=k)
        np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("k", "group_size"), [(2, 2), (2, 4), (3, 4), (4, 4)])
def test_pass_at_k_has_the_gradient_of_the_best_of_k(k, group_size):
    """In expectation, by enumeration of all groups that a policy over three answers can draw."""
    logits, rewards = jnp.array([0.2, -0.5, 0.1]), np.array([0.0, 1.0, 0.4])

    def best(logits):
        p = jax.nn.softmax(logits)
        groups = np.array(list(itertools.product(range(3), repeat=k)))
        return (p[groups].prod(axis=-1) * rewards[groups].max(axis=-1)).sum()

    groups = np.array(list(itertools.product(range(3), repeat=group_size)))
    advantages = rl.pass_at_k_advantages(np.float32(rewards[groups]), k=k)

    def surrogate(x):  # with the probabilities of groups as they are at `logits`
        weights = jax.nn.softmax(logits)[groups].prod(axis=-1, keepdims=True)
        return (weights * advantages * jax.nn.log_softmax(x)[groups]).mean(axis=-1).sum()

    np.testing.assert_allclose(
        jax.grad(surrogate)(logits), jax.grad(best)(logits), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", BY_GROUP)
def test_group_of_equal_rewards_has_exactly_zero_advantages(name):
    rewards = np.array([[0.1] * 7, [2.3] * 7, [1e6 + 0.1] * 7, [0.0, *[1.0] * 6]], np.float32)
    for advantages in (rl.ADVANTAGES[name], jax.jit(rl.ADVANTAGES[name])):
        np.testing.assert_array_equal(advantages(rewards)[:3], 0.0)
        assert np.abs(advantages(rewards)[3]).max() > 0


@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_batch_without_any_signal_has_exactly_zero_advantages(name):
    rewards = np.full((3, 7), 0.1, np.float32)
    np.testing.assert_array_equal(rl.ADVANTAGES[name](rewards), 0.0)
    np.testing.assert_array_equal(rl.gdpo_advantages(rewards[None], weights=[1.0]), 0.0)


@pytest.mark.parametrize("name", ["group", "batch", "reinforce_pp", "reinforce_pp_baseline"])
def test_batch_without_any_signal_needs_no_eps(name):
    rewards = np.full((3, 4), 0.5, np.float32)  # whose standard deviation is zero to the last bit
    np.testing.assert_array_equal(rl.ADVANTAGES[name](rewards, eps=0.0), 0.0)


@settings(deadline=None, max_examples=10)
@given(
    hnp.arrays(np.float32, (4, 3), elements=st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0])),
    st.permutations(range(4)),
    st.permutations(range(3)),
)
@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_order_of_groups_and_within_them_does_not_matter(name, rewards, groups, completions):
    def moved(x):
        return np.asarray(x)[groups][:, completions]

    advantages = rl.ADVANTAGES[name]
    np.testing.assert_allclose(
        advantages(moved(rewards)), moved(advantages(rewards)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_nan_reward_is_seen(name):
    rewards = np.array([[np.nan, 1.0], [0.0, 1.0]], np.float32)
    advantages = np.asarray(rl.ADVANTAGES[name](rewards))
    assert np.isnan(advantages[0]).all()
    by_batch = name in ("batch", "reinforce_pp", "reinforce_pp_baseline")
    assert np.isnan(advantages[1]).all() == by_batch


@pytest.mark.parametrize("name", rl.ADVANTAGES)
def test_group_of_one_is_refused_where_the_group_is_the_baseline(name):
    if name == "reinforce_pp":
        assert rl.ADVANTAGES[name](REWARDS[:, :1]).shape == (3, 1)
        return
    with pytest.raises(ValueError, match=r"a group of one completion|a group must hold more"):
        rl.ADVANTAGES[name](REWARDS[:, :1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rl.pass_at_k_advantages(REWARDS, k=1), r"k must be in \[2, 4\].*, got 1"),
        (lambda: rl.pass_at_k_advantages(REWARDS, k=5), r"k must be in \[2, 4\].*, got 5"),
        (lambda: rl.batch_advantages(REWARDS, eps=-1.0), "eps must be >= 0, got -1.0"),
        (lambda: rl.reinforce_pp_advantages(REWARDS[:1, :1]), "a batch of one reward"),
        (lambda: rl.gdpo_advantages(REWARDS[None], weights=[]), "1 rewards need as many weights"),
        (
            lambda: rl.gdpo_advantages(REWARDS[None], weights=[float("inf")]),
            r"weights must be finite, got \[inf\]",
        ),
        (lambda: rl.soft_overlong_penalty(np.array([1]), limit=8, cache=9), "got 9 and 8"),
        (lambda: rl.soft_overlong_penalty(np.array([1]), limit=8, cache=0), "got 0 and 8"),
    ],
)
def test_numbers_out_of_range_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_overlong_penalty_falls_over_the_last_tokens():
    lengths = np.array([[0, 6, 7], [8, 10, 12]])
    penalty = rl.soft_overlong_penalty(lengths, limit=10, cache=4)
    np.testing.assert_allclose(penalty, [[0, 0, -0.25], [-0.5, -1, -1]])
