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
from othink_jax.training.optimizer import check_kl, make_kl, resolved_kl
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
        # Three parts of 4/3 updates begin at 0, 4/3 and 8/3.
        ("step", {"start": 0.8, "factor": 0.5, "steps": 3.0}, [0.8, 0.8, 0.4, 0.2, 0.2]),
        # Eight parts of half an update: two steps each.
        ("step", {"start": 0.8, "factor": 0.5, "steps": 8.0}, [0.8, 0.2, 0.05, 0.0125, 0.00625]),
    ],
)
def test_schedules_by_hand(name, numbers, expected):
    found, _ = weights(control_of(name, updates=4, **numbers), [0.0] * 5)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("cycles", [1.0, 2.0, 3.0])
def test_a_cycle_begins_at_its_lowest_weight_whatever_the_length_of_the_run(cycles):
    for updates in range(int(cycles), 130, int(cycles)):
        counts = np.arange(130)
        found = rl.cyclic_kl(0.0, 1.0, updates, cycles)(counts)
        np.testing.assert_allclose(found, counts * cycles % updates / updates, atol=1e-6)


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


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("ziegler", {}), ("pid", {}), ("dual", {}), ("dual", {"momentum": 0.9})],
)
def test_a_weight_stays_in_its_bounds_and_leaves_them_at_once(name, numbers):
    """Driven against a bound for long, it does not have to come back the whole way."""
    tx = control_of(name, low=0.01, high=0.2, **numbers)
    for kl, opposite, bound in ((5.0, 0.0, 0.2), (0.0, 5.0, 0.01)):
        found, state = weights(tx, [kl] * 200)
        assert found[-1] == pytest.approx(bound)
        back, _ = weights(tx, [opposite] * 3, state)
        assert 0.01 < back[-1] < 0.2
        assert abs(np.log(back[-1] / bound)) > 0.035


@pytest.mark.parametrize("name", CONTROLLERS)
@pytest.mark.parametrize(("kl", "bound"), [(0.0, 1e-4), (5.0, 10.0)])
def test_a_kl_that_never_comes_to_its_target_leaves_a_weight_that_can_still_move(name, kl, bound):
    """Of 6000 updates; without bounds, Ziegler's weight is 0 or inf after 5000, and stays."""
    tx = control_of(name)

    def drive(kl, updates, state):
        def one(_, state):
            return tx.update(PARAMS, state, PARAMS, kl=jnp.float32(kl))[1]

        return jax.lax.fori_loop(0, updates, one, state)

    far = drive(kl, 6000, tx.init(PARAMS))
    assert float(rl.kl_coef(far)) == pytest.approx(bound)
    back = drive(5.0 - kl, 5, far)
    assert abs(np.log(float(rl.kl_coef(back)) / bound)) > 0.05


def test_ziegler_by_import_has_the_bounds_that_it_is_given_and_none_of_its_own():
    free, state = weights(rl.adapt_kl_coef(1e-5, 0.05, gain=0.5), [0.0])
    assert float(rl.kl_coef(state)) == pytest.approx(0.9e-5)
    assert free == [pytest.approx(1e-5)]
    with pytest.raises(ValueError, match=r"initial must be in \[0.01, 0.1\], got 0.5"):
        rl.adapt_kl_coef(0.5, 0.05, low=0.01, high=0.1)


def test_pid_takes_no_change_from_a_kl_that_was_not_finite():
    """The KL behind it is compared with the last that was; if there is none, it is the first."""
    tx = rl.pid_kl_coef(0.1, 0.1, proportional=0.2, integral=0.1, derivative=0.4)
    _, after_nan = weights(tx, [np.nan, 0.15])
    _, alone = weights(tx, [0.15])
    assert float(rl.kl_coef(after_nan)) == float(rl.kl_coef(alone))
    _, between = weights(tx, [0.15, np.inf, 0.05])
    log = np.log(float(rl.kl_coef(between))) - np.log(0.1)
    np.testing.assert_allclose(log, 0.2 * -0.5 + 0.4 * -1.0, atol=1e-6)


def test_pid_by_hand():
    """Errors -0.5, 0.5 and 0.5; the first of them is no change."""
    tx = rl.pid_kl_coef(0.1, 0.1, proportional=0.2, integral=0.1, derivative=0.4)
    _, state = weights(tx, [0.05])
    one = float(rl.kl_coef(state))
    found, state = weights(tx, [0.15, 0.15], state)
    logs = np.log([one, found[1], float(rl.kl_coef(state))]) - np.log(0.1)
    np.testing.assert_allclose(logs, [-0.1 - 0.05, 0.1 + 0.0 + 0.4, 0.1 + 0.05], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("ziegler", {}), ("pid", {"derivative": 0.1}), ("dual", {}), ("dual", {"momentum": 0.9})],
)
@pytest.mark.parametrize("kl", [np.nan, np.inf, -np.inf])
def test_a_measurement_that_is_not_finite_changes_nothing_but_the_count(name, numbers, kl):
    tx = control_of(name, **numbers)
    found, before = weights(tx, [0.2, 0.2])
    _, after = weights(tx, [kl], before)
    assert rl.kl_coef(after) > found[-1]
    old, new = (jax.tree.leaves(state) for state in (before, after))
    changed = [i for i, (x, y) in enumerate(zip(old, new, strict=True)) if not np.array_equal(x, y)]
    assert changed == [0]  # kl_step
    assert (old[0], new[0]) == (2, 3)


@pytest.mark.parametrize("name", rl.KL_CONTROLS)
def test_a_control_goes_on_bit_for_bit_from_a_checkpoint(name, tmp_path):
    tx = optax.chain(optax.adam(1e-3), control_of(name, updates=8))
    kls = np.random.default_rng(0).exponential(0.06, 8)
    expected, _ = weights_of_chain(tx, kls)
    _, state = weights_of_chain(tx, kls[:4])
    assert weights_of_chain(tx, kls[4:], stored_and_read(state, tmp_path))[0] == expected[4:]


def stored_and_read(state, directory):
    """A state out of the checkpoint that was made of it."""
    store = TrainingStore(directory / "checkpoints", keep=1)
    store.save(1, state, {})
    store.close()
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    return TrainingStore(directory / "checkpoints", keep=1).restore(like)[0]


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
        ({"kl_schedule": "dual"}, "--kl-schedule dual needs --kl-target"),
        ({"kl_schedule": "linear", "kl_args": {"low": 1.0}}, "linear has no number low: it has"),
        ({"kl_schedule": "linear", "kl_args": {"end": -1.0}}, "linear: end must be >= 0"),
        ({"kl_schedule": "step", "kl_args": {"steps": np.inf}}, "steps must be a whole number"),
        ({"kl_schedule": "step", "kl_args": {"steps": np.nan}}, "steps must be a whole number"),
        ({"kl_schedule": "step", "kl_args": {"steps": 0.0}}, "steps must be >= 1, got 0"),
        ({"kl_schedule": "constant", "kl_args": {"kl_value": 0.2}}, "kl_value has an option of"),
        (
            {"kl_schedule": "pid", "kl_target": 0.1, "kl_args": {"low": 1.0}},
            r"pid: kl_value must be in \[low, high\] = \[1, 10\], got 0.04",
        ),
        (
            {
                "kl_schedule": "pid",
                "kl_target": 0.1,
                "kl_args": {"proportional": 0.0, "integral": 0.0},
            },
            "one of proportional, integral and derivative must be > 0",
        ),
        (
            {"kl_schedule": "dual", "kl_target": 0.1, "kl_args": {"rate": np.inf}},
            "rate must be > 0 and finite",
        ),
        *(
            ({"kl_schedule": name, "kl_target": 0.1, "kl_value": 0.0}, "kl_value must be in")
            for name in CONTROLLERS
        ),
    ],
)
def test_what_makes_no_sense_is_one_line(settings, said):
    config = KLConfig(**settings)
    with pytest.raises(UserError, match=said):
        make_kl(config, 10)
    with pytest.raises(UserError, match=said):
        check_kl(config)


@pytest.mark.parametrize(
    "settings",
    [
        {"kl_schedule": "constant", "kl_target": 0.1},
        {"kl_schedule": "constant", "kl_min": 0.0},
        {"kl_schedule": "linear", "kl_value": 0.3},
        {"kl_schedule": "pid", "kl_target": 0.1, "kl_max": 0.5},
        {"kl_schedule": "dynamic", "kl_value": 0.3},
    ],
)
def test_a_number_without_use_begins_no_run_but_one_that_recorded_it_goes_on(settings):
    option = "--" + list(settings)[-1].replace("_", "-")
    with pytest.raises(UserError, match=f"{settings['kl_schedule']} does not take {option}"):
        check_kl(KLConfig(**settings))
    make_kl(KLConfig(**settings), 10)


@pytest.mark.parametrize("target", [0.0, -1.0, np.inf, np.nan])
def test_a_target_must_be_a_positive_number(target):
    with pytest.raises(UserError, match="kl_target must be > 0 and finite"):
        KLConfig(kl_schedule="dual", kl_target=target)


def test_a_record_holds_the_numbers_that_were_in_force():
    found = resolved_kl(KLConfig(kl_schedule="ziegler", kl_target=0.1, kl_args={"gain": 0.3}))
    assert found.kl_args == {"gain": 0.3, "limit": 0.2, "low": 1e-4, "high": 10.0}


def test_a_change_of_the_weight_has_its_reason():
    said = reason(0.08, 0.05, 0.1, 0.12, (0.01, 0.2))
    assert said == "KL 0.08 above its target 0.05: the weight rises to 0.12"
    stays = "KL 0.01 below its target 0.05: the weight stays at 0.1"
    assert reason(0.01, 0.05, 0.1, 0.1, (None, None)) == stays
    low = float(np.float32(0.1))
    assert reason(0.01, 0.05, low, low, (0.1, 0.2)) == stays + ", the lowest that is allowed"
    high = reason(0.08, 0.05, 0.1, 0.2, (0.01, 0.2))
    assert high.endswith("rises to 0.2, the highest that is allowed")
