"""Objectives, advantages, corrections and masks against the code of TRL's trainers."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from trl import GRPOTrainer, RLOOTrainer
from trl.experimental.gmpo import GMPOTrainer
from trl.rewards import get_soft_overlong_punishment

from othink_jax import rl
from tests.test_rl_losses import arrays
from tests.trl_peer import ACCELERATOR, trl_batch, trl_loss

LENGTH = 7
OVER_LENGTH = functools.partial(rl.mean_over_length, length=LENGTH)
CLIP = {"clip_low": 0.1, "clip_high": 0.3}
NARROW = {"clip_low": 0.02, "clip_high": 0.03}  # the ratio of a sequence is nearer to one
TEMPERATURES = {"temperature_pos": 0.9, "temperature_neg": 1.4}
VESPO = {"k_pos": 2.0, "lambda_pos": 1.5, "k_neg": 3.0, "lambda_neg": 2.5}
BY_SEQUENCE = {
    "importance_sampling_level": "sequence",
    "epsilon_low": NARROW["clip_low"],
    "epsilon_high": NARROW["clip_high"],
}
# Our objective, its numbers and its reduction; TRL's loss, and what differs in the trainer.
CASES = {
    "ppo by sequence": (rl.ppo, CLIP, rl.mean_over_sequences, "grpo", {}),
    "ppo by token": (rl.ppo, CLIP, rl.mean_over_tokens, "dapo", {}),
    "ppo by length": (rl.ppo, CLIP, OVER_LENGTH, "dr_grpo", {}),
    "two_sided": (
        *(rl.two_sided, {**CLIP, "delta": 1.4}, rl.mean_over_sequences),
        *("grpo", {"config": {"delta": 1.4}}),
    ),
    "gspo": (rl.gspo, NARROW, rl.mean_over_sequences, "grpo", BY_SEQUENCE),
    "gspo_token": (rl.gspo_token, NARROW, rl.mean_over_sequences, "grpo", BY_SEQUENCE),
    "luspo": (rl.luspo, NARROW, rl.mean_over_sequences, "luspo", BY_SEQUENCE),
    "cispo": (
        *(rl.cispo, {"ratio_cap": 1.2}, rl.mean_over_tokens),
        *("cispo", {"epsilon_high": 1.2}),
    ),
    "sapo": (
        *(rl.sapo, TEMPERATURES, rl.mean_over_sequences),
        *("sapo", {"config": {f"sapo_{name}": x for name, x in TEMPERATURES.items()}}),
    ),
    "vespo": (
        *(rl.vespo, VESPO, rl.mean_over_tokens),
        *("vespo", {"config": {f"vespo_{name}": x for name, x in VESPO.items()}}),
    ),
    "gmpo": (rl.gmpo, CLIP, rl.mean_over_sequences, "grpo", {"trainer": GMPOTrainer}),
}


def given(values):
    """Arguments of an objective."""
    return [jnp.asarray(values[name]) for name in ("logp", "old_logp", "advantages", "mask")]


def relative(one, other):
    """Largest difference over the largest entry."""
    one, other = np.asarray(one), np.asarray(other)
    return np.abs(one - other).max() / np.abs(other).max()


@pytest.mark.parametrize("spread", [1.0, 30.0])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_of_an_objective_are_those_of_trl(case, seed, spread):
    """`spread` of 30: ratios from e^-30 to e^20, where the bounds of both are at work."""
    objective, numbers, reduce, loss_type, attributes = CASES[case]
    values = arrays(seed, sequences=8)
    log_ratio = values["logp"] - values["old_logp"]
    values["logp"] = np.clip(values["old_logp"] + spread * log_ratio, -40, 15).astype(np.float32)
    values["advantages"][0] = 0.0  # of the empty sequence; TRL's GMPO counts it with a ratio of one
    logp, old_logp, advantages, mask = given(values)

    def ours(logp):
        return reduce(objective(logp, old_logp, advantages, mask, **numbers), mask).value

    value, gradient = jax.jit(jax.value_and_grad(ours))(logp)
    expected, expected_gradient = trl_loss(values, loss_type, length=LENGTH, **attributes)
    assert value == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert relative(gradient, expected_gradient) < 1e-5


@pytest.mark.parametrize("delta", [0.02, 0.2])
def test_off_policy_sequences_are_those_that_trl_leaves_out(delta):
    values = arrays(3, sequences=40)
    ours = rl.off_policy_sequence_mask(*given(values), delta=delta)
    theirs = GRPOTrainer.get_off_policy_mask(
        torch.tensor(values["advantages"])[:, None],
        torch.tensor(values["logp"]),
        torch.tensor(values["old_logp"]),
        torch.tensor(values["mask"]),
        delta,
    )
    np.testing.assert_array_equal(ours, theirs[:, 0].numpy())
    assert 0 < np.asarray(ours).sum() < 40


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5, 0.9])
def test_tokens_of_high_entropy_are_those_of_trl(share):
    rng = np.random.default_rng(5)
    mask = np.arange(12) < rng.integers(0, 13, (30, 1))
    entropy = np.float32(rng.exponential(1.0, mask.shape))
    theirs = GRPOTrainer.get_high_entropy_mask(
        SimpleNamespace(accelerator=ACCELERATOR),
        torch.tensor(entropy),
        torch.tensor(mask),
        1 - share,
    )
    entropy = jnp.where(mask, entropy, jnp.nan)
    ours = rl.top_entropy_mask(entropy, jnp.asarray(mask), share=share)
    np.testing.assert_array_equal(ours, theirs.numpy())
    assert np.asarray(ours).sum() == pytest.approx(share * mask.sum(), abs=1)


def rewards(seed=0, kinds=1):
    """Of 5 groups of 4, of which the first has no signal and the second one right answer."""
    drawn = np.random.default_rng(seed).normal(0.3, 1.0, (kinds, 5, 4)).astype(np.float32)
    drawn[:, 0] = 0.1
    drawn[:, 1] = [0.0, 0.0, 1.0, 0.0]
    return drawn


@pytest.mark.parametrize(
    ("advantages", "trainer", "settings"),
    [
        (rl.group_advantages, GRPOTrainer, {"scale_rewards": "group"}),
        (rl.mean_advantages, GRPOTrainer, {"scale_rewards": "none"}),
        (rl.batch_advantages, GRPOTrainer, {"scale_rewards": "batch"}),
        (rl.rloo_advantages, RLOOTrainer, {}),
    ],
)
def test_advantages_are_those_of_trl(advantages, trainer, settings):
    given = rewards()
    theirs = trl_batch(trainer, given, **settings)["advantages"].reshape(given[0].shape)
    np.testing.assert_allclose(advantages(given[0]), theirs, rtol=1e-5, atol=1e-6)


def test_several_rewards_are_normalised_and_summed_as_by_trl():
    given, weights = rewards(kinds=3), [1.0, 0.5, 2.0]
    theirs = trl_batch(
        GRPOTrainer,
        given,
        multi_objective_aggregation="normalize_then_sum",
        reward_weights=torch.tensor(weights),
    )["advantages"]
    ours = rl.gdpo_advantages(given, weights=weights)
    np.testing.assert_allclose(ours, theirs.reshape(ours.shape), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("kind", ["truncate", "mask"])
def test_importance_weights_are_those_of_trl(kind, level):
    rng = np.random.default_rng(2)
    lengths = rng.integers(1, 6, 8)
    lengths[0] = 5
    mask = np.arange(5) < lengths[:, None]
    sampler = np.float32(-rng.exponential(1.0, mask.shape))
    trainer = np.float32(sampler + rng.normal(0, 0.5, mask.shape))
    theirs = trl_batch(
        GRPOTrainer,
        np.zeros((1, 2, 4), np.float32),
        logp=trainer,
        sampler_logp=sampler,
        lengths=lengths,
        vllm_importance_sampling_mode=f"{level}_{kind}",
        vllm_importance_sampling_clip_min=0.5 if kind == "mask" else None,
        vllm_importance_sampling_clip_max=1.5,
    )["importance_sampling_ratio"]
    ratio = {"token": rl.token_log_ratio, "sequence": rl.trajectory_log_ratio}[level]
    mask = jnp.asarray(mask)
    log_weights = ratio(jnp.asarray(trainer), jnp.asarray(sampler), mask)
    if kind == "truncate":
        ours = rl.truncated_weights(log_weights, mask, cap=1.5)
    else:
        ours = rl.masked_weights(log_weights, mask, low=0.5, high=1.5)
    np.testing.assert_allclose(ours, np.where(mask, theirs, 0.0), rtol=1e-5)
    assert len(np.unique(ours)) > 3


def test_overlong_penalty_is_that_of_trl():
    lengths = np.arange(1, 130, 3)
    theirs = get_soft_overlong_punishment(100, 20)([[0] * n for n in lengths])
    ours = rl.soft_overlong_penalty(lengths, limit=100, cache=20)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
