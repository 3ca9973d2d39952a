"""Ways to control the KL weight: each a gradient transformation, that settings name."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from othink_jax import rl
from othink_jax.checkpoint.store import TrainingStore
from othink_jax.config import KLConfig
from othink_jax.errors import UserError
from othink_jax.training.optimizer import make_kl, resolved_kl
from othink_jax.training.records import reason

PARAMS = {"w": jnp.ones(2)}
CONTROLLERS = ("ziegler", "pid", "dual")
TARGETED = {"ziegler": 0.05, "pid": 0.05, "dual": 0.05}


def control_of(name, updates=100, **numbers):
    target = TARGETED.get(name)
    return make_kl(KLConfig(kl_schedule=name, kl_target=target, kl_args=numbers), updates)


def weights(tx, kls, state=None):
    """Of each update, and the state after the last."""
    state, found = tx.init(PARAMS) if state is None else state, []
    update = jax.jit(tx.update)
    for kl in kls:
        found.append(float(rl.kl_coef(state)))
        updates, state = update(PARAMS, state, PARAMS, kl=jnp.float32(kl))
        jax.tree.map(np.testing.assert_array_equal, updates, PARAMS)
    assert update._cache_size() <= 1
    return found, state


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        ("constant", {}, [0.04] * 5),
        ("linear", {"start": 0.1, "end": 0.02}, [0.1, 0.08, 0.06, 0.04, 0.02]),
        ("cosine", {"start": 0.1, "end": 0.02}, [0.1, 0.0882843, 0.06, 0.0317157, 0.02]),
        ("cyclic", {"low": 0.1, "high": 0.3, "cycles": 2.0}, [0.1, 0.2, 0.1, 0.2, 0.1]),
        ("step", {"start": 0.8, "factor": 0.5, "steps": 4.0}, [0.8, 0.4, 0.2, 0.1, 0.1]),
    ],
)
def test_schedules_by_hand(name, numbers, expected):
    found, _ = weights(control_of(name, updates=4, **numbers), [0.0] * 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_schedule_of_the_paper_has_its_old_numbers_and_its_old_state():
    made, old = make_kl(KLConfig(), 10), rl.carry_kl_coef(rl.dynamic_kl(0.04, 0.10, 10, 0.3))
    assert weights(made, [0.0] * 12)[0] == weights(old, [0.0] * 12)[0]
    assert jax.tree.structure(made.init(PARAMS)) == jax.tree.structure(old.init(PARAMS))


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("scale", [0.001, 0.1])
def test_a_controller_finds_the_weight_that_holds_the_kl_at_its_target(name, scale):
    """A policy whose KL is scale / beta: the weight must go down to 0.02, or up to 2."""
    tx = control_of(name)
    state = tx.init(PARAMS)
    update = jax.jit(tx.update)
    for _ in range(600):
        kl = scale / rl.kl_coef(state)
        _, state = update(PARAMS, state, PARAMS, kl=kl)
    np.testing.assert_allclose(scale / rl.kl_coef(state), 0.05, rtol=0.02)


@pytest.mark.parametrize("name", ["pid", "dual"])
def test_a_weight_stays_in_its_bounds_and_leaves_them_at_once(name):
    """Driven against a bound for long, it does not have to come back the whole way."""
    tx = control_of(name, low=0.01, high=0.2)
    for kl, opposite, bound in ((5.0, 0.0, 0.2), (0.0, 5.0, 0.01)):
        found, state = weights(tx, [kl] * 200)
        assert found[-1] == pytest.approx(bound)
        back, _ = weights(tx, [opposite] * 3, state)
        assert 0.01 < back[-1] < 0.2
        assert abs(np.log(back[-1] / bound)) > 0.05


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize("kl", [np.nan, np.inf, -np.inf])
def test_a_measurement_that_is_not_finite_changes_no_weight(name, kl):
    tx = control_of(name)
    found, state = weights(tx, [0.2, 0.2, kl])
    assert float(rl.kl_coef(state)) == found[-1]
    after, _ = weights(tx, [0.05] * 3, state)
    assert np.isfinite(after).all()


@pytest.mark.parametrize("name", rl.KL_CONTROLS)
def test_a_control_goes_on_bit_for_bit_from_a_checkpoint(name, tmp_path):
    tx = optax.chain(optax.adam(1e-3), control_of(name, updates=8))
    kls = np.random.default_rng(0).exponential(0.06, 8)
    expected, _ = weights_of_chain(tx, kls)
    _, state = weights_of_chain(tx, kls[:4])
    store = TrainingStore(tmp_path / "checkpoints", keep=1)
    store.save(1, state, {})
    store.close()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    restored, _ = TrainingStore(tmp_path / "checkpoints", keep=1).restore(like)
    assert weights_of_chain(tx, kls[4:], restored)[0] == expected[4:]


def weights_of_chain(tx, kls, state=None):
    state, found = tx.init(PARAMS) if state is None else state, []
    for kl in kls:
        found.append(float(rl.kl_coef(state)))
        _, state = jax.jit(tx.update)(PARAMS, state, PARAMS, kl=jnp.float32(kl))
    return found, state


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kl_schedule": "none"}, "--kl-schedule none is not known; what is known: constant, dyn"),
        ({"kl_schedule": "dual"}, "--kl-schedule dual needs kl_target"),
        ({"kl_schedule": "linear", "kl_args": {"low": 1.0}}, "linear has no number low: it has"),
        ({"kl_schedule": "constant", "kl_target": 0.1}, "constant does not take --kl-target"),
        ({"kl_schedule": "linear", "kl_args": {"end": -1.0}}, "linear: end must be >= 0"),
        (
            {"kl_schedule": "pid", "kl_target": 0.1, "kl_args": {"low": 1.0}},
            r"pid: initial must be in \[1.0, 10.0\], got 0.04",
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(settings, said):
    with pytest.raises(UserError, match=said):
        make_kl(KLConfig(**settings), 10)


@pytest.mark.parametrize("target", [0.0, -1.0, np.inf, np.nan])
def test_a_target_must_be_a_positive_number(target):
    with pytest.raises(UserError, match="kl_target must be > 0 and finite"):
        KLConfig(kl_schedule="dual", kl_target=target)


def test_a_record_holds_the_numbers_that_were_in_force():
    found = resolved_kl(KLConfig(kl_schedule="ziegler", kl_target=0.1, kl_args={"gain": 0.3}))
    assert found.kl_args == {"gain": 0.3, "limit": 0.2}


def test_a_change_of_the_weight_has_its_reason():
    assert reason(0.08, 0.05, 0.1, 0.12) == (
        "KL 0.08 above its target 0.05: the weight rises, to 0.12"
    )
    assert "below its target 0.05: the weight stays" in reason(0.01, 0.05, 0.1, 0.1)
