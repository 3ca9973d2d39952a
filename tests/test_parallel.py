"""One function, spread over devices."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from othink_jax import rl
from othink_jax.config import LossConfig, OptimizerConfig, ParallelConfig
from othink_jax.errors import UserError
from othink_jax.training.losses import make_loss
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.state import TrainState
from othink_jax.training.update import grpo_update
from tests.toy_policy import toy_batch, toy_logp, toy_params, toy_stats

ONE = ParallelConfig(strategy="jit")
EIGHT = ParallelConfig(strategy="pmap")
ALL = [ONE, *(ParallelConfig(strategy="pmap", devices=count) for count in (1, 4)), EIGHT]


def optimizer():
    config = OptimizerConfig(learning_rate=0.02, max_grad_norm=0.1, weight_decay=0.1)
    return make_optimizer(config, rl.carry_kl_coef(rl.dynamic_kl(0.1, 1.0, 3)), 3)


def train(
    config,
    logp_fn=toy_logp,
    micro_batches=1,
    loss=None,
    left_out=False,
    control=None,
    **batch_settings,
):
    """Three updates; the host's copy of the state, and the metrics of each."""
    parallel, tx = make_parallel(config), optax.chain(optimizer(), *(control or ()))
    update = parallel.compile_update(
        functools.partial(
            grpo_update,
            logp_fn=logp_fn,
            tx=tx,
            config=LossConfig(),
            loss=loss,
            micro_batches=micro_batches,
        )
    )
    state = parallel.replicate(TrainState.create(toy_params(), tx))
    rows = []
    for seed in range(3):
        batch = toy_batch(seed, prompts=16, **batch_settings)
        if left_out:
            kept = np.random.default_rng(seed).random(batch.advantages.shape) < 0.3
            batch = dataclasses.replace(batch, kept=kept)
        batch = parallel.shard(batch)
        state, metrics = update(state, batch)
        rows.append({name: float(value) for name, value in metrics.items()})
    return jax.device_get(parallel.unreplicate(state)), rows


@pytest.mark.parametrize("on_policy", [False, True])
@pytest.mark.parametrize("images", [0, 2])
def test_pmap_on_eight_devices_trains_as_jit_on_one(images, on_policy):
    one, one_rows = train(ONE, images=images, on_policy=on_policy)
    for config in (EIGHT, ParallelConfig(strategy="pmap", devices=2)):
        other, other_rows = train(config, images=images, on_policy=on_policy)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            assert x.shape == y.shape
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
        for x, y in zip(one_rows, other_rows, strict=True):
            assert x == pytest.approx(y, rel=1e-4, abs=1e-6)
    moved = np.abs(one.params["out"] - toy_params()["out"]).max()
    assert moved > 0.02
    assert one.step == 3


def test_micro_batches_on_eight_devices_train_as_one_batch_on_one():
    one, one_rows = train(ONE)
    for config, pieces in ((EIGHT, 2), (ONE, 4)):
        other, other_rows = train(config, micro_batches=pieces)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
        for x, y in zip(one_rows, other_rows, strict=True):
            assert x == pytest.approx(y, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("left_out", [False, True])
@pytest.mark.parametrize("name", rl.REDUCTIONS)
def test_a_batch_that_is_cut_is_reduced_as_a_whole_one(name, left_out):
    """Pieces and devices hold different numbers of tokens, and of completions that are kept."""
    loss = make_loss(LossConfig(reduction=name), longest=9)
    one, one_rows = train(ONE, loss=loss, left_out=left_out)
    cuts = ((ONE, 4), (EIGHT, 2), (ParallelConfig(strategy="mesh", tensor=2), 2))
    for config, pieces in cuts:
        other, other_rows = train(config, micro_batches=pieces, loss=loss, left_out=left_out)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
        for x, y in zip(one_rows, other_rows, strict=True):
            assert x == pytest.approx(y, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("left_out", [False, True])
def test_an_entropy_bonus_of_a_batch_that_is_cut_is_that_of_a_whole_one(left_out):
    """By tokens, beside a loss by sequences; the coefficient follows the entropy of the batch."""
    settings = {"logp_fn": toy_stats, "left_out": left_out}
    settings["control"] = [rl.adapt_entropy_coef(0.3, 1.9, delta=0.1)]
    one, one_rows = train(ONE, **settings)
    assert one_rows[1]["entropy_coef"] > 0
    cuts = ((ONE, 4), (EIGHT, 2), (ParallelConfig(strategy="mesh", tensor=2), 2))
    for config, pieces in cuts:
        other, other_rows = train(config, micro_batches=pieces, **settings)
        for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(x, y, rtol=0, atol=1e-6)
        for x, y in zip(one_rows, other_rows, strict=True):
            assert x == pytest.approx(y, rel=1e-5, abs=1e-6)


def test_a_loss_that_does_not_say_its_divisor_is_refused():
    with pytest.raises(ValueError, match=r"must be an rl\.Average"):
        train(ONE, loss=rl.grpo_loss)


@pytest.mark.parametrize("config", [ONE, EIGHT, ParallelConfig(strategy="mesh", tensor=2)])
def test_the_compiled_update_writes_every_part_of_the_state_where_the_old_one_was(config):
    """Not only is the old state given up: the program itself aliases its buffers."""
    parallel, tx = make_parallel(config), optimizer()
    update = parallel.compile_update(
        functools.partial(grpo_update, logp_fn=toy_logp, tx=tx, config=LossConfig())
    )
    state = parallel.replicate(TrainState.create(toy_params(), tx))
    program = update.lower(state, parallel.shard(toy_batch())).compile().as_text()
    (header,) = re.findall(r"input_output_alias=\{(.*?)\}, entry", program)
    donated = {int(number) for number in re.findall(r"\((\d+), \{\}", header)}
    assert donated == set(range(len(jax.tree.leaves(state))))


@pytest.mark.parametrize("config", [ONE, EIGHT])
def test_one_compilation_serves_all_updates(config):
    traces = 0

    def counting_logp(params, batch):
        nonlocal traces
        traces += 1
        return toy_logp(params, batch)

    train(config, counting_logp)
    assert traces == 1


@pytest.mark.parametrize("config", ALL)
def test_mapped_function_gives_each_row_its_own_result(config):
    parallel, batch = make_parallel(config), toy_batch()
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(3), 8)))

    def draw(params, batch, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(jax.random.wrap_key_data(key)))(keys)
        return {"logp": toy_logp(params, batch), "noise": noise, "mask": batch.mask}

    mapped = parallel.compile_apply(draw)
    params = parallel.replicate(toy_params())
    result = parallel.gather(mapped(params, parallel.shard(batch), parallel.shard(keys)))
    expected = draw(toy_params(), batch, keys)
    assert {type(x) for x in jax.tree.leaves(result)} == {np.ndarray}
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), result, dict(expected))


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("place", [np.asarray, jnp.asarray])
def test_what_is_cut_comes_back_as_it_was(config, place):
    parallel = make_parallel(config)
    batch = jax.tree.map(place, toy_batch(images=0))
    sharded = parallel.shard(batch)
    devices = {tuple(sorted(d.id for d in x.devices())) for x in jax.tree.leaves(sharded)}
    assert devices == {tuple(device.id for device in parallel.devices)}
    back = parallel.gather(sharded)
    assert jax.tree.structure(back) == jax.tree.structure(batch)
    for x, y in zip(jax.tree.leaves(back), jax.tree.leaves(batch), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("config", ALL)
def test_every_device_holds_one_copy_and_the_first_comes_back(config):
    parallel = make_parallel(config)
    state = TrainState.create(toy_params(), optimizer())
    copies = parallel.replicate(state)
    for leaf in jax.tree.leaves(copies):
        assert [s.device for s in leaf.addressable_shards] == list(parallel.devices)
    single = parallel.unreplicate(copies)
    for x, y in zip(jax.tree.leaves(single), jax.tree.leaves(state), strict=True):
        assert x.devices() == {parallel.devices[0]}
        assert x.shape == np.shape(y)
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("config", ALL)
def test_update_overwrites_its_state_and_nothing_else(config):
    """The policy and the frozen reference start from the same arrays; only one may move."""
    parallel, tx = make_parallel(config), optimizer()
    params = jax.tree.map(jnp.asarray, toy_params())
    reference = parallel.replicate(params)
    state = parallel.replicate(TrainState.create(params, tx))
    update = parallel.compile_update(
        functools.partial(grpo_update, logp_fn=toy_logp, tx=tx, config=LossConfig())
    )
    update(state, parallel.shard(toy_batch()))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    for kept in (params, parallel.unreplicate(reference)):
        jax.tree.map(np.testing.assert_array_equal, kept, toy_params())


def test_batch_that_does_not_divide_over_the_devices_is_refused():
    parallel = make_parallel(EIGHT)
    message = "12 prompts do not divide over 8 devices: make it a multiple of 8"
    with pytest.raises(UserError, match=message):
        parallel.shard(toy_batch(prompts=12))
    with pytest.raises(UserError, match=message):
        parallel.check_batch(12)
    parallel.check_batch(16)
    make_parallel(ONE).check_batch(13)


def test_micro_batches_that_do_not_divide_a_devices_share_are_refused():
    parallel = make_parallel(EIGHT)
    parallel.check_batch(32, micro_batches=4)
    message = "--micro-batches is 3, but the 4 prompts of each of 8"
    with pytest.raises(UserError, match=message):
        parallel.check_batch(32, micro_batches=3)
    with pytest.raises(UserError, match="the 16 prompts of each of 1 device"):
        make_parallel(ONE).check_batch(16, micro_batches=5)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(UserError, match="--devices is 9, but only 8 cpu device"):
        make_parallel(ParallelConfig(strategy="pmap", devices=9))


def test_several_devices_without_pmap_are_refused():
    with pytest.raises(UserError, match="--devices is 4: use --strategy pmap"):
        make_parallel(ParallelConfig(strategy="jit", devices=4))
