"""The loss and the advantages that settings name."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from othink_jax import rl
from othink_jax.config import LossConfig
from othink_jax.errors import UserError
from othink_jax.training.losses import (
    kept_completions,
    make_advantages,
    make_loss,
    notes,
    resolved,
    token_weights,
)
from tests.test_rl_losses import arrays


def test_without_settings_it_is_the_loss_of_the_paper_to_the_last_bit():
    values = jax.tree.map(jnp.asarray, arrays())

    def of_settings(logp):
        loss, metrics = make_loss(LossConfig())(**values | {"logp": logp}, kl_coef=0.1)
        return loss.value, {name: each.value for name, each in metrics.items()}

    def of_paper(logp):
        return rl.grpo_loss(**values | {"logp": logp}, kl_coef=0.1)

    for function in (of_settings, of_paper):
        ((value, metrics), gradient) = jax.value_and_grad(function, has_aux=True)(values["logp"])
        if function is of_settings:
            expected = value, metrics, gradient
    jax.tree.map(np.testing.assert_array_equal, (value, metrics, gradient), expected)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": "pp"}, "--objective pp is not known; what is known: ppo, dual_clip, two_"),
        ({"kl_estimator": "k4"}, "--kl-estimator k4 is not known; what is known: k1, k2, k3, abs"),
        ({"kl_gradient": "up"}, "--kl-gradient up is not known; what is known: own, reverse"),
        ({"reduction": "mean"}, "--reduction mean is not known; what is known: sequence, token"),
        ({"kl_estimator": "full", "kl_gradient": "ratio"}, "full is exact: it stands in the loss"),
        ({"kl_estimator": "full_forward", "kl_placement": "reward"}, "so leave --kl-gradient and"),
        ({"objective_args": {"clip_low": 0.1}}, "clip_low has an option of its own"),
        ({"objective_args": {"d": 1.0}}, "--objective ppo has no number d: it has clip_low, clip_"),
    ],
)
def test_names_and_numbers_that_are_not_known_are_one_line_with_those_that_are(settings, said):
    with pytest.raises(UserError, match=said):
        make_loss(LossConfig(**settings))


def test_a_kl_over_the_vocabulary_is_not_taken_from_sampled_tokens():
    loss, values = make_loss(LossConfig(kl_estimator="full")), jax.tree.map(jnp.asarray, arrays())
    with pytest.raises(ValueError, match="comes as `kl`, not from ref_logp"):
        loss(**values, kl_coef=0.1)


def test_advantages_that_are_not_known_or_cannot_be_are_one_line():
    with pytest.raises(UserError, match="--advantage none is not known; what is known: group"):
        make_advantages(LossConfig(advantage="none"), prompts=2, group_size=4)
    half = LossConfig(advantage="pass_at_k", advantage_args={"k": 1.5})
    with pytest.raises(UserError, match=r"--advantage: k must be a whole number, got 1\.5"):
        make_advantages(half, prompts=2, group_size=4)
    with pytest.raises(UserError, match="a group must hold more than ddof=1 rewards, got 1"):
        make_advantages(LossConfig(), prompts=2, group_size=1)


def test_a_record_holds_the_numbers_that_were_in_force():
    found = resolved(LossConfig(clip_high=0.28))
    assert (found.clip_low, found.clip_high) == (0.2, 0.28)
    assert make_loss(found)


def test_completions_that_were_cut_and_groups_without_signal_are_left_out_if_asked():
    finished = np.array([[True, False], [True, True]])
    rollout = SimpleNamespace(finished=finished)
    rewards = np.array([[1.0, 2.0], [0.1, 0.1]], np.float32)
    kept = functools.partial(kept_completions, rollout=rollout, rewards=rewards)
    assert kept(LossConfig()) is None
    np.testing.assert_array_equal(kept(LossConfig(mask_truncated=True)), finished)
    np.testing.assert_array_equal(kept(LossConfig(drop_no_signal=True)), [[True] * 2, [False] * 2])
    both = kept(LossConfig(mask_truncated=True, drop_no_signal=True))
    np.testing.assert_array_equal(both, [[True, False], [False, False]])


def test_tokens_of_the_highest_entropy_are_those_of_all_processes():
    mask = np.array([[[True, True, False]], [[True, True, True]]])
    entropy = np.array([[[0.1, 0.9, 5.0]], [[0.2, 0.8, 0.3]]], np.float32)
    rollouts = [SimpleNamespace(mask=mask[i : i + 1], entropy=entropy[i : i + 1]) for i in (0, 1)]
    texts = [np.where(each.mask, each.entropy, np.nan).tolist() for each in rollouts]
    config = LossConfig(top_entropy=0.4)
    found = [token_weights(config, each, i, lambda _: texts) for i, each in enumerate(rollouts)]
    np.testing.assert_array_equal(np.concatenate(found), [[[0, 1, 0]], [[0, 1, 0]]])
    assert token_weights(LossConfig(), rollouts[0], 0, lambda _: texts) is None


def test_a_kl_term_that_has_no_gradient_is_said():
    assert "expected gradient of zero" in notes(LossConfig(kl_estimator="k1"))[0]
    for gradient in ("reverse", "forward", "ratio"):
        assert not notes(LossConfig(kl_estimator="k1", kl_gradient=gradient))
    assert not notes(LossConfig(kl_estimator="k1", kl_placement="reward"))
    assert not notes(LossConfig())
    assert "climbs" not in notes(LossConfig(kl_estimator="k1"))[0]
    assert "climbs the KL" in notes(LossConfig(kl_estimator="k1"), updates=2)[0]
    in_reward = LossConfig(kl_estimator="k1", kl_placement="reward")
    assert "of the policy that has sampled" in notes(in_reward, updates=4)[0]


def test_a_length_that_is_counted_twice_is_said():
    assert "counts again" in notes(LossConfig(objective="luspo", reduction="token"))[0]
    assert not notes(LossConfig(objective="luspo"))
