"""The losses against those of TRL's GRPOTrainer, called on log-probabilities that are given."""

import functools
from collections import defaultdict
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
from trl import GRPOTrainer

from othink_jax import rl
from tests.test_rl_losses import arrays, loss

BETA, LENGTH = 0.13, 7


def trl_loss(values, loss_type):
    """Its loss and the gradient by log-probabilities, with the settings of a plain GRPO run."""
    logp = torch.tensor(values["logp"], requires_grad=True)
    completions = torch.zeros(logp.shape, dtype=torch.long)
    prompts = torch.zeros(len(logp), 1, dtype=torch.long)
    trainer = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *_, **__: (logp, torch.zeros_like(logp), None),
        _metrics=defaultdict(lambda: defaultdict(list)),
        _entropy_bonus_enabled=False,
        accelerator=SimpleNamespace(gather=lambda x: x, reduce=lambda x, reduction: x),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        aux_loss_enabled=False,
        beta=BETA,
        current_gradient_accumulation_steps=1,
        epsilon_high=0.3,
        epsilon_low=0.1,
        importance_sampling_level="token",
        loss_type=loss_type,
        max_completion_length=LENGTH,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )
    inputs = {
        "prompt_ids": prompts,
        "prompt_mask": torch.ones_like(prompts),
        "completion_ids": completions,
        "completion_mask": torch.tensor(values["mask"]).long(),
        "advantages": torch.tensor(values["advantages"]),
        "old_per_token_logps": torch.tensor(values["old_logp"]),
        "ref_per_token_logps": torch.tensor(values["ref_logp"]),
    }
    value = GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    value.backward()
    return value.item(), logp.grad.numpy()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("loss_type", "reduce"),
    [
        ("grpo", rl.mean_over_sequences),
        ("bnpo", rl.mean_over_tokens),
        ("dr_grpo", functools.partial(rl.mean_over_length, length=LENGTH)),
    ],
)
def test_loss_and_gradient_are_those_of_trl(loss_type, reduce, seed):
    values = arrays(seed)

    def ours(logp):
        settings = {"kl_coef": BETA, "clip_low": 0.1, "clip_high": 0.3, "reduce": reduce}
        return loss(values | {"logp": logp}, **settings)[0]

    value, gradient = jax.value_and_grad(ours)(values["logp"])
    expected, expected_gradient = trl_loss(values, loss_type)
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
