"""One GRPO update."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from othink_jax import rl
from othink_jax.config import LossConfig, OptimizerConfig
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.state import TrainState
from othink_jax.training.update import grpo_update
from tests.test_rl_losses import numpy_loss
from tests.toy_policy import numpy_toy_logp, toy_batch, toy_logp, toy_params, toy_stats

CONFIG = LossConfig(clip_low=0.1, clip_high=0.3)
METRICS = {
    *("loss", "policy_loss", "kl", "kl_loss", "beta", "clip_fraction", "ratio"),
    *("grad_norm", "completion_length", "finite"),
}


def descent(kl=0.5):
    """Plain gradient descent: parameters before minus parameters after is the gradient."""
    return optax.chain(optax.sgd(1.0), rl.carry_kl_coef(rl.constant_kl(kl)))


def make_update(tx, logp_fn=toy_logp, config=CONFIG, micro_batches=1):
    def update(state, batch):
        state, batch = jax.tree.map(jnp.asarray, (state, batch))
        return grpo_update(
            state, batch, logp_fn=logp_fn, tx=tx, config=config, micro_batches=micro_batches
        )

    return update


def equation_4(params, batch, kl):
    def flat(x):
        return x.reshape(-1, x.shape[-1])

    logp = numpy_toy_logp(params, batch)
    return numpy_loss(
        *(flat(x) for x in (logp, batch.old_logp, batch.ref_logp)),
        batch.advantages.ravel(),
        flat(batch.mask),
        kl_coef=kl,
        clip_low=0.1,
        clip_high=0.3,
    )


def test_parameters_may_be_any_tree():
    tx = descent()
    update = make_update(tx, logp_fn=lambda params, batch: toy_logp(params[0], batch))
    (params,) = update(TrainState.create((toy_params(),), tx), toy_batch(0))[0].params
    expected = make_update(tx)(TrainState.create(toy_params(), tx), toy_batch(0))[0].params
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("compiled", [False, True])
def test_update_descends_the_gradient_of_equation_4(compiled):
    """Against central differences of the equation, written out for a policy written out."""
    with jax.enable_x64(True):
        batch = toy_batch(prompts=3, group=2, length=4)
        params = {name: np.float64(x) for name, x in toy_params().items()}
        tx = descent(kl=0.5)
        update = jax.jit(make_update(tx)) if compiled else make_update(tx)
        state, metrics = update(TrainState.create(jax.tree.map(jnp.asarray, params), tx), batch)
        np.testing.assert_allclose(metrics["loss"], equation_4(params, batch, 0.5), rtol=1e-6)
        norm = np.sqrt(sum(np.sum((params[k] - state.params[k]) ** 2) for k in params))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
        rng = np.random.default_rng(0)
        for _ in range(12):
            direction = {name: rng.normal(0, 1, x.shape) for name, x in params.items()}
            shifted = [
                equation_4({k: params[k] + sign * 1e-6 * direction[k] for k in params}, batch, 0.5)
                for sign in (1, -1)
            ]
            slope = sum(np.sum((params[k] - state.params[k]) * direction[k]) for k in params)
            np.testing.assert_allclose(slope, (shifted[0] - shifted[1]) / 2e-6, atol=1e-7)


def test_an_entropy_bonus_is_subtracted_from_the_loss_with_its_gradient():
    """The gradient differs by that of the mean entropy of all tokens, whatever the reduction."""
    batch = toy_batch()
    states = []
    for coef in (None, 0.25):
        carried = () if coef is None else (rl.carry_entropy_coef(coef),)
        tx, logp_fn = optax.chain(descent(), *carried), toy_logp if coef is None else toy_stats
        update = make_update(tx, logp_fn)
        states.append(update(TrainState.create(toy_params(), tx), batch))
    (without, lone), (state, metrics) = states

    def mean_entropy(params):
        entropy = toy_stats(params, batch).entropy
        return jnp.where(batch.mask, entropy, 0.0).sum() / batch.mask.sum()

    value, gradient = jax.value_and_grad(mean_entropy)(toy_params())
    for name, slope in gradient.items():
        assert np.abs(slope).max() > 1e-3
        moved = state.params[name] - without.params[name]
        np.testing.assert_allclose(moved, 0.25 * slope, atol=1e-6)
    assert set(metrics) == METRICS | {"entropy_coef", "entropy_loss", "policy_entropy"}
    np.testing.assert_allclose(metrics["policy_entropy"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["entropy_loss"], -0.25 * value, rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], lone["loss"] - 0.25 * value, rtol=1e-5)
    assert metrics["entropy_coef"] == 0.25


def test_a_controller_is_handed_the_entropy_of_the_update():
    """The coefficient that it sets is that of the next update."""
    target = float(toy_stats(toy_params(), toy_batch()).entropy.mean()) + 1
    adaptive = rl.adapt_entropy_coef(0.1, target, delta=0.02)
    tx = optax.chain(descent(), adaptive)
    update, state = jax.jit(make_update(tx, toy_stats)), TrainState.create(toy_params(), tx)
    found = []
    for seed in range(3):
        state, metrics = update(state, toy_batch(seed))
        found.append(metrics["entropy_coef"])
    np.testing.assert_allclose(found, [0.0, 0.12, 0.14], rtol=1e-6)


def test_a_bonus_needs_both_an_entropy_and_a_coefficient():
    for tx, logp_fn, said in (
        (descent(), toy_stats, "has no coefficient for it: put carry_entropy_coef"),
        (optax.chain(descent(), rl.carry_entropy_coef(0.1)), toy_logp, "must give an entropy"),
    ):
        with pytest.raises(ValueError, match=said):
            make_update(tx, logp_fn)(TrainState.create(toy_params(), tx), toy_batch())


def test_metrics_are_what_they_are_called():
    tx, batch = descent(kl=0.5), toy_batch()
    state, metrics = make_update(tx)(TrainState.create(toy_params(), tx), batch)
    assert set(metrics) == METRICS
    for value in metrics.values():
        assert value.shape == ()
        assert value.dtype == jnp.float32
    assert state.step == 1
    assert metrics["finite"] == 1.0
    assert metrics["beta"] == 0.5
    assert 0 < metrics["clip_fraction"] < 1
    np.testing.assert_allclose(metrics["completion_length"], batch.mask.sum() / 32)
    np.testing.assert_allclose(
        metrics["loss"], metrics["policy_loss"] + 0.5 * metrics["kl"], rtol=1e-6
    )


def test_batch_without_old_log_probabilities_is_on_policy():
    tx, batch = descent(), toy_batch(on_policy=True)
    state = TrainState.create(toy_params(), tx)
    own = np.asarray(toy_logp(state.params, batch))
    one, metrics = make_update(tx)(state, batch)
    other, _ = make_update(tx)(state, dataclasses.replace(batch, old_logp=own))
    assert metrics["ratio"] == pytest.approx(31 / 32)  # one completion of 32 is empty
    assert metrics["clip_fraction"] == 0.0
    for name in state.params:
        np.testing.assert_array_equal(one.params[name], other.params[name])
        assert np.abs(one.params[name] - state.params[name]).max() > 1e-3


def test_later_updates_from_one_rollout_leave_the_ratio_one_and_clip():
    batch = toy_batch(on_policy=True)
    tx = optax.chain(optax.sgd(5.0), rl.carry_kl_coef(rl.constant_kl(0.0)))
    update = jax.jit(make_update(tx))
    state = TrainState.create(toy_params(), tx)
    old_logp = np.asarray(toy_logp(state.params, batch))
    batch = dataclasses.replace(batch, old_logp=old_logp)
    state, first = update(state, batch)
    ratio = np.exp(np.asarray(toy_logp(state.params, batch)) - old_logp)
    _, second = update(state, batch)

    advantages = batch.advantages[..., None]
    clipped = np.where(advantages > 0, ratio > 1.3, ratio < 0.9)
    lengths = np.maximum(batch.mask.sum(-1), 1)
    share = np.mean((clipped & batch.mask).sum(-1) / lengths)
    assert first["clip_fraction"] == 0.0
    assert share > 0.05
    np.testing.assert_allclose(second["clip_fraction"], share, rtol=1e-5)
    mean_ratio = np.mean(np.where(batch.mask, ratio, 0).sum(-1) / lengths)
    assert abs(mean_ratio - 1) > 0.01
    np.testing.assert_allclose(second["ratio"], mean_ratio, rtol=1e-5)


def test_updates_raise_the_probability_of_what_was_rewarded():
    batch = toy_batch(on_policy=True)
    tx = make_optimizer(
        OptimizerConfig(learning_rate=0.03), rl.carry_kl_coef(rl.constant_kl(0.0)), 20
    )
    update, state = jax.jit(make_update(tx)), TrainState.create(toy_params(), tx)

    def agreement(params):
        per_sequence = np.where(batch.mask, toy_logp(params, batch), 0).sum(-1)
        return np.corrcoef(per_sequence.ravel(), batch.advantages.ravel())[0, 1]

    before = agreement(state.params)
    for _ in range(20):
        state, _ = update(state, batch)
    assert agreement(state.params) > before + 0.3


def test_one_compilation_serves_the_whole_schedule():
    traces = 0

    def counting_logp(params, batch):
        nonlocal traces
        traces += 1
        return toy_logp(params, batch)

    schedule = rl.dynamic_kl(0.04, 0.1, 10)
    tx = make_optimizer(OptimizerConfig(warmup_fraction=0.2), rl.carry_kl_coef(schedule), 10)
    update = jax.jit(make_update(tx, counting_logp), donate_argnums=0)
    state, batch = TrainState.create(toy_params(), tx), toy_batch()
    betas = []
    for _ in range(10):
        state, metrics = update(state, batch)
        betas.append(float(metrics["beta"]))
        np.testing.assert_allclose(
            metrics["loss"], metrics["policy_loss"] + betas[-1] * metrics["kl"], rtol=1e-5
        )
    assert traces == 1
    np.testing.assert_allclose(betas, schedule(jnp.arange(10)), rtol=1e-6)
    assert len(set(betas)) > 5


def test_state_that_was_stored_goes_on_where_it_stood():
    tx = make_optimizer(
        OptimizerConfig(learning_rate=0.01), rl.carry_kl_coef(rl.dynamic_kl(0.0, 0.5, 6)), 6
    )
    update = jax.jit(make_update(tx))

    def run(state, seeds):
        betas = []
        for seed in seeds:
            state, metrics = update(state, toy_batch(seed))
            betas.append(float(metrics["beta"]))
        return state, betas

    whole, betas = run(TrainState.create(toy_params(), tx), range(6))
    half, first = run(TrainState.create(toy_params(), tx), range(3))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(half)]
    fresh = TrainState.create(toy_params(seed=1), tx)
    restored = jax.tree.unflatten(jax.tree.structure(fresh), leaves)
    resumed, second = run(restored, range(3, 6))
    assert first + second == betas
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)


@pytest.mark.parametrize("images", [0, 2])
@pytest.mark.parametrize("micro_batches", [2, 8])
@pytest.mark.parametrize(("x64", "tolerance"), [(False, 1e-6), (True, 1e-12)])
def test_micro_batches_make_the_update_of_the_whole_batch(x64, tolerance, micro_batches, images):
    """Completions of one to five tokens: a mean over tokens, or of unequal parts, would differ."""
    with jax.enable_x64(x64):
        float_type = np.float64 if x64 else np.float32
        tx = descent()
        params = jax.tree.map(lambda leaf: leaf.astype(float_type), toy_params())
        state, batch = TrainState.create(params, tx), toy_batch(images=images)
        whole, expected = jax.jit(make_update(tx))(state, batch)
        pieces, metrics = jax.jit(make_update(tx, micro_batches=micro_batches))(state, batch)
        whole, pieces = jax.device_get((whole, pieces))
    for name, leaf in whole.params.items():
        change = np.abs(leaf - params[name]).max()
        close = {"rtol": 0, "atol": tolerance * max(change, 1)}
        np.testing.assert_allclose(pieces.params[name], leaf, **close)
    jax.tree.map(np.testing.assert_array_equal, pieces.opt_state, whole.opt_state)
    assert pieces.step == whole.step == 1
    assert metrics.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6, err_msg=name)


def test_micro_batches_move_the_kl_weight_once_an_update():
    schedule = rl.dynamic_kl(0.0, 0.5, 6)
    tx = make_optimizer(OptimizerConfig(), rl.carry_kl_coef(schedule), 6)
    update, state = jax.jit(make_update(tx, micro_batches=4)), TrainState.create(toy_params(), tx)
    for step in range(3):
        state, metrics = update(state, toy_batch())
        np.testing.assert_allclose(metrics["beta"], schedule(step), rtol=1e-6)


def test_gradients_of_micro_batches_of_bfloat16_parameters_add_up_in_float32():
    """512 times one. In bfloat16 the sum stops at 256: 257 is no number there."""
    tx = descent(kl=0.0)
    batch = toy_batch(prompts=512, group=2, length=1, on_policy=True)
    batch = dataclasses.replace(
        batch, mask=np.ones_like(batch.mask), advantages=np.full_like(batch.advantages, -1)
    )

    def logp_fn(params, batch):
        return jnp.broadcast_to(params["w"].astype(jnp.float32), batch.completions.shape)

    state = TrainState.create({"w": jnp.zeros((), jnp.bfloat16)}, tx)
    _, metrics = jax.jit(make_update(tx, logp_fn, micro_batches=512))(state, batch)
    assert metrics["grad_norm"] == 1


def test_a_piece_that_is_not_finite_is_reported():
    tx, batch = descent(), toy_batch()
    ref_logp = batch.ref_logp.copy()
    ref_logp[5, 1, 0] = -np.inf
    batch = dataclasses.replace(batch, ref_logp=ref_logp, mask=np.ones_like(batch.mask))
    update = jax.jit(make_update(tx, micro_batches=4))
    assert update(TrainState.create(toy_params(), tx), batch)[1]["finite"] == 0.0


@pytest.mark.parametrize("junk", [np.nan, np.inf, -np.inf, 1e30])
def test_junk_in_padding_does_not_reach_the_parameters(junk):
    tx, batch = descent(), toy_batch()
    update = jax.jit(make_update(tx))
    dirty = dataclasses.replace(
        batch,
        ref_logp=np.where(batch.mask, batch.ref_logp, np.float32(junk)),
        old_logp=np.where(batch.mask, batch.old_logp, np.float32(junk)),
    )
    state = TrainState.create(toy_params(), tx)
    jax.tree.map(np.testing.assert_array_equal, update(state, dirty), update(state, batch))


def test_parameters_that_are_not_finite_are_reported():
    tx, params = descent(), toy_params()
    params["out"][0, 0] = np.nan
    _, metrics = make_update(tx)(TrainState.create(params, tx), toy_batch())
    assert metrics["finite"] == 0.0


def test_loss_that_is_not_finite_is_reported_though_its_gradient_is():
    """A reference that holds a token for impossible: d = -inf, KL inf, slope 1."""
    tx, batch = descent(), toy_batch()
    ref_logp = batch.ref_logp.copy()
    ref_logp[1, 1, 0] = -np.inf
    batch = dataclasses.replace(batch, ref_logp=ref_logp)
    _, metrics = make_update(tx)(TrainState.create(toy_params(), tx), batch)
    assert np.isfinite(metrics["grad_norm"])
    assert metrics["finite"] == 0.0


def test_change_that_is_not_finite_is_reported_though_loss_and_gradient_are():
    tx = optax.chain(optax.scale(jnp.inf), rl.carry_kl_coef(rl.constant_kl(0.5)))
    batch = toy_batch(prompts=2, group=2, length=3)
    _, metrics = make_update(tx)(TrainState.create(toy_params(), tx), batch)
    assert np.isfinite([metrics["loss"], metrics["grad_norm"]]).all()
    assert metrics["finite"] == 0.0


def test_gradient_that_is_not_finite_is_reported_though_its_loss_is():
    """A square root has an infinite slope at 0, where its value is fine."""
    tx = descent()

    def logp_fn(params, batch):
        return toy_logp(params, batch) + jnp.sqrt(0.0 * jnp.abs(params["out"]).sum())

    _, metrics = make_update(tx, logp_fn)(TrainState.create(toy_params(), tx), toy_batch())
    assert np.isfinite(metrics["loss"])
    assert metrics["finite"] == 0.0


def test_optimizer_is_handed_the_measured_kl():
    """A controller of beta that reacts to the KL fits into the chain."""

    def update(updates, state, params=None, *, kl, **extra_args):
        stronger = jnp.where(kl > 0.01, 2.0, 0.5) * state.kl_coef
        return updates, rl.KLCoefState(kl_step=state.kl_step + 1, kl_coef=stronger)

    init = rl.carry_kl_coef(rl.constant_kl(0.1)).init
    tx = optax.chain(optax.sgd(0.0), optax.GradientTransformationExtraArgs(init, update))
    state, batch = TrainState.create(toy_params(), tx), toy_batch()
    same = dataclasses.replace(batch, ref_logp=np.asarray(toy_logp(state.params, batch)))
    state, far = jax.jit(make_update(tx))(state, batch)
    state, near = jax.jit(make_update(tx))(state, same)
    _, last = jax.jit(make_update(tx))(state, same)
    np.testing.assert_allclose([far["beta"], near["beta"], last["beta"]], [0.1, 0.2, 0.1])


def test_bfloat16_parameters_are_updated_in_their_type():
    tx, batch = descent(), toy_batch()
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), toy_params())

    def logp_fn(params, batch):
        return toy_logp(jax.tree.map(lambda x: x.astype(jnp.float32), params), batch)

    state, metrics = jax.jit(make_update(tx, logp_fn))(TrainState.create(params, tx), batch)
    assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(jnp.bfloat16)}
    exact = make_update(tx)(TrainState.create(jax.tree.map(np.float32, params), tx), batch)[1]
    np.testing.assert_allclose(metrics["grad_norm"], exact["grad_norm"], rtol=5e-3)
    assert rl.kl_coef(state.opt_state).dtype == jnp.float32


def test_optimizer_without_a_kl_weight_is_refused():
    tx = optax.sgd(1.0)
    with pytest.raises(ValueError, match="put carry_kl_coef"):
        make_update(tx)(TrainState.create(toy_params(), tx), toy_batch())


def test_another_loss_is_descended_and_a_reacting_weight_gets_the_measured_kl():
    """Token mean and k2 in the place of Eq. 4; a KL far above the target raises the weight."""
    loss = functools.partial(
        rl.policy_loss, kl_term=rl.own_gradient(rl.kl_k2), reduce=rl.mean_over_tokens
    )
    tx = optax.chain(optax.sgd(1.0), rl.adapt_kl_coef(0.5, target=0.01))
    params, batch = jax.tree.map(jnp.asarray, (toy_params(), toy_batch()))
    state, metrics = grpo_update(
        TrainState.create(params, tx), batch, logp_fn=toy_logp, tx=tx, config=CONFIG, loss=loss
    )

    def value(params):
        logp = toy_logp(params, batch)
        return loss(
            *(logp, batch.old_logp, batch.ref_logp, batch.advantages, batch.mask), kl_coef=0.5
        )[0].value

    expected, gradient = jax.value_and_grad(value)(params)
    assert metrics["loss"] == pytest.approx(float(expected))
    moved = jax.tree.map(jnp.subtract, params, state.params)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), moved, gradient)
    assert metrics["kl"] > 0.012
    assert rl.kl_coef(state.opt_state) == pytest.approx(0.5 * 1.02)
