"""The training loop on the embedded model: what a run writes, resumes and refuses."""

import dataclasses
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from othink_jax.checkpoint.load import load
from othink_jax.checkpoint.store import TrainingStore
from othink_jax.config import (
    TINY_TEMPLATE,
    DataConfig,
    GRPOConfig,
    KLConfig,
    OptimizerConfig,
    ParallelConfig,
    RewardConfig,
    SamplingConfig,
)
from othink_jax.errors import UserError
from othink_jax.training import grpo
from othink_jax.training.grpo import GRPOTrainer, resume, train

TIMES = ("elapsed", "tokens_per_second")


def config_for(out: Path, **changes) -> GRPOConfig:
    settings = {
        "model": "tiny",
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One uninterrupted run of four steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(config_for(out))
    return out


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
    base = load("tiny")
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), trained.params, base.params)
    assert all(jax.tree.leaves(changed))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), reference.params, base.params)
    assert all(jax.tree.leaves(same))


def test_samples_are_kept_with_their_images(finished):
    names = sorted(path.name for path in (finished / "samples").glob("*.jsonl"))
    assert names == ["step_000001.jsonl", "step_000002.jsonl", "step_000004.jsonl"]
    for line in (finished / "samples" / names[0]).read_text().splitlines():
        row = json.loads(line)
        assert len(row["completions"]) == 4
        assert all((finished / "samples" / image).is_file() for image in row["images"])


def test_resumed_run_equals_uninterrupted_run(finished, tmp_path, monkeypatch):
    """Stopped after step 3 by a signal, continued: the same metrics and parameters, bit for bit."""
    step = GRPOTrainer.step

    def stop_in_step_3(self, number, *rest):
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, *rest)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "step", stop_in_step_3)
        with pytest.raises(KeyboardInterrupt):
            train(config_for(out))
    assert [row["step"] for row in rows_of(out)] == [1, 2, 3]
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


@pytest.mark.slow
def test_pmap_over_devices_trains_as_one_device_does(finished, tmp_path):
    out = tmp_path / "pmap"
    train(config_for(out, parallel=ParallelConfig(strategy="pmap", devices=4)))
    for ours, one in zip(rows_of(out), rows_of(finished), strict=True):
        assert ours["reward"] == one["reward"]
    for ours, one in zip(final_params(out), final_params(finished), strict=True):
        np.testing.assert_allclose(ours, one, atol=1e-5)


def test_several_inner_updates_move_away_from_the_sampling_policy(tmp_path):
    out = tmp_path / "inner"
    train(config_for(out, steps=1, inner_updates=2, optimizer=OptimizerConfig(learning_rate=3e-3)))
    (row,) = rows_of(out)
    assert row["kl"] > 0  # of the second update, made from the same rollout
    assert row["clip_fraction"] > 0


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    broken = OptimizerConfig(learning_rate=1e30, max_grad_norm=1e30)
    with pytest.raises(UserError, match="not finite"):
        train(config_for(tmp_path / "diverged", optimizer=broken))


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


def test_a_directory_in_use_is_refused(finished):
    with pytest.raises(UserError, match="--resume"):
        train(config_for(finished))


def test_resuming_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a run directory"):
        resume(tmp_path)


def test_endless_task_needs_a_number_of_steps(tmp_path):
    with pytest.raises(UserError, match="--steps"):
        train(config_for(tmp_path / "endless", steps=None))


def test_over_long_prompts_are_skipped_and_counted(tmp_path):
    """Prompts of this task have 42 to 60 tokens; the limit cuts off some of them, whole."""
    out = tmp_path / "long"
    data = dataclasses.replace(config_for(out).data, max_prompt_tokens=49)
    train(config_for(out, steps=1, prompts_per_step=8, data=data))
    assert rows_of(out)[0]["skipped"] > 0


def test_steps_of_a_finite_set_are_counted_in_epochs():
    config = config_for(Path("unused"), steps=None, epochs=2.0, prompts_per_step=16)
    assert grpo.total_steps(config, 100) == 13
