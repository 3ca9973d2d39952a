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


# Expected gradients, by enumeration of all tokens of a small vocabulary


def two_policies(seed=0, size=6):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=size)) for _ in range(2))


def expected_gradient(term, logits, old_logits, ref_logits):
    """Of a term's mean over tokens that the policy `old_logits` draws."""
    drawn = jax.nn.softmax(old_logits)

    def mean(logits):
        logps = (jax.nn.log_softmax(x) for x in (logits, old_logits, ref_logits))
        return (drawn * term(*logps)).sum()

    return jax.grad(mean)(logits)


def reverse_kl(logits, ref_logits):
    logp, ref_logp = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
    return (jnp.exp(logp) * (logp - ref_logp)).sum()


def forward_kl(logits, ref_logits):
    return reverse_kl(ref_logits, logits)


def total_variation(logits, ref_logits):
    return jnp.abs(jax.nn.softmax(logits) - jax.nn.softmax(ref_logits)).sum() / 2


@pytest.mark.parametrize(
    ("term", "divergence", "factor"),
    [
        (rl.own_gradient(rl.kl_k1), reverse_kl, 0),
        (rl.own_gradient(rl.kl_k2), reverse_kl, 1),
        (rl.own_gradient(rl.kl_k3), forward_kl, 1),
        (rl.own_gradient(rl.kl_abs), total_variation, 2),
        (rl.reverse_gradient(rl.kl_k1), reverse_kl, 1),
        (rl.reverse_gradient(rl.kl_k3), reverse_kl, 1),
        (rl.forward_gradient(rl.kl_k1), forward_kl, 1),
        (rl.ratio_gradient(rl.kl_k1), reverse_kl, 1),
        (rl.ratio_gradient(rl.kl_k3), reverse_kl, 1),
    ],
)
def test_on_policy_each_term_descends_the_divergence_that_its_docstring_names(
    x64, term, divergence, factor
):
    logits, ref_logits = two_policies()
    found = expected_gradient(term, logits, logits, ref_logits)
    expected = factor * jax.grad(divergence)(logits, ref_logits)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.abs(jax.grad(divergence)(logits, ref_logits)).max() > 0.05


@pytest.mark.parametrize("estimator", [rl.kl_k1, rl.kl_k3])
def test_times_the_ratio_it_is_the_reverse_divergence_whichever_policy_has_sampled(x64, estimator):
    logits, ref_logits = two_policies()
    old_logits, _ = two_policies(seed=1)
    found = expected_gradient(rl.ratio_gradient(estimator), logits, old_logits, ref_logits)
    np.testing.assert_allclose(found, jax.grad(reverse_kl)(logits, ref_logits), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "divergence"), [("full", reverse_kl), ("full_forward", forward_kl)]
)
def test_over_the_vocabulary_value_and_gradient_are_those_of_the_divergence(x64, name, divergence):
    logits, ref_logits = two_policies()

    def total(logits):
        terms = rl.KL_DIVERGENCES[name](*map(jax.nn.log_softmax, (logits, ref_logits)))
        return terms.sum()

    found = jax.value_and_grad(total)(logits)
    expected = jax.value_and_grad(divergence)(logits, ref_logits)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), found, expected)


def test_over_the_vocabulary_impossible_tokens_add_nothing_unless_the_other_has_them():
    half, other = (jnp.log(jnp.array(p)) for p in ([0.5, 0.5, 0.0], [0.25, 0.75, 0.0]))
    for terms, by_hand in ((rl.reverse_kl_terms, 0.5 * np.log(4 / 3)), (rl.forward_kl_terms, None)):
        value, gradient = jax.value_and_grad(lambda x, terms=terms: terms(x, other).sum())(half)
        assert np.isfinite(gradient).all()
        if by_hand is not None:
            np.testing.assert_allclose(value, by_hand, rtol=1e-6)
    certain = jnp.log(jnp.array([1.0, 0.0, 0.0]))
    assert np.isposinf(rl.reverse_kl_terms(half, certain).sum())
    np.testing.assert_allclose(rl.forward_kl_terms(half, certain).sum(), np.log(2), rtol=1e-6)


@pytest.mark.parametrize("gradient", rl.KL_GRADIENTS)
@pytest.mark.parametrize("estimator", rl.KL_ESTIMATORS)
def test_another_gradient_leaves_the_value_of_an_estimator(estimator, gradient):
    logp, ref_logp = jnp.log(jnp.array([0.5, 0.1])), jnp.log(jnp.array([0.2, 0.3]))
    term = rl.KL_GRADIENTS[gradient](rl.KL_ESTIMATORS[estimator])
    value = rl.KL_ESTIMATORS[estimator](logp, ref_logp)
    np.testing.assert_allclose(term(logp, logp, ref_logp), value, rtol=1e-6)


def test_in_the_reward_the_divergence_of_whole_sequences_is_descended(x64):
    """Two tokens, the second after the first: all sequences are enumerated.

    As a term of the loss, `kl_k2` of each token misses what the first does to the second.
    """
    first, ref_first = two_policies(size=3)
    second, ref_second = (x.reshape(3, 3) for x in two_policies(seed=2, size=9))
    pairs = jnp.stack(jnp.meshgrid(jnp.arange(3), jnp.arange(3), indexing="ij"), -1).reshape(-1, 2)

    def log_probs(logits):
        one, two = map(jax.nn.log_softmax, logits)
        return jnp.stack([one[pairs[:, 0]], two[pairs[:, 0], pairs[:, 1]]], axis=-1)

    ref_logp, mask = log_probs((ref_first, ref_second)), jnp.ones(pairs.shape, bool)

    def divergence(logits):
        logp = log_probs(logits)
        return (jnp.exp(logp.sum(-1)) * (logp - ref_logp).sum(-1)).sum()

    drawn = jnp.exp(log_probs((first, second)).sum(-1))
    zero = jnp.zeros(len(pairs))

    def mean(logits, in_reward):
        def of_sequence(logp, ref_logp, drawn, zero):
            loss, _ = rl.policy_loss(
                *(logp[None], jax.lax.stop_gradient(logp)[None], ref_logp[None]),
                *(zero[None], mask[:1]),
                kl_coef=1.0,
                kl_term=rl.own_gradient(rl.kl_k2),
                reduce=rl.sum_over_tokens,
                kl_in_reward=in_reward,
            )
            return drawn * loss.value

        return jax.vmap(of_sequence)(log_probs(logits), ref_logp, drawn, zero).sum()

    expected = jax.grad(divergence)((first, second))
    found = jax.grad(mean)((first, second), in_reward=True)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), found, expected)
    by_token = jax.grad(mean)((first, second), in_reward=False)
    assert np.abs(by_token[0] - expected[0]).max() > 0.01
    np.testing.assert_allclose(by_token[1], expected[1], atol=1e-12)
