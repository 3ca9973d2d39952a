"""Orbax checkpoints: a training state comes back bit for bit, and nothing half written is taken."""

import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from othink_jax.checkpoint import hf, orbax_model, store
from othink_jax.checkpoint.tensors import cast, in_memory, read_params
from othink_jax.config import DataConfig, GRPOConfig
from othink_jax.digests import SUMS
from othink_jax.errors import UserError
from othink_jax.rl import carry_kl_coef, dynamic_kl, kl_coef
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.state import TrainState
from tests.model_cases import make_config, random_params, save_hub

CONFIG = make_config(heads=2, kv_heads=1, section=(1, 2, 1), depth=1, vision_depth=1)
_, PARAMS = random_params(CONFIG)


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)

    def compare(a, b):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)

    jax.tree.map(compare, a, b)


@pytest.fixture(scope="module")
def state():
    """Parameters of both precisions, and an optimiser that has made a step."""
    params = PARAMS | {"visual": jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS["visual"])}
    tx = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(optax.linear_schedule(1e-3, 0.0, 10)),
        carry_kl_coef(dynamic_kl(0.005, 0.16, 10)),
    )
    gradient = jax.tree.map(jnp.sin, params)
    updates, opt_state = jax.jit(tx.update)(gradient, tx.init(params), params)
    return TrainState(
        step=jnp.int32(1), params=optax.apply_updates(params, updates), opt_state=opt_state
    )


@pytest.fixture
def companions(tmp_path):
    save_hub(tmp_path / "hub", CONFIG, PARAMS)
    return tmp_path / "hub"


def save_model(directory, params, companions):
    orbax_model.save_model(directory, in_memory(CONFIG, params), companions=companions)


def of_model(directory, config=CONFIG):
    return read_params(orbax_model.stored_tensors(directory, config))


def of_run(directory):
    return read_params(orbax_model.run_tensors(directory, CONFIG))


def begin_run(directory, companions, params=PARAMS, **changes):
    """A run directory with a reference and settings, without a checkpoint."""
    directory.mkdir()
    settings = {"model": "tiny", "out": directory, "data": DataConfig(task="counting")}
    with RunDirectory(directory).beginning(GRPOConfig(**settings | changes), 3, GRPOTrainer):
        save_model(directory / orbax_model.RUN_REFERENCE, params, companions=companions)


def save(directory, *states, keep=3):
    manager = store.TrainingStore(directory, keep=keep)
    for step, state in enumerate(states, start=1):
        manager.save(step, state, {"position": 10 * step, "seen": ["a", step]})
    manager.close()
    return store.TrainingStore(directory, keep=keep)


def test_a_training_state_comes_back_bit_for_bit(tmp_path, state):
    manager = save(tmp_path / "checkpoints", state)
    like = jax.eval_shape(lambda: state)
    found, progress = manager.restore(like)
    equal(found, state)
    assert type(found.opt_state[-1]) is type(state.opt_state[-1])
    assert kl_coef(found.opt_state) == kl_coef(state.opt_state)
    assert progress == {"position": 10, "seen": ["a", 1]}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found.params)} == {"float32", "bfloat16"}


def test_the_last_steps_are_kept_and_each_can_be_had(tmp_path):
    states = [{"x": jnp.full(3, step)} for step in range(1, 5)]
    manager = save(tmp_path / "checkpoints", *states, keep=2)
    assert manager.latest_step() == 4
    assert manager.restore(states[0])[0]["x"][0] == 4
    found, progress = manager.restore(states[0], step=3)
    assert (found["x"][0], progress["position"]) == (3, 30)
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"3", "4"}


def test_a_step_that_is_there_is_left_alone(tmp_path):
    manager = save(tmp_path / "checkpoints", {"x": jnp.ones(3)})
    manager.save(1, {"x": jnp.zeros(3)}, {})
    manager.close()
    found, progress = save(tmp_path / "checkpoints").restore({"x": jnp.ones(3)})
    assert found["x"][0] == 1
    assert progress["position"] == 10


def test_a_disk_without_room_for_a_step_is_said_and_the_step_before_stays(tmp_path, monkeypatch):
    manager = save(tmp_path / "checkpoints", {"x": jnp.ones(300)})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1199))
    with pytest.raises(
        UserError, match=r"checkpoints/2 needs 1\.2 kB, but .* has only 1\.2 kB free"
    ):
        manager.save(2, {"x": jnp.ones(300)}, {})
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1"}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1200))
    manager.save(2, {"x": jnp.ones(300)}, {})
    manager.close()
    assert manager.latest_step() == 2


def test_nothing_to_resume_from_is_said(tmp_path):
    manager = store.TrainingStore(tmp_path / "checkpoints", keep=1)
    assert manager.latest_step() is None
    with pytest.raises(UserError, match="nothing to resume from"):
        manager.restore({"x": jnp.ones(3)})


# Models


def test_a_model_directory_has_weights_and_companions(tmp_path, companions):
    (companions / "chat_template.jinja").write_text("hello")
    save_model(tmp_path / "deep" / "model", PARAMS, companions=companions)
    names = {path.name for path in (tmp_path / "deep" / "model").iterdir()}
    assert names == {"config.json", "chat_template.jinja", orbax_model.PARAMS, SUMS}
    equal(of_model(tmp_path / "deep" / "model"), PARAMS)
    assert hf.load_config(tmp_path / "deep" / "model") == CONFIG


def test_parameters_come_in_the_precision_asked_for_on_one_device(tmp_path, companions, state):
    """However they were stored: in f32, replicated over eight devices."""
    mesh = jax.sharding.Mesh(jax.devices(), "data")
    everywhere = jax.device_put(PARAMS, jax.NamedSharding(mesh, jax.P()))
    run = tmp_path / "run"
    begin_run(run, companions, everywhere)
    trained = TrainState(step=state.step, params=everywhere, opt_state=state.opt_state)
    save(run / orbax_model.RUN_CHECKPOINTS, trained).close()
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    for stored in (
        orbax_model.stored_tensors(run / orbax_model.RUN_REFERENCE, CONFIG),
        orbax_model.run_tensors(run, CONFIG),
    ):
        found = read_params(cast(stored, jnp.bfloat16))
        equal(found, expected)
        assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(found))


def test_an_interrupted_save_leaves_nothing_that_looks_like_a_model(
    tmp_path, companions, monkeypatch
):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ocp.Checkpointer, "save", stop)
        with pytest.raises(KeyboardInterrupt):
            save_model(tmp_path / "model", PARAMS, companions=companions)
    assert not (tmp_path / "model").exists()
    save_model(tmp_path / "model", PARAMS, companions=companions)  # what is left is no bar
    assert {path.name for path in tmp_path.iterdir()} == {"hub", "model"}


def test_a_model_directory_is_not_written_over(tmp_path, companions):
    with pytest.raises(UserError, match="not empty"):
        save_model(companions, PARAMS, companions=companions)


@pytest.mark.parametrize(
    ("other", "fault"),
    [
        ({"kv_heads": 2}, r"text\.layers\.0\.k\.kernel is \(16, 8\), not \(16, 16\)"),
        ({"depth": 2}, r"missing text\.layers\.1\.down\.kernel"),
        ({"vision_depth": 0}, r"unknown visual\.layers\.0\.fc1\.bias"),
        ({"tied": False}, r"missing text\.head\.kernel$"),
    ],
    ids=["another shape", "a layer missing", "a layer more", "a head missing"],
)
def test_stored_parameters_that_do_not_fit_are_listed(tmp_path, companions, other, fault):
    save_model(tmp_path / "model", PARAMS, companions=companions)
    config = make_config(
        **{"heads": 2, "kv_heads": 1, "section": (1, 2, 1), "depth": 1, "vision_depth": 1} | other
    )
    with pytest.raises(UserError, match=rf"does not fit its config\.json: .*{fault}") as caught:
        of_model(tmp_path / "model", config)
    assert "\n" not in str(caught.value)


# Runs


def test_a_runs_parameters_are_those_of_its_last_checkpoint(tmp_path, companions, state):
    run = tmp_path / "run"
    begin_run(run, companions)
    equal(of_run(run), PARAMS)  # before the first checkpoint

    full = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), state.params)
    first = TrainState(step=state.step, params=PARAMS, opt_state=state.opt_state)
    second = TrainState(step=state.step, params=full, opt_state=state.opt_state)
    save(run / orbax_model.RUN_CHECKPOINTS, first, second).close()
    # What Orbax leaves where a save is interrupted:
    (run / orbax_model.RUN_CHECKPOINTS / "3.orbax-checkpoint-tmp-0").mkdir()
    equal(of_run(run), full)
    equal(of_run(run / "checkpoints" / "1"), PARAMS)  # any other, where it is named
    equal(of_run(run / "checkpoints" / "2"), full)


def test_what_a_run_did_not_train_is_that_of_its_reference(tmp_path, companions, state):
    run = tmp_path / "run"
    begin_run(run, companions, train="text")
    text = {"text": jax.tree.map(lambda leaf: leaf + 1, PARAMS["text"])}
    trained = TrainState(step=state.step, params=text, opt_state=state.opt_state)
    save(run / orbax_model.RUN_CHECKPOINTS, trained).close()
    equal(of_run(run), PARAMS | text)


def test_a_checkpoint_that_holds_more_than_the_run_trained_is_refused(tmp_path, companions, state):
    run = tmp_path / "run"
    begin_run(run, companions, train="text")
    save(run / orbax_model.RUN_CHECKPOINTS, state).close()
    with pytest.raises(UserError, match=r"unknown visual\.layers\.0"):
        of_run(run)


def test_a_run_without_its_settings_is_refused(tmp_path, companions, state):
    run = tmp_path / "run"
    begin_run(run, companions)
    save(run / orbax_model.RUN_CHECKPOINTS, state).close()
    (run / "config.json").write_text("{}")
    (run / SUMS).unlink()  # as of a run of version 0.1
    with pytest.raises(UserError, match=r"config\.json does not hold a run's settings"):
        of_run(run)


def test_a_flipped_bit_in_a_checkpoint_of_a_run_is_refused(tmp_path, companions, state):
    run = tmp_path / "run"
    begin_run(run, companions)
    save(run / orbax_model.RUN_CHECKPOINTS, state, state).close()
    files = (run / orbax_model.RUN_CHECKPOINTS / "2" / "state").rglob("*")
    largest = max(files, key=lambda file: file.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match=rf"checkpoints/2 is damaged.*{largest.name} differs"):
        of_run(run)
    of_run(run / "checkpoints" / "1")


def test_a_damaged_checkpoint_of_a_run_is_refused(tmp_path, companions, state):
    run = tmp_path / "run"
    begin_run(run, companions)
    save(run / orbax_model.RUN_CHECKPOINTS, state).close()
    for file in (run / orbax_model.RUN_CHECKPOINTS / "1" / "state").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match="is damaged"):
        of_run(run)
