"""The objective: Eq. 4."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from othink_jax import rl

OVER_FIVE = functools.partial(rl.mean_over_length, length=5)
JUNK = [np.nan, np.inf, -np.inf, 1e30, -1e30, 3e38, 1e4]


def numpy_loss(logp, old_logp, ref_logp, advantages, mask, *, kl_coef, clip_low, clip_high):
    """Eq. 4 and 5, token by token. Axes: sequences, tokens."""
    total = 0.0
    for sequence in range(len(mask)):
        tokens = np.flatnonzero(mask[sequence])
        subtotal = 0.0
        for t in tokens:
            rho = np.exp(float(logp[sequence, t]) - float(old_logp[sequence, t]))
            clipped = min(max(rho, 1 - clip_low), 1 + clip_high)
            d = float(ref_logp[sequence, t]) - float(logp[sequence, t])
            gain = min(rho * advantages[sequence], clipped * advantages[sequence])
            subtotal += gain - kl_coef * (np.exp(d) - d - 1)
        total += subtotal / max(len(tokens), 1)
    return -total / len(mask)


def arrays(seed=0, sequences=6, length=5):
    """Log-probabilities near each other, some clipped both ways, and ragged, partly empty masks."""
    rng = np.random.default_rng(seed)
    old_logp = -rng.exponential(1.0, (sequences, length))
    lengths = rng.integers(1, length + 1, sequences)
    lengths[:2] = 0, length
    return {
        "logp": np.float32(old_logp + rng.normal(0, 0.3, old_logp.shape)),
        "old_logp": np.float32(old_logp),
        "ref_logp": np.float32(old_logp + rng.normal(0, 0.5, old_logp.shape)),
        "advantages": np.float32(rng.normal(0, 1, sequences)),
        "mask": np.arange(length) < lengths[:, None],
    }


def loss(values, **settings):
    return rl.grpo_loss(**jax.tree.map(jnp.asarray, values), **{"kl_coef": 0.1, **settings})


@pytest.mark.parametrize("compiled", [False, True])
def test_surrogate_equals_hand_computed_values(compiled):
    ratio = jnp.array([1.0, 1.5, 0.5, 1.0, 1.5, 0.5])
    advantages = jnp.array([1.0, 1.0, 1.0, -2.0, -2.0, -2.0])
    surrogate = jax.jit(rl.clipped_surrogate) if compiled else rl.clipped_surrogate
    values = surrogate(jnp.log(ratio) - 1, jnp.full(6, -1.0), advantages)
    np.testing.assert_allclose(values, [-1.0, -1.2, -0.5, 2.0, 3.0, 1.6], rtol=1e-6)
    # -rho * A as long as the unclipped term is the smaller gain, else nothing.
    gradient = jax.grad(lambda x: surrogate(x, jnp.full(6, -1.0), advantages).sum())
    expected = [-1.0, 0.0, -0.5, 2.0, 3.0, 0.0]
    np.testing.assert_allclose(gradient(jnp.log(ratio) - 1), expected, rtol=1e-6)


def test_surrogate_clips_each_side_at_its_own_bound():
    surrogate = functools.partial(rl.clipped_surrogate, clip_low=0.1, clip_high=0.5)
    ratio, advantages = jnp.array([1.4, 1.6, 0.85]), jnp.array([1.0, 1.0, -1.0])
    np.testing.assert_allclose(
        surrogate(jnp.log(ratio), jnp.zeros(3), advantages), [-1.4, -1.5, 0.9], rtol=1e-6
    )


def test_surrogate_stays_finite_for_absurd_ratios():
    logp = jnp.array([500.0, 500.0, 500.0, -500.0, -jnp.inf])
    advantages = jnp.array([1.0, -1.0, 0.0, 1.0, -1.0])
    value_and_gradient = jax.vmap(jax.value_and_grad(rl.clipped_surrogate))
    values, gradients = value_and_gradient(logp, jnp.zeros(5), advantages)
    np.testing.assert_allclose(values, [-1.2, np.exp(20.0), 0.0, 0.0, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(gradients, 0.0)


def test_each_sequence_weighs_the_same_and_an_empty_one_counts():
    values = jnp.array([[2.0, 4.0, 9.0], [6.0, 9.0, 9.0], [9.0, 9.0, 9.0]])
    mask = jnp.array([[True, True, False], [True, False, False], [False, False, False]])
    # (3 + 6 + 0) / 3 sequences; a mean over tokens would be 4, one that skips the empty 4.5
    assert rl.mean_over_sequences(values, mask).value == 3.0
    gradient = jax.grad(lambda x: rl.mean_over_sequences(x, mask).value)(values)
    np.testing.assert_allclose(gradient, np.array([[0.5, 0.5, 0], [1, 0, 0], [0, 0, 0]]) / 3)


@pytest.mark.parametrize("compiled", [False, True])
def test_loss_equals_hand_computed_one(compiled):
    values = {
        "logp": jnp.log(jnp.array([[0.6, 0.5], [0.3, 0.7]])),
        "old_logp": jnp.log(jnp.array([[0.4, 0.5], [0.3, 0.1]])),
        "ref_logp": jnp.log(jnp.array([[0.6, 0.25], [0.6, 0.1]])),
        "advantages": jnp.array([1.0, -1.0]),
        "mask": jnp.array([[True, True], [True, False]]),
    }
    total, metrics = (jax.jit(loss) if compiled else loss)(values)
    # surrogates -1.2, -1 | 1; k3 at reference ratios 1, 1/2 | 2: 0, 0.193147 | 0.306853
    np.testing.assert_allclose(metrics["policy_loss"], (-1.1 + 1.0) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl"], (0.193147 / 2 + 0.306853) / 2, rtol=1e-5)
    np.testing.assert_allclose(metrics["kl_loss"], 0.1 * metrics["kl"], rtol=1e-6)
    np.testing.assert_allclose(metrics["clip_fraction"], (1 / 2 + 0) / 2, rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio"], (1.25 + 1.0) / 2, rtol=1e-6)
    np.testing.assert_allclose(total, -0.05 + 0.1 * 0.2017133, rtol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_loss_and_gradient_equal_the_equation_token_by_token(seed):
    values, settings = arrays(seed), {"kl_coef": 0.1, "clip_low": 0.1, "clip_high": 0.3}
    np.testing.assert_allclose(
        loss(values, **settings)[0], numpy_loss(**values, **settings), rtol=1e-5
    )
    with jax.enable_x64(True):
        values = {name: x if x.dtype == bool else np.float64(x) for name, x in values.items()}
        gradient = jax.grad(lambda x: loss({**values, "logp": x}, **settings)[0])(values["logp"])
        for position in np.ndindex(gradient.shape):
            step = np.zeros(gradient.shape)
            step[position] = 1e-6
            above = numpy_loss(**{**values, "logp": values["logp"] + step}, **settings)
            below = numpy_loss(**{**values, "logp": values["logp"] - step}, **settings)
            np.testing.assert_allclose(gradient[position], (above - below) / 2e-6, atol=1e-8)


def test_clip_fraction_counts_the_tokens_whose_gradient_the_clip_removes():
    ratio = jnp.log(jnp.array([[1.5, 0.5, 1.1, 0.9]]))
    zeros, mask = jnp.zeros((1, 4)), jnp.ones((1, 4), bool)
    for advantage, share in ((1.0, 1 / 4), (-1.0, 1 / 4), (0.0, 0.0)):
        metrics = loss(
            {
                "logp": ratio,
                "old_logp": zeros,
                "ref_logp": zeros,
                "advantages": jnp.array([advantage]),
                "mask": mask,
            }
        )[1]
        assert metrics["clip_fraction"] == share


def test_more_leading_axes_are_more_sequences():
    flat = arrays()
    grouped = {name: x.reshape(2, 3, *x.shape[1:]) for name, x in flat.items()}
    for one, other in zip(jax.tree.leaves(loss(flat)), jax.tree.leaves(loss(grouped)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", ["logp", "old_logp", "ref_logp"])
def test_whatever_stands_in_padding_changes_nothing(name, compiled):
    values = {key: jnp.asarray(x) for key, x in arrays().items()}
    mask = np.asarray(values["mask"])
    floats = {key: x for key, x in values.items() if key != "mask"}

    def evaluate(chosen):
        return loss({**chosen, "mask": values["mask"]})

    run = jax.value_and_grad(evaluate, has_aux=True)
    run = jax.jit(run) if compiled else run
    clean = run(floats)
    for junk in JUNK:
        dirty = jnp.where(mask, values[name], junk)
        (total, metrics), gradients = run({**floats, name: dirty})
        jax.tree.map(np.testing.assert_array_equal, ((total, metrics), gradients), clean)
        assert np.isfinite(total)
        for key in ("logp", "old_logp", "ref_logp"):
            np.testing.assert_array_equal(np.asarray(gradients[key])[~mask], 0.0)


def test_junk_in_every_padding_at_once_leaves_the_loss_finite():
    values = arrays()
    clean = loss(values)[0]
    for key, junk in (("logp", np.nan), ("old_logp", -np.inf), ("ref_logp", 1e30)):
        values[key] = np.where(values["mask"], values[key], np.float32(junk))
    values["advantages"][0] = np.nan  # of the empty sequence
    total, gradient = jax.value_and_grad(lambda x: loss({**values, "logp": x})[0])(values["logp"])
    assert total == clean
    assert np.isfinite(gradient).all()


def test_gradient_flows_through_the_policy_alone():
    values = arrays()
    floats = {key: jnp.asarray(x) for key, x in values.items() if key != "mask"}
    gradients = jax.grad(lambda x: loss({**x, "mask": values["mask"]})[0])(floats)
    assert np.abs(gradients.pop("logp")).max() > 0.01
    for gradient in gradients.values():
        np.testing.assert_array_equal(gradient, 0.0)


def test_on_policy_gradient_is_that_of_policy_gradient():
    """With the policy as its own sampler and no KL, d loss / d logp = -A / (|o| n)."""
    values = arrays()
    gradient = jax.grad(lambda x: loss({**values, "logp": x, "old_logp": x}, kl_coef=0.0)[0])
    lengths = np.maximum(values["mask"].sum(-1, keepdims=True), 1)
    expected = -values["advantages"][:, None] * values["mask"] / (lengths * len(lengths))
    np.testing.assert_allclose(gradient(values["logp"]), expected, rtol=1e-5, atol=1e-7)


def test_absurd_real_tokens_leave_a_finite_gradient():
    values = arrays()
    for key, junk in (("logp", -300.0), ("old_logp", -500.0), ("ref_logp", -0.1)):
        values[key][1, 0] = junk
    total, gradient = jax.value_and_grad(lambda x: loss({**values, "logp": x})[0])(values["logp"])
    assert np.isfinite(total)
    assert np.isfinite(np.square(gradient)).all()  # what the gradient norm will do


def test_arrays_that_do_not_match_are_refused():
    values = arrays()
    refused = (AssertionError, TypeError)  # the latter where shapes in signatures are checked
    with pytest.raises(refused):
        loss({**values, "advantages": values["advantages"][:1]})
    with pytest.raises(refused):
        loss({**values, "ref_logp": values["ref_logp"][:, :1]})


def test_without_a_reference_there_is_no_kl():
    values = jax.tree.map(jnp.asarray, arrays())
    weightless, _ = rl.policy_loss(**values, kl_coef=0.0)
    found, metrics = rl.policy_loss(**values | {"ref_logp": None}, kl_coef=1.0)
    assert found.value == weightless.value
    assert not {"kl", "kl_loss"} & metrics.keys()


@pytest.mark.parametrize(
    "reduce", [rl.mean_over_sequences, rl.mean_over_tokens, OVER_FIVE, rl.sum_over_tokens]
)
def test_sequences_that_are_not_kept_are_as_if_they_were_not_there(reduce):
    values = jax.tree.map(jnp.asarray, arrays())
    kept = jnp.array([True, False, True, True, False, True])
    found = rl.policy_loss(**values, kept=kept, kl_coef=0.1, reduce=reduce)
    fewer = {name: value[kept] for name, value in values.items()}
    expected = rl.policy_loss(**fewer, kl_coef=0.1, reduce=reduce)
    assert found[0].value == pytest.approx(float(expected[0].value), rel=1e-6)
    for name, average in expected[1].items():
        assert found[1][name].value == pytest.approx(float(average.value), rel=1e-6)


VALUES = jnp.array([[6.0, 0.0, np.nan], [1.0, 2.0, 3.0], [np.inf, np.nan, -np.inf]])
MASK = jnp.array([[True, False, False], [True, True, True], [False, False, False]])


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        (rl.mean_over_sequences, (6 + 2 + 0) / 3),
        (rl.mean_over_tokens, (6 + 1 + 2 + 3) / 4),
        (OVER_FIVE, (6 / 5 + 6 / 5 + 0) / 3),
        (rl.sum_over_tokens, (6 + 6 + 0) / 3),
    ],
)
def test_reductions_by_hand_with_junk_in_the_padding(reduce, expected):
    value, gradient = jax.value_and_grad(lambda x: reduce(x, MASK).value)(VALUES)
    assert value == pytest.approx(expected)
    assert (np.asarray(gradient)[~np.asarray(MASK)] == 0).all()
    assert reduce(VALUES, jnp.zeros_like(MASK)).value == 0


@pytest.mark.parametrize("estimator", [rl.kl_k1, rl.kl_k2, rl.kl_k3])
@pytest.mark.parametrize("reduce", [rl.mean_over_sequences, rl.mean_over_tokens, OVER_FIVE])
def test_loss_is_made_of_the_estimator_and_the_reduction_that_are_given(estimator, reduce):
    values = jax.tree.map(jnp.asarray, arrays())
    value, metrics = loss(values, kl_estimator=estimator, reduce=reduce)
    surrogate = rl.clipped_surrogate(
        values["logp"], values["old_logp"], values["advantages"][:, None]
    )
    kl = estimator(values["logp"], values["ref_logp"])
    expected = reduce(surrogate, values["mask"]).value + 0.1 * reduce(kl, values["mask"]).value
    assert value == pytest.approx(float(expected), rel=1e-5)
    # What is reported of a token does not depend on how the loss is reduced.
    assert metrics["kl"] == pytest.approx(float(rl.mean_over_sequences(kl, values["mask"]).value))
    ratio = loss(values)[1]["ratio"]
    assert metrics["ratio"] == pytest.approx(float(ratio))


def test_a_kl_over_the_vocabulary_stands_in_the_place_of_the_estimator():
    values = jax.tree.map(jnp.asarray, arrays())
    values.pop("ref_logp")
    mask = values["mask"]
    kl = jnp.where(mask, jnp.arange(1.0, 6.0), jnp.nan)

    def total(kl, **settings):
        loss, metrics = rl.policy_loss(
            **values, ref_logp=None, kl=kl, reduce=rl.mean_over_tokens, **settings
        )
        return loss.value, metrics

    (value, metrics), gradient = jax.value_and_grad(total, has_aux=True)(kl, kl_coef=0.3)
    kl_loss = 0.3 * jnp.where(mask, kl, 0.0).sum() / mask.sum()
    np.testing.assert_allclose(value, metrics["policy_loss"].value + kl_loss, rtol=1e-6)
    np.testing.assert_allclose(metrics["kl_loss"].value, kl_loss, rtol=1e-6)
    expected = rl.mean_over_sequences(jnp.where(mask, kl, 0.0), mask).value
    np.testing.assert_allclose(metrics["kl"].value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, np.where(mask, 0.3 / mask.sum(), 0.0), rtol=1e-6)
    with pytest.raises(ValueError, match="ref_logp or kl, not both"):
        rl.policy_loss(**values, ref_logp=values["logp"], kl=kl, kl_coef=0.3)
    with pytest.raises(ValueError, match="is a term of the loss only"):
        total(kl, kl_coef=0.3, kl_in_reward=True)


def test_weights_and_a_correction_multiply_the_objective_and_not_the_kl():
    values = jax.tree.map(jnp.asarray, arrays())
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.random(values["mask"].shape), jnp.float32)
    sampler_logp = jnp.where(values["mask"], values["old_logp"] - 0.4, jnp.nan)
    correction = functools.partial(rl.token_truncate, cap=1.2)

    def found(logp):
        loss, metrics = rl.policy_loss(
            **values | {"logp": logp},
            kl_coef=0.1,
            weights=weights,
            sampler_logp=sampler_logp,
            correction=correction,
        )
        return loss.value, metrics["kl"].value

    def expected(logp):
        given = (logp, values["old_logp"], values["advantages"], values["mask"])
        gain = rl.mean_over_sequences(1.2 * weights * rl.ppo(*given), values["mask"])
        kl = rl.mean_over_sequences(rl.kl_k3(logp, values["ref_logp"]), values["mask"])
        return gain.value + 0.1 * kl.value, kl.value

    results = [jax.value_and_grad(fn, has_aux=True)(values["logp"]) for fn in (found, expected)]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-7), *results)


@pytest.mark.parametrize("name", rl.CORRECTIONS)
def test_a_correction_leaves_a_sampler_that_is_the_policy_alone(name):
    logp = jnp.asarray(arrays()["old_logp"])
    mask = jnp.asarray(arrays()["mask"])
    weights = rl.CORRECTIONS[name](logp, logp, logp, -jnp.ones(mask.shape), mask)
    np.testing.assert_array_equal(weights, np.float32(mask))


def test_sequences_that_are_far_from_the_policy_are_left_out_where_they_were_bad():
    mask = jnp.array([[True, True], [True, True], [True, False], [True, True]])
    sampled = jnp.full((4, 2), -1.0)
    logp = sampled - jnp.array([[2.0, 0.2], [2.0, 0.2], [0.4, 9.0], [0.4, 0.2]])
    advantages = jnp.array([-1.0, 1.0, -1.0, -1.0])[:, None] * jnp.ones((1, 2))
    weights = rl.off_policy_sequences(logp, logp, sampled, advantages, mask, delta=0.5)
    np.testing.assert_array_equal(weights, [[0, 0], [1, 1], [1, 0], [1, 1]])


def test_a_correction_sees_the_advantages_without_the_kl():
    """A KL in the reward makes no sequence that did well one that did badly."""
    seen = []

    def correction(logp, old_logp, sampler_logp, advantages, mask):
        seen.append(advantages)
        return jnp.ones_like(logp)

    values = jax.tree.map(jnp.asarray, arrays())
    rl.policy_loss(**values, kl_coef=100.0, kl_in_reward=True, correction=correction)
    expected = jnp.broadcast_to(values["advantages"][..., None], seen[0].shape)
    real = values["mask"]
    np.testing.assert_array_equal(jnp.where(real, seen[0], 0), jnp.where(real, expected, 0))
