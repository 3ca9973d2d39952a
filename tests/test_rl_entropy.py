"""The entropy bonus, and its coefficient in the optimizer state."""

from collections import defaultdict
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from othink_jax import rl
from othink_jax.config import EntropyConfig
from othink_jax.errors import UserError
from othink_jax.training.optimizer import make_entropy
from tests.test_rl_kl_controls import stored_and_read
from tests.test_rl_losses import arrays
from tests.trl_peer import ACCELERATOR, trl_loss

PARAMS = {"w": jnp.ones(2)}


@pytest.mark.parametrize("compiled", [False, True])
def test_entropies_by_hand(compiled):
    """Of four tokens alike, of two alike and two impossible, of a certain one."""
    p = jnp.array([[0.25] * 4, [0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    run = jax.jit(rl.token_entropy) if compiled else rl.token_entropy
    np.testing.assert_allclose(run(jnp.log(p)), [np.log(4), np.log(2), 0.0], rtol=1e-6)


def test_its_gradient_is_finite_where_a_token_is_impossible():
    def total(logits):
        return rl.token_entropy(jax.nn.log_softmax(logits)).sum()

    gradient = jax.grad(total)(jnp.array([[0.0, 0.0, -1e30], [0.0, -200.0, 1.0]]))
    assert np.isfinite(gradient).all()
    gradient = jax.grad(lambda logp: rl.token_entropy(logp).sum())(jnp.array([0.0, -jnp.inf]))
    np.testing.assert_allclose(gradient, [-1.0, 0.0])


def test_the_bonus_is_a_mean_over_tokens_of_what_is_kept():
    entropy = jnp.array([[1.0, 2.0, jnp.nan], [3.0, jnp.inf, jnp.nan], [9.0, 9.0, 9.0]])
    mask = jnp.array([[True, True, False], [True, False, False], [True] * 3])
    kept = jnp.array([True, True, False])
    assert rl.entropy_loss(entropy, mask, kept, coef=0.5).value == -1.0
    gradient = jax.grad(lambda x: rl.entropy_loss(x, mask, kept, coef=0.6).value)(entropy)
    np.testing.assert_allclose(gradient, np.where(mask & kept[:, None], -0.2, 0.0), rtol=1e-6)


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_it_changes_a_loss_as_that_of_trl(loss_type):
    values, rng = arrays(0), np.random.default_rng(1)
    entropy = np.float32(rng.exponential(1.0, values["mask"].shape))
    settings = {"length": 7, "entropy": entropy}
    without, _ = trl_loss(values, loss_type, **settings)
    bonus = {"_entropy_bonus_enabled": True, "use_adaptive_entropy": False, "entropy_coef": 0.3}
    theirs, _ = trl_loss(
        values, loss_type, **settings, **bonus, accelerator=accelerator_at_the_end_of_a_step()
    )
    ours = rl.entropy_loss(*map(jnp.asarray, (entropy, values["mask"])), coef=0.3).value
    assert abs(ours) > 0.1
    assert theirs - without == pytest.approx(float(ours), rel=1e-4)


def accelerator_at_the_end_of_a_step():
    return SimpleNamespace(**vars(ACCELERATOR), sync_gradients=True)


def coefficients(tx, entropies, state=None):
    """Of each update, and the state after the last."""
    state, found = tx.init(PARAMS) if state is None else state, []
    update = jax.jit(tx.update)
    for entropy in entropies:
        found.append(float(rl.entropy_coef(state)))
        updates, state = update(PARAMS, state, PARAMS, entropy=jnp.float32(entropy))
        jax.tree.map(np.testing.assert_array_equal, updates, PARAMS)
    return found, state


def test_a_constant_coefficient_stays():
    assert coefficients(rl.carry_entropy_coef(0.25), [3.0, 0.1, np.nan])[0] == [0.25] * 3


def test_an_adaptive_coefficient_by_hand():
    """Level 0.2, 0.3, 0.4 where the entropy is short; down to 0.3, 0.2, and up again."""
    tx = rl.adapt_entropy_coef(0.2, 1.0, delta=0.1, low=0.15, high=0.4)
    entropies = [0.9, 1.0, 0.5, 1.1, 1.1, 1.1, 0.5]
    found, state = coefficients(tx, entropies)
    np.testing.assert_allclose(found, [0.0, 0.3, 0.4, 0.4, 0.0, 0.0, 0.0], rtol=1e-6)
    np.testing.assert_allclose([state.level, rl.entropy_coef(state)], 0.25, rtol=1e-6)


def test_it_moves_as_that_of_trl():
    rng, values = np.random.default_rng(0), arrays(0)
    measured = np.float32(rng.exponential(1.0, 12))
    found, _ = coefficients(rl.adapt_entropy_coef(0.1, 1.0, delta=0.04, high=0.2), measured)
    level, last, expected = 0.1, float("inf"), []
    config = {"entropy_target": 1.0, "entropy_coef_delta": 0.04}
    config |= {"entropy_coef_min": 0.0, "entropy_coef_max": 0.2}
    for entropy in measured:
        metrics = defaultdict(lambda: defaultdict(list))
        given = {"length": 7, "entropy": np.full(values["mask"].shape, entropy, np.float32)}
        without, _ = trl_loss(values, "grpo", **given)
        value, _ = trl_loss(
            values,
            "grpo",
            **given,
            config=config,
            _metrics=metrics,
            _entropy_bonus_enabled=True,
            _entropy_window_stats=None,
            _last_world_entropy=last,
            accelerator=accelerator_at_the_end_of_a_step(),
            entropy_coef=level,
            use_adaptive_entropy=True,
        )
        expected.append((without - value) / entropy)
        (level,), last = metrics["train"]["entropy_coef"], entropy
    assert 0 < sum(coef > 0 for coef in found) < len(found)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("entropy", [np.nan, np.inf, -np.inf])
def test_a_measurement_that_is_not_finite_changes_no_coefficient(entropy):
    tx = rl.adapt_entropy_coef(0.2, 1.0, delta=0.1)
    _, before = coefficients(tx, [0.5])
    _, after = coefficients(tx, [entropy], before)
    assert before == after
    assert after.coef.entropy_coef > 0


@pytest.mark.parametrize(
    "tx", [rl.carry_entropy_coef(0.3), rl.adapt_entropy_coef(0.1, 1.0, delta=0.04)]
)
def test_a_coefficient_goes_on_bit_for_bit_from_a_checkpoint(tx, tmp_path):
    entropies = np.random.default_rng(0).exponential(1.0, 8)
    expected, _ = coefficients(tx, entropies)
    _, state = coefficients(tx, entropies[:4])
    restored = stored_and_read(state, tmp_path)
    assert coefficients(tx, entropies[4:], restored)[0] == expected[4:]


def test_a_state_has_one_coefficient_or_none():
    assert rl.entropy_coef(optax.adam(1e-3).init(PARAMS)) is None
    twice = optax.chain(rl.carry_entropy_coef(0.1), rl.carry_entropy_coef(0.1))
    with pytest.raises(ValueError, match="holds 2 entropy coefficients"):
        rl.entropy_coef(twice.init(PARAMS))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"entropy_coef": -0.1}, "entropy_coef must be >= 0 and finite, got -0.1"),
        ({"entropy_coef": np.nan}, "entropy_coef must be >= 0 and finite, got nan"),
        ({"entropy_target": 0.0}, "--entropy-target: target must be > 0 and finite, got 0.0"),
        ({"entropy_target": np.inf}, "--entropy-target: target must be > 0 and finite, got inf"),
        ({"entropy_coef_max": 0.5}, "--entropy-coef-max needs --entropy-target"),
        ({"entropy_target": 1.0, "entropy_coef": 2.0}, r"initial must be in \[0.0, 1.0\], got 2"),
        ({"entropy_target": 1.0, "entropy_coef_delta": 0.0}, "delta must be > 0 and finite"),
        ({"entropy_target": 1.0, "entropy_coef_min": 1.0}, "0 <= low < high must hold, got 1.0"),
    ],
)
def test_what_makes_no_sense_is_one_line(settings, said):
    with pytest.raises(UserError, match=said):
        make_entropy(EntropyConfig(**settings))
