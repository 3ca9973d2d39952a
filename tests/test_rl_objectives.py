"""The named objectives: each against its equation in numpy, and what they promise together."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from othink_jax import rl
from tests.test_rl_losses import JUNK, arrays

NAMES = list(rl.OBJECTIVES)
ARGUMENTS = ("logp", "old_logp", "advantages", "mask")
# Numbers with which tokens of `inputs` lie on both sides of each bound.
BOUNDS = {
    "ppo": {"clip_low": 0.1, "clip_high": 0.15},
    "dual_clip": {"clip_low": 0.1, "clip_high": 0.15, "c": 1.3},
    "two_sided": {"clip_low": 0.1, "clip_high": 0.15, "delta": 1.3},
    "gspo": {"clip_low": 0.05, "clip_high": 0.06},
    "gspo_token": {"clip_low": 0.05, "clip_high": 0.06},
    "luspo": {"clip_low": 0.05, "clip_high": 0.06},
    "cispo": {"ratio_cap": 1.2},
    "sapo": {"temperature_pos": 0.8, "temperature_neg": 2.0},
    "gmpo": {"clip_low": 0.1, "clip_high": 0.15},
    "vespo": {"k_pos": 2.0, "lambda_pos": 1.5, "k_neg": 4.0, "lambda_neg": 2.5},
    "dppo_tv": {"delta": 0.05, "ratio_cap": 1.3},
    "dppo_kl": {"delta": 0.01, "ratio_cap": 1.3},
}
OF_SEQUENCES = ("gspo", "luspo", "gmpo")  # the value of a token depends on the others' log-probs


def inputs(seed=0, *, sequences=8, length=5, per_token=False):
    """As arguments of an objective, in float64: ragged and empty sequences, padding of zeros."""
    values = arrays(seed, sequences, length)
    values["logp"] = np.minimum(values["logp"], -0.01)
    if per_token:
        values["advantages"] = np.random.default_rng(seed + 1).normal(0, 1, values["mask"].shape)
    return {
        name: values[name] if name == "mask" else np.float64(values[name]) for name in ARGUMENTS
    }


def equation(name, logp, at, old_logp, advantages, mask, numbers):
    """An objective as its paper has it, sequence by sequence; `at` stands for a stopped logp."""
    values = np.zeros(mask.shape)
    for row in range(len(mask)):
        real = mask[row]
        x, x0, old = logp[row, real], at[row, real], old_logp[row, real]
        a = np.broadcast_to(np.atleast_1d(advantages[row]), mask.shape[1:])[real]
        if real.any():
            values[row, real] = EQUATIONS[name](x, x0, old, a, **numbers)
    return values


def clip_equation(ratio, a, clip_low, clip_high):
    return -np.minimum(ratio * a, np.clip(ratio, 1 - clip_low, 1 + clip_high) * a)


def ppo(x, x0, old, a, clip_low, clip_high):
    return clip_equation(np.exp(x - old), a, clip_low, clip_high)


def dual_clip(x, x0, old, a, clip_low, clip_high, c):
    gain = -ppo(x, x0, old, a, clip_low, clip_high)
    return -np.where(a < 0, np.maximum(gain, c * a), gain)


def two_sided(x, x0, old, a, clip_low, clip_high, delta):
    ratio = np.exp(x - old)
    clipped = np.clip(ratio, 1 - clip_low, 1 + clip_high)
    return -np.minimum(np.minimum(ratio, delta) * a, clipped * a)


def gspo(x, x0, old, a, clip_low, clip_high):
    ratio = np.prod(np.exp(x - old)) ** (1 / len(x))
    return clip_equation(ratio, a, clip_low, clip_high)


def gspo_token(x, x0, old, a, clip_low, clip_high):
    ratio = np.prod(np.exp(x0 - old)) ** (1 / len(x)) * np.exp(x) / np.exp(x0)
    return clip_equation(ratio, a, clip_low, clip_high)


def luspo(x, x0, old, a, clip_low, clip_high):
    return len(x) * gspo(x, x0, old, a, clip_low, clip_high)


def cispo(x, x0, old, a, ratio_cap):
    return -np.minimum(np.exp(x0 - old), ratio_cap) * a * x


def sapo(x, x0, old, a, temperature_pos, temperature_neg):
    tau = np.where(a > 0, temperature_pos, temperature_neg)
    return -4 / tau / (1 + np.exp(-tau * (np.exp(x - old) - 1))) * a


def gmpo(x, x0, old, a, clip_low, clip_high):
    ratio, sign = np.exp(x - old), np.sign(a)
    clipped = np.clip(ratio, np.exp(-clip_low), np.exp(clip_high))
    bounded = np.minimum(ratio**sign, clipped**sign) ** sign
    return -(np.prod(bounded) ** (1 / len(x))) * a


def vespo(x, x0, old, a, k_pos, lambda_pos, k_neg, lambda_neg):
    w = np.prod(np.exp(x0 - old))
    k, scale = np.where(a >= 0, [[k_pos], [lambda_pos]], [[k_neg], [lambda_neg]])
    return -(w**k) * np.exp(scale * (1 - w)) * a * x


def dppo_tv(x, x0, old, a, delta, ratio_cap):
    p, q = np.exp(old), np.exp(x0)
    kept = (np.abs(q - p) <= delta) | ((q - p) * np.where(a > 0, 1, -1) <= 0)
    return -np.where(kept, np.minimum(q / p, ratio_cap), 0.0) * a * x


def dppo_kl(x, x0, old, a, delta, ratio_cap):
    p, q = np.exp(old), np.exp(x0)
    divergence = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    kept = (divergence <= delta) | ((q - p) * np.where(a > 0, 1, -1) <= 0)
    return -np.where(kept, np.minimum(q / p, ratio_cap), 0.0) * a * x


EQUATIONS = {name: globals()[name] for name in NAMES}


@functools.cache
def compiled(name, **numbers):
    """Values, and the gradient of their sum with given weights, by all arguments but the mask."""

    def weighted(floats, mask, weights):
        values = rl.OBJECTIVES[name](**floats, mask=mask, **numbers)
        return (weights * values).sum(), values

    return jax.jit(jax.value_and_grad(weighted, has_aux=True))


def evaluate(name, values, weights, **numbers):
    """Values and gradients by name of argument."""
    floats = {key: jnp.asarray(x) for key, x in values.items() if key != "mask"}
    run = compiled(name, **numbers)
    (_, tokens), gradients = run(floats, jnp.asarray(values["mask"]), jnp.asarray(weights))
    return np.asarray(tokens), {key: np.asarray(x) for key, x in gradients.items()}


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradient_equal_the_equation(name, per_token):
    """Gradients of a random mean of tokens, against finite differences with stopped parts fixed."""
    bounds = BOUNDS[name]
    for seed in range(3):
        values = inputs(seed, per_token=per_token)
        weights = np.random.default_rng(seed).random(values["mask"].shape)
        with jax.enable_x64(True):
            tokens, gradients = evaluate(name, values, weights, **bounds)
        constant = [values[key] for key in ARGUMENTS[1:]]
        expected = equation(name, values["logp"], values["logp"], *constant, bounds)
        np.testing.assert_allclose(tokens, expected, rtol=1e-7, atol=1e-9)
        for position in np.ndindex(tokens.shape):
            step = np.zeros(tokens.shape)
            step[position] = 1e-6
            above = equation(name, values["logp"] + step, values["logp"], *constant, bounds)
            below = equation(name, values["logp"] - step, values["logp"], *constant, bounds)
            slope = (weights * (above - below)).sum() / 2e-6
            np.testing.assert_allclose(gradients["logp"][position], slope, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_some_tokens_of_the_comparison_are_bounded_and_some_are_not(name):
    """Else the comparison with the equation says nothing of the bounds."""
    if name == "sapo":
        pytest.skip("its gate has no bound")
    values = {key: np.concatenate([inputs(seed)[key] for seed in range(3)]) for key in ARGUMENTS}
    weights = np.ones(values["mask"].shape)
    _, bounded = evaluate(name, values, weights, **BOUNDS[name])
    wide = {"clip_low": 0.99, "clip_high": 1e3, "c": 2e3, "delta": 2e3, "ratio_cap": 1e3}
    wide |= {"k_pos": 1.0, "lambda_pos": 1e-6, "k_neg": 1.0, "lambda_neg": 1e-6}
    if name == "dppo_tv":
        wide["delta"] = 0.999
    _, free = evaluate(name, values, weights, **{key: wide[key] for key in BOUNDS[name]})
    same = np.isclose(bounded["logp"], free["logp"], rtol=1e-3)[values["mask"]]
    assert 1 - same.mean() > 0.02
    if name != "vespo":  # whose weight is smooth
        assert same.mean() > 0.02


@pytest.mark.parametrize("per_token", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_whatever_stands_in_padding_changes_nothing(name, per_token):
    values = {
        key: x if x.dtype == bool else np.float32(x)
        for key, x in inputs(per_token=per_token).items()
    }
    mask, weights = values["mask"], np.random.default_rng(0).random(values["mask"].shape)
    weights = np.float32(weights)
    padding = ~mask if per_token else ~mask.any(axis=-1)
    clean = evaluate(name, values, weights)
    np.testing.assert_array_equal(clean[0][~mask], 0.0)
    np.testing.assert_array_equal(clean[1]["logp"][~mask], 0.0)
    for key in ARGUMENTS[:3]:
        for junk in JUNK:
            where = padding if key == "advantages" else ~mask
            dirty = np.where(where, np.float32(junk), values[key])
            jax.tree.map(
                np.testing.assert_array_equal,
                evaluate(name, {**values, key: dirty}, weights),
                clean,
            )


@pytest.mark.parametrize("name", NAMES)
def test_gradient_flows_through_the_policy_alone(name):
    values = inputs()
    _, gradients = evaluate(name, values, np.ones(values["mask"].shape))
    assert np.abs(gradients["logp"]).max() > 0
    np.testing.assert_array_equal(gradients["old_logp"], 0.0)
    np.testing.assert_array_equal(gradients["advantages"], 0.0)


@pytest.mark.parametrize("log_ratio", [-1e4, -90.0, -30.0, 30.0, 90.0, 1e4])
@pytest.mark.parametrize("name", NAMES)
def test_absurd_ratios_leave_values_and_squares_of_gradients_finite(name, log_ratio):
    values = {key: x if x.dtype == bool else np.float32(x) for key, x in inputs().items()}
    values["logp"] = values["logp"].copy()
    values["logp"][:, ::2] = values["old_logp"][:, ::2] + np.float32(log_ratio)
    tokens, gradients = evaluate(name, values, np.ones(values["mask"].shape))
    assert np.isfinite(tokens).all()
    assert np.isfinite(np.square(gradients["logp"])).all()  # what the gradient norm will do


@pytest.mark.parametrize("name", NAMES)
def test_sequences_without_a_token_are_zero(name):
    values = {**inputs(), "mask": np.zeros((8, 5), bool)}
    tokens, gradients = evaluate(name, values, np.ones((8, 5)))
    np.testing.assert_array_equal(tokens, 0.0)
    np.testing.assert_array_equal(gradients["logp"], 0.0)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1000))
@pytest.mark.parametrize("name", NAMES)
def test_on_policy_gradient_is_that_of_policy_gradient(name, seed):
    """-A at each token; for sequences in their mean. LUSPO leaves the length out of it."""
    values = inputs(seed)
    values["old_logp"] = values["logp"]
    mask, advantages = values["mask"], values["advantages"][:, None]
    lengths = np.maximum(mask.sum(-1, keepdims=True), 1)
    _, by_sequence = evaluate(name, values, mask / lengths)
    expected = -advantages * mask / (1 if name == "luspo" else lengths)
    np.testing.assert_allclose(by_sequence["logp"], expected, rtol=1e-5, atol=1e-6)
    weights = np.random.default_rng(seed).random(mask.shape)
    _, by_token = evaluate(name, values, weights)
    same = np.allclose(by_token["logp"], -advantages * mask * weights, rtol=1e-5, atol=1e-6)
    assert same == (name not in OF_SEQUENCES or mask.sum(-1).max() <= 1)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 1000), st.integers(0, 7))
@pytest.mark.parametrize("name", NAMES)
def test_neither_padding_nor_the_order_of_sequences_matters(name, seed, padding):
    values = inputs(seed)
    order = np.random.default_rng(seed).permutation(len(values["mask"]))
    weights = np.random.default_rng(seed).random(values["mask"].shape)
    tokens, gradients = evaluate(name, values, weights, **BOUNDS[name])

    # To a fixed width, of which `padding` columns come first, so that one program serves all.
    def moved(x):
        columns = ((0, 0), (padding, 7 - padding))[: x.ndim] if x.ndim > 1 else ((0, 0),)
        return np.pad(x, columns)[order]

    moved_tokens, moved_gradients = evaluate(
        name, {key: moved(x) for key, x in values.items()}, moved(weights), **BOUNDS[name]
    )
    np.testing.assert_allclose(moved_tokens, moved(tokens), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        moved_gradients["logp"], moved(gradients["logp"]), rtol=1e-5, atol=1e-6
    )


def test_ppo_is_the_surrogate_of_the_loss_to_the_last_bit():
    values = jax.tree.map(jnp.asarray, arrays())
    rest = values["old_logp"], values["advantages"], values["mask"]

    def ours(logp):
        return rl.mean_over_sequences(rl.ppo(logp, *rest), values["mask"]).value

    def theirs(logp):
        return rl.grpo_loss(**{**values, "logp": logp}, kl_coef=0.0)[1]["policy_loss"]

    one, other = (jax.value_and_grad(f)(values["logp"]) for f in (ours, theirs))
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_gspo_token_is_gspo_where_a_sequence_has_one_advantage():
    values = inputs()
    weights = values["mask"] / np.maximum(values["mask"].sum(-1, keepdims=True), 1)
    bounds = BOUNDS["gspo"]
    one, other = (evaluate(name, values, weights, **bounds) for name in ("gspo", "gspo_token"))
    np.testing.assert_allclose(one[0], other[0], rtol=1e-6)
    np.testing.assert_allclose(one[1]["logp"], other[1]["logp"], rtol=1e-5, atol=1e-7)


def test_luspo_in_the_mean_is_gspo_in_the_sum():
    values, bounds = inputs(), BOUNDS["gspo"]
    mask = values["mask"]
    mean = evaluate("luspo", values, mask / np.maximum(mask.sum(-1, keepdims=True), 1), **bounds)
    total = evaluate("gspo", values, mask.astype(float), **bounds)
    np.testing.assert_allclose(mean[1]["logp"], total[1]["logp"], rtol=1e-5, atol=1e-7)


def one_sequence(objective, logp, old_logp, advantage, **numbers):
    """Gradient by the log-probabilities of one sequence without padding."""
    logp, old_logp = jnp.array([logp]), jnp.array([old_logp])
    rest = old_logp, jnp.array([advantage]), jnp.ones(logp.shape, bool)
    return jax.grad(lambda x: objective(x, *rest, **numbers).sum())(logp)[0]


@pytest.mark.parametrize(
    ("log_ratios", "log_weight"),
    [
        ([25.0, -22.0], 0.0),  # 20 - 20: tokens are bounded before they are summed
        ([0.5, -0.2], 0.3),
        ([-15.0, -15.0], np.log(1e-8)),
    ],
)
def test_log_ratios_of_vespo_are_bounded_by_token_and_by_sequence(log_ratios, log_weight):
    old_logp = np.float32([-30.0, -1.0])
    slope = one_sequence(rl.vespo, old_logp + np.float32(log_ratios), old_logp, -1.5)
    weight = np.exp(2.0 + 3.0 * log_weight - 2.0 * np.exp(log_weight))
    np.testing.assert_allclose(slope, [1.5 * weight] * 2, rtol=1e-4)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_binary_kl_is_finite_where_a_probability_is_rounded_to_one(advantage):
    """Certain then and now, certain then, certain now: far in the second and third, once each."""
    slope = one_sequence(rl.dppo_kl, [0.0, -2.0, 0.0], [0.0, 0.0, -2.0], advantage)
    up, down = advantage > 0, advantage < 0
    expected = -advantage * np.array([1.0, up * np.exp(-2.0), down * np.exp(2.0)])
    np.testing.assert_allclose(slope, expected, rtol=1e-5)


def test_more_leading_axes_are_more_sequences():
    values = inputs()
    grouped = {key: x.reshape(2, 4, *x.shape[1:]) for key, x in values.items()}
    weights = np.ones(values["mask"].shape)
    for name in NAMES:
        flat, _ = evaluate(name, values, weights)
        axes, _ = evaluate(name, grouped, weights.reshape(2, 4, -1))
        np.testing.assert_allclose(axes.reshape(flat.shape), flat, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "numbers", "message"),
    [
        ("ppo", {"clip_low": 1.0}, r"clip_low must be in \(0, 1\), got 1.0"),
        ("ppo", {"clip_high": 0.0}, "clip_high must be > 0 and finite, got 0.0"),
        ("gspo", {"clip_low": float("nan")}, r"clip_low must be in \(0, 1\), got nan"),
        ("dual_clip", {"c": 1.0}, "c must be > 1 and finite.*, got 1.0"),
        ("two_sided", {"delta": 1.2}, "delta must be finite and above .* = 1.2.*, got 1.2"),
        ("cispo", {"ratio_cap": float("inf")}, "ratio_cap must be > 0 and finite, got inf"),
        ("sapo", {"temperature_neg": 0.0}, "temperature_neg must be > 0 and finite, got 0.0"),
        ("gmpo", {"clip_low": -0.4}, "clip_low must be > 0 and finite, got -0.4"),
        ("vespo", {"lambda_pos": 0.0}, "lambda_pos must be > 0 and finite, got 0.0"),
        ("dppo_tv", {"delta": 1.0}, r"delta must be in \(0, 1\)"),
        ("dppo_kl", {"delta": 0.0}, "delta must be > 0 and finite, got 0.0"),
        ("dppo_kl", {"ratio_cap": 0.0}, "ratio_cap must be > 0 and finite, got 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused(name, numbers, message):
    arguments = jax.tree.map(jnp.asarray, inputs())
    with pytest.raises(ValueError, match=message):
        rl.OBJECTIVES[name](**arguments, **numbers)


@pytest.mark.parametrize("name", NAMES)
def test_arrays_that_do_not_match_are_refused(name):
    values = jax.tree.map(jnp.asarray, inputs())
    refused = (AssertionError, TypeError)  # the latter where shapes in signatures are checked
    for key, wrong in (
        ("advantages", values["advantages"][:1]),
        ("advantages", values["advantages"][:, None]),
        ("old_logp", values["old_logp"][:, :1]),
    ):
        with pytest.raises(refused):
            rl.OBJECTIVES[name](**{**values, key: wrong})
