"""Groups without signal are drawn anew."""

import dataclasses
import json

import numpy as np
import pytest

from othink_jax.training.grpo import GRPOTrainer, resume, train
from othink_jax.training.redraw import Draw, replaced, with_columns
from othink_jax.types import Rollout
from tests.compiled_once import programs_of_equal_settings_are_compiled_once
from tests.test_grpo import config_for, rows_of, without_times


@pytest.fixture(autouse=True, scope="module")
def shared_programs():
    """Of a run, and of its continuation."""
    with programs_of_equal_settings_are_compiled_once():
        yield


def draw_of(rewards, mark):
    """A draw whose every part says where it comes from."""
    rewards = np.array(rewards, np.float32)
    batch, group = rewards.shape
    tokens = np.arange(batch * group * 3).reshape(batch, group, 3) + mark
    return Draw(
        examples=[f"{mark} example {row}" for row in range(batch)],
        encoded=[f"{mark} encoded {row}" for row in range(batch)],
        rollout=Rollout(
            tokens=tokens,
            mask=np.ones(tokens.shape, bool),
            logp=-tokens.astype(np.float32),
            entropy=tokens.astype(np.float32),
            finished=np.full((batch, group), mark > 0),
        ),
        texts=[f"{mark} text {row}" for row in range(batch * group)],
        grades=[f"{mark} grade {row}" for row in range(batch * group)],
        scores=[f"{mark} score {row}" for row in range(batch * group)],
        rewards=rewards,
    )


def test_groups_without_signal_are_replaced_row_by_row_with_all_that_belongs_to_them():
    one = draw_of([[1, 1], [0, 1], [0, 0], [0.1, 0.1]], mark=0)
    other = draw_of([[2, 2], [2, 3], [0, 0], [0, 4]], mark=1000)
    made, count = replaced(one, other)
    assert count == 2
    assert made.examples == ["1000 example 1", "0 example 1", "1000 example 3", "0 example 3"]
    assert made.encoded == ["1000 encoded 1", "0 encoded 1", "1000 encoded 3", "0 encoded 3"]
    np.testing.assert_array_equal(made.rewards, np.float32([[2, 3], [0, 1], [0, 4], [0.1, 0.1]]))
    for name in ("tokens", "logp", "finished"):
        ours, theirs = (getattr(each.rollout, name) for each in (one, other))
        expected = np.stack([theirs[1], ours[1], theirs[3], ours[3]])
        np.testing.assert_array_equal(getattr(made.rollout, name), expected)
    assert made.texts[:4] == ["1000 text 2", "1000 text 3", "0 text 2", "0 text 3"]
    assert made.scores[4:] == ["1000 score 6", "1000 score 7", "0 score 6", "0 score 7"]
    assert made.grades[4:] == ["1000 grade 6", "1000 grade 7", "0 grade 6", "0 grade 7"]
    np.testing.assert_array_equal(made.has_signal, [True, True, True, False])


def test_columns_are_added_outside_the_mask_or_taken_away():
    rollout = draw_of([[0, 1]], mark=5).rollout
    longer = with_columns(rollout, 5)
    assert longer.tokens.shape == longer.logp.shape == (1, 2, 5)
    np.testing.assert_array_equal(longer.mask[..., 3:], False)
    np.testing.assert_array_equal(with_columns(longer, 3).tokens, rollout.tokens)


def test_a_step_has_new_groups_for_those_without_signal_and_resumes(tmp_path, monkeypatch):
    """The first prompt of the first two draws of a step has one reward, whatever it answers."""
    graded = GRPOTrainer.graded
    draws = []

    def zero_variance_groups(self, examples, encoded, rollout):
        draw = graded(self, examples, encoded, rollout)
        rewards = np.zeros_like(draw.rewards) + np.arange(draw.rewards.shape[1])
        if len(draws) % 3 < 2:
            rewards[0] = 1.0
        if len(draws) % 3 == 1:
            rewards[1:] = 1.0
        draws.append(dataclasses.replace(draw, rewards=rewards))
        return draws[-1]

    monkeypatch.setattr(GRPOTrainer, "graded", zero_variance_groups)
    run = train(config_for(tmp_path / "run", steps=2, redraw=4, checkpoint_every=1))
    rows = rows_of(run)
    assert len(draws) == 6
    assert [row["redrawn"] for row in rows] == [1, 1]
    assert [row["no_signal_share"] for row in rows] == [0, 0]
    assert json.loads((run / "config.json").read_text())["config"]["redraw"] == 4
    sample = json.loads((run / "samples" / "step_000001.jsonl").read_text().splitlines()[0])
    assert sample["question"] == draws[2].examples[0].question


def test_a_run_that_draws_anew_goes_on_bit_for_bit(tmp_path, monkeypatch):
    config = config_for(tmp_path / "run", redraw=2, checkpoint_every=1)
    rows = rows_of(train(config))
    step = GRPOTrainer.step

    def stopped(self, number, *rest):
        if number == 3:
            raise KeyboardInterrupt
        return step(self, number, *rest)

    again = config_for(tmp_path / "again", redraw=2, checkpoint_every=1)
    with monkeypatch.context() as patch:
        patch.setattr(GRPOTrainer, "step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(again)
    resume(again.out)
    assert without_times(rows_of(again.out)) == without_times(rows)
