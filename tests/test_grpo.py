"""The training loop on the embedded model: what a run writes, resumes and refuses."""

import dataclasses
import gc
import json
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from othink_jax import rl
from othink_jax.checkpoint.load import load
from othink_jax.checkpoint.store import TrainingStore
from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    EntropyConfig,
    GRPOConfig,
    KLConfig,
    LossConfig,
    OptimizerConfig,
    ParallelConfig,
    RewardConfig,
    SamplingConfig,
)
from othink_jax.data.loader import PromptLoader
from othink_jax.data.processing import PadTo
from othink_jax.data.sources import open_source
from othink_jax.errors import UserError
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import merge
from othink_jax.rewards import Grade, grade
from othink_jax.sampling import prompt_keys, sample
from othink_jax.training import grpo, loop, programs
from othink_jax.training.grpo import GRPOTrainer, resume, train
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.records import rollout_metrics, rollout_record
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.state import TrainState
from othink_jax.types import Rollout
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.shallow import shallow

TIMES = ("elapsed", "tokens_per_second")


def config_for(out: Path, **changes) -> GRPOConfig:
    settings = {
        "model": shallow(),
        "out": out,
        "data": DataConfig(
            task="counting", template=TINY_TEMPLATE, min_pixels=None, max_pixels=None
        ),
        "steps": 4,
        "prompts_per_step": 4,
        "group_size": 4,
        "sampling": SamplingConfig(max_new_tokens=24, top_k=0),
        "kl": KLConfig(exploration_fraction=0.5),
        "reward": RewardConfig(grading_workers=1),
        "optimizer": OptimizerConfig(learning_rate=1e-4),
        "remat": "none",
        "checkpoint_every": 2,
        "sample_every": 2,
    }
    return GRPOConfig(**{**settings, **changes})


def rows_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [
        {k: v for k, v in row.items() if k not in TIMES and not k.startswith("seconds")}
        for row in rows
    ]


def final_params(run: Path) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(load(run).params)]


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """But of a run that is resumed, once: `test_resumed_run_equals_uninterrupted_run`."""
    with programs_of_equal_settings_are_compiled_once():
        yield


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """One uninterrupted run of four steps, and what was seen of it while it ran."""
    out, step = tmp_path_factory.mktemp("runs") / "whole", GRPOTrainer.step
    # In which step each compilation was (0: before), and arrays like the embedding at each step.
    seen = SimpleNamespace(out=out, step=0, embeddings=[])
    compilations = []
    shape = load(shallow(), abstract=True).params["text"]["embed"]["embedding"].shape

    def embeddings():
        return sum(array.shape == shape for array in jax.live_arrays())

    def watched_step(self, number, *rest):
        seen.step = number
        seen.embeddings.append(embeddings() - before)
        return step(self, number, *rest)

    def count(event, *_, **__):
        if event.endswith("backend_compile_duration"):
            compilations.append(seen.step)

    gc.collect()
    before = embeddings()
    jax.monitoring.register_event_duration_secs_listener(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GRPOTrainer, "step", watched_step)
        train(config_for(out))
    seen.compilations = tuple(compilations)  # the listener goes on, in other tests too
    return seen


@pytest.fixture(scope="module")
def finished(seen):
    return seen.out


def test_nothing_is_compiled_after_the_first_step(seen):
    """Shapes stand still, and so do the KL weight and the learning rate of a compiled update."""
    assert seen.compilations.count(1) >= 3  # sampling, reference, update
    assert max(seen.compilations) == 1


def test_a_step_holds_policy_moments_and_reference_and_no_further_copy(seen):
    assert seen.embeddings[:2] == [4, 4]  # later ones run beside a checkpoint being saved


def test_every_step_has_its_row_of_metrics(finished):
    rows = rows_of(finished)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    named = {
        *("reward", "reward_accuracy", "reward_format", "group_std", "no_signal_share", "kl"),
        *("beta", "clip_fraction", "entropy", "completion_length", "truncated_share"),
        *("grad_norm", "learning_rate", "ungradable", "skipped", "tokens_per_second"),
        *("seconds_data", "seconds_rollout", "seconds_reward", "seconds_update"),
    }
    assert all(named <= row.keys() for row in rows)
    assert all(np.isfinite(list(row.values())).all() for row in rows)


def test_beta_follows_equation_3(finished):
    """Four updates, w = 2: half the middle down to the minimum, then up to the maximum."""
    assert [row["beta"] for row in rows_of(finished)] == pytest.approx([0.07, 0.055, 0.04, 0.07])


def test_first_step_has_no_kl_and_reward_is_the_sum_of_its_parts(finished):
    rows = rows_of(finished)
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    for row in rows:
        assert row["reward"] == pytest.approx(row["reward_accuracy"] + row["reward_format"])


def test_parameters_have_moved_and_the_reference_has_not(finished):
    trained, reference = load(finished), load(finished / "reference")
    base = load(shallow())
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), trained.params, base.params)
    assert all(jax.tree.leaves(changed))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), reference.params, base.params)
    assert all(jax.tree.leaves(same))


def test_a_step_samples_from_the_policy_and_measures_its_distance_from_the_reference(finished):
    """Step 3, computed again from the checkpoint of step 2, the embedded model and the seed."""
    base, config = load(shallow()), config_for(finished)
    like = jax.eval_shape(
        lambda: TrainState.create(
            base.params, make_optimizer(config.optimizer, rl.carry_kl_coef(lambda _: 0.0), 4)
        )
    )
    state, progress = TrainingStore(finished / "checkpoints", keep=2).restore(like, step=2)
    loader = PromptLoader(
        open_source(config.data),
        base.processor,
        batch_size=4,
        seed=config.seed,
        template=TINY_TEMPLATE,
        max_prompt_tokens=None,
    )
    loader.set_state(progress["loader"])
    examples, encoded = next(loader)
    prompts = base.processor.batch(encoded)
    policy = merge(base.graphdef, state.params)
    rollout = sample(
        policy,
        prompts,
        prompt_keys(config.seed, 3, 4),
        group_size=4,
        config=config.sampling,
        eos_token_ids=base.processor.eos_token_ids,
        never_sampled=base.processor.never_sampled,
        pad_token_id=base.processor.pad_token_id,
    )
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    right, formed = [], []
    for row, example in enumerate(examples):
        for completion, real in zip(tokens[row], mask[row], strict=True):
            verdict = grade(base.processor.decode(completion, real), example.answer)
            right.append(verdict.accuracy)
            formed.append(verdict.format)
    reference = merge(base.graphdef, base.params)
    logp, ref_logp = (
        completion_logp(model, prompts, rollout.tokens, chunk=512) for model in (policy, reference)
    )
    kl = rl.mean_over_sequences(rl.kl_k3(logp, ref_logp), rollout.mask).value

    row = rows_of(finished)[2]
    assert row["reward_accuracy"] == pytest.approx(np.mean(right))
    assert row["reward_format"] == pytest.approx(np.mean(formed))
    assert row["completion_length"] == mask.sum(axis=-1).mean()
    assert row["entropy"] == pytest.approx(np.asarray(rollout.entropy)[mask].mean(), rel=1e-4)
    assert row["kl"] == pytest.approx(float(kl), rel=1e-3)
    assert row["kl"] > 1e-5


def test_events_for_tensorboard_are_written(finished):
    (events,) = (finished / "tensorboard").iterdir()
    assert b"reward_accuracy" in events.read_bytes()


def test_samples_are_kept_with_their_images(finished):
    names = sorted(path.name for path in (finished / "samples").glob("*.jsonl"))
    assert names == ["step_000001.jsonl", "step_000002.jsonl", "step_000004.jsonl"]
    for line in (finished / "samples" / names[0]).read_text().splitlines():
        row = json.loads(line)
        assert len(row["completions"]) == 4
        assert all((finished / "samples" / image).is_file() for image in row["images"])


def test_resumed_run_equals_uninterrupted_run(finished, tmp_path, monkeypatch, capsys):
    """Stopped after step 3 by a signal, continued: the same metrics and parameters, bit for bit."""
    step = GRPOTrainer.step

    def stop_in_step_3(self, number, *rest):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, *rest)

    out = tmp_path / "stopped here"
    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "step", stop_in_step_3)
        with pytest.raises(KeyboardInterrupt):
            train(config_for(out))
    assert [row["step"] for row in rows_of(out)] == [1, 2, 3]
    # One line, to be pasted.
    assert f"\nothink-jax grpo --resume '{out}'\n" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(grpo, "compile_grpo", programs.compile_grpo)  # as another process would
        resume(out)
    assert without_times(rows_of(out)) == without_times(rows_of(finished))
    for ours, whole in zip(final_params(out), final_params(finished), strict=True):
        assert np.array_equal(ours, whole)


def test_killed_run_goes_on_from_its_last_checkpoint(finished, tmp_path, monkeypatch):
    """Killed in step 4 without a word, the last row half written."""
    step = GRPOTrainer.step

    class Killed(BaseException):
        pass

    def die_in_step_4(self, number, *rest):
        if number == 4:
            raise Killed
        return step(self, number, *rest)

    out = tmp_path / "killed"
    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "step", die_in_step_4)
        with pytest.raises(Killed):
            train(config_for(out))
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')
    # An asynchronous save may still be under way in this process, as it could not after a kill.
    TrainingStore(out / "checkpoints", keep=2).close()
    resume(out)
    assert without_times(rows_of(out)) == without_times(rows_of(finished))
    for ours, whole in zip(final_params(out), final_params(finished), strict=True):
        assert np.array_equal(ours, whole)


def test_a_finished_run_resumes_to_nothing(finished):
    before = (finished / "metrics.jsonl").read_text()
    resume(finished)
    assert (finished / "metrics.jsonl").read_text() == before


def test_pmap_over_devices_trains_as_one_device_does(finished, tmp_path):
    out = tmp_path / "pmap"
    train(config_for(out, parallel=ParallelConfig(strategy="pmap", devices=2)))
    for ours, one in zip(
        without_times(rows_of(out)), without_times(rows_of(finished)), strict=True
    ):
        assert ours == pytest.approx(one, rel=1e-3, abs=1e-6)
    for ours, one in zip(final_params(out), final_params(finished), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-5)


def test_a_run_on_a_mesh_trains_as_one_device_does_and_resumes_on_it(
    finished, tmp_path, monkeypatch
):
    """Two ways over the prompts, two over every layer; stopped after step 2, and continued."""
    step = GRPOTrainer.step

    def stop_in_step_2(self, number, *rest):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, *rest)

    out = tmp_path / "mesh"
    parallel = ParallelConfig(strategy="mesh", devices=4, tensor=2)
    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "step", stop_in_step_2)
        with pytest.raises(KeyboardInterrupt):
            train(config_for(out, parallel=parallel))
    resume(out)
    for ours, one in zip(rows_of(out), rows_of(finished), strict=True):
        for name in ("reward", "loss", "kl", "grad_norm"):
            assert ours[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5)
    # Where a gradient is next to nothing, Adam makes a step of its rounding.
    apart = [
        np.abs(ours - one).ravel()
        for ours, one in zip(jax.tree.leaves(load(out).params), final_params(finished), strict=True)
    ]
    assert np.mean(np.concatenate(apart) > 1e-6) < 1e-3


def test_several_inner_updates_move_away_from_the_sampling_policy(tmp_path):
    out = tmp_path / "inner"
    train(config_for(out, steps=1, inner_updates=2, optimizer=OptimizerConfig(learning_rate=3e-3)))
    (row,) = rows_of(out)
    assert row["kl"] > 0  # of the second update, made from the same rollout
    assert row["clip_fraction"] > 0


@pytest.mark.parametrize("steps", [1, 4])
def test_what_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, steps):
    """With one step, it is the update that overflows, after a good loss and a good gradient."""
    broken = OptimizerConfig(learning_rate=3e38, max_grad_norm=1e30)
    out = tmp_path / "diverged"
    with pytest.raises(UserError, match="not finite"):
        train(config_for(out, optimizer=broken, steps=steps))
    assert not list((out / "checkpoints").glob("[0-9]*"))


def test_bfloat16_trains_nearly_every_weight_at_the_papers_learning_rate(tmp_path):
    """Were the weights themselves bfloat16, an update of 1e-6 would vanish in their rounding."""
    out = tmp_path / "bf16"
    optimizer = OptimizerConfig(learning_rate=1e-6, lr_schedule="constant")
    train(config_for(out, dtype="bfloat16", steps=2, optimizer=optimizer))
    moved = [
        (ours != base).mean()
        for ours, base in zip(final_params(out), final_params(shallow()), strict=True)
        if base.ndim > 1  # tokens that do not occur have no gradient but in the embedding
    ]
    assert np.median(moved) > 0.9
    assert rows_of(out)[1]["kl"] < 0.01  # the reference in bfloat16 is the same policy


def test_batch_that_does_not_divide_over_devices_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "uneven"
    with pytest.raises(UserError, match="6 prompts"):
        train(
            config_for(
                out,
                prompts_per_step=6,
                parallel=ParallelConfig(strategy="pmap", devices=4),
            )
        )
    assert not out.exists()


def test_micro_batches_that_do_not_divide_are_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "uneven"
    parallel = ParallelConfig(strategy="pmap", devices=2)
    with pytest.raises(UserError, match="--micro-batches is 4, but the 2 prompts of each of 2"):
        train(config_for(out, micro_batches=4, parallel=parallel))
    assert not out.exists()


@pytest.mark.parametrize(
    "changes",
    [{"micro_batches": 2, "remat": "layer"}, {"scan_layers": "on", "attention": "chunked"}],
    ids=["pieces, computed again", "scanned, chunked"],
)
def test_settings_of_the_computation_do_not_change_what_is_learned(finished, tmp_path, changes):
    """Nor what is drawn, nor what the reference says."""
    out = tmp_path / "run"
    train(config_for(out, **changes))
    for ours, one in zip(
        without_times(rows_of(out)), without_times(rows_of(finished)), strict=True
    ):
        assert ours == pytest.approx(one, rel=1e-3, abs=1e-6)
    for ours, one in zip(final_params(out), final_params(finished), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-5)


def test_a_weight_of_zero_needs_no_reference(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "othink_jax.training.grpo.reference_only_params",
        lambda *_: pytest.fail("a reference is kept"),
    )
    kl = KLConfig(kl_schedule="constant", kl_value=0.0)
    run = train(config_for(tmp_path / "run", steps=2, kl=kl))
    for row in rows_of(run):
        assert row["beta"] == 0
        assert not {"kl", "kl_loss"} & row.keys()


def test_an_entropy_bonus_follows_the_entropy_that_the_rollout_has_too(tmp_path):
    """Strictly on-policy, what the update measures is what the sampler saw."""
    entropy = EntropyConfig(entropy_coef=0.1, entropy_target=50.0)
    rows = rows_of(train(config_for(tmp_path / "run", steps=3, entropy=entropy)))
    assert [row["entropy_coef"] for row in rows] == pytest.approx([0.0, 0.105, 0.11])
    for row in rows:
        assert row["policy_entropy"] == pytest.approx(row["entropy"], rel=1e-4)
        assert row["entropy_loss"] == pytest.approx(-row["entropy_coef"] * row["policy_entropy"])
        parts = row["policy_loss"] + row["kl_loss"] + row["entropy_loss"]
        assert row["loss"] == pytest.approx(parts, abs=1e-6)


@pytest.mark.parametrize("parallel", [{}, {"strategy": "mesh", "devices": 2}])
def test_a_reference_that_moves_is_stored_and_goes_on_bit_for_bit(tmp_path, parallel):
    """It is the policy of two updates ago, or of now: then the KL is zero."""
    config = config_for(
        tmp_path / "run",
        checkpoint_every=1,
        kl=KLConfig(exploration_fraction=0.5, reference_every=2),
        parallel=ParallelConfig(**parallel),
    )
    rows, params = rows_of(train(config)), final_params(config.out)
    kls = [row["kl"] for row in rows]
    assert max(kls[0], kls[2]) < 1e-9 < 1e-6 < min(kls[1], kls[3])
    shutil.rmtree(config.out / "checkpoints" / "4")
    resume(config.out)
    assert without_times(rows_of(config.out)) == without_times(rows)
    for ours, whole in zip(final_params(config.out), params, strict=True):
        assert np.array_equal(ours, whole)


@pytest.mark.parametrize("settings", [{}, {"train": "lora"}, {"kl": KLConfig(reference_every=1)}])
def test_a_kl_over_the_vocabulary_is_that_to_the_reference_of_the_run(tmp_path, settings):
    """Zero but for rounding where policy and reference are one, and positive where not."""
    loss = LossConfig(kl_estimator="full", logp_chunk=8)
    rows = rows_of(train(config_for(tmp_path / "run", steps=2, loss=loss, **settings)))
    first, second = (row["kl"] for row in rows)
    assert abs(first) < 1e-7
    assert abs(second) < 1e-7 if "kl" in settings else 1e-6 < second < 1
    assert rows[1]["kl_loss"] == pytest.approx(rows[1]["beta"] * second, rel=1e-5)


def test_a_directory_in_use_is_refused(finished):
    with pytest.raises(UserError, match="--resume"):
        train(config_for(finished))


def test_resuming_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(UserError, match="not a run directory"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "gr')
    with pytest.raises(UserError, match="not a JSON file"):
        resume(tmp_path)


def test_data_of_which_nothing_can_be_used_is_refused_before_anything_is_written(tmp_path):
    out = tmp_path / "nothing"
    data = dataclasses.replace(config_for(out).data, max_prompt_tokens=5)
    with pytest.raises(UserError, match="over max_prompt_tokens = 5"):
        train(config_for(out, data=data))
    assert not out.exists()


def test_a_group_of_equal_rewards_has_no_signal_whatever_the_rounding():
    rollout = Rollout(
        tokens=np.zeros((2, 6, 1), np.int32),
        mask=np.ones((2, 6, 1), bool),
        logp=np.zeros((2, 6, 1), np.float32),
        entropy=np.zeros((2, 6, 1), np.float32),
        finished=np.ones((2, 6), bool),
    )
    rewards = np.array([[1.3] * 6, [1.3] * 5 + [0.3]], np.float32)
    metrics = rollout_metrics([rollout_record(rollout, [Grade(1.0, 1.0)] * 12, rewards)])
    assert rewards.std(axis=1, ddof=1)[0] > 0  # of rounding
    assert metrics["no_signal_share"] == 0.5


def test_processes_pad_their_prompts_to_common_shapes(monkeypatch):
    other = {"prompt_tokens": 32, "image_slots": 3, "patches": 128}
    monkeypatch.setattr(loop.processes, "all_gather", lambda own: [other, own])
    own = PadTo(prompt_tokens=64, image_slots=1, patches=64)
    assert loop.common_shapes(own) == PadTo(prompt_tokens=64, image_slots=3, patches=128)


def test_endless_task_needs_a_number_of_steps(tmp_path):
    with pytest.raises(UserError, match="--steps"):
        train(config_for(tmp_path / "endless", steps=None))


def test_over_long_prompts_are_skipped_and_counted(tmp_path):
    """Prompts of this task have 42 to 60 tokens; the limit cuts off some of them, whole."""
    out = tmp_path / "long"
    data = dataclasses.replace(config_for(out).data, max_prompt_tokens=49)
    train(config_for(out, data=data))
    assert rows_of(out)[0]["skipped"] > 0
    listed = (out / "skipped.txt").read_text().splitlines()
    assert listed
    assert all("over max_prompt_tokens = 49" in line for line in listed)


def test_what_is_skipped_is_listed_once_a_line_each(tmp_path):
    directory = RunDirectory(tmp_path)
    directory.list_skipped([])
    assert not (tmp_path / "skipped.txt").exists()
    directory.list_skipped(["a: broken", "b: broken\nwith more"])
    RunDirectory(tmp_path).list_skipped(["c: long", "a: broken"])  # of a resumed run
    listed = (tmp_path / "skipped.txt").read_text()
    assert listed == "a: broken\nb: broken with more\nc: long\n"


def test_steps_of_a_finite_set_are_counted_in_epochs():
    config = config_for(Path("unused"), steps=None, epochs=2.0, prompts_per_step=16)
    assert loop.total_steps(config, 100) == 13
