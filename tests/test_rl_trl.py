"""The losses against those of TRL's GRPOTrainer, called on log-probabilities that are given."""

import functools

import jax
import numpy as np
import pytest

from othink_jax import rl
from tests.test_rl_losses import arrays, loss
from tests.trl_peer import trl_loss

BETA, LENGTH = 0.13, 7


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
    expected, expected_gradient = trl_loss(values, loss_type, length=LENGTH, beta=BETA)
    assert value == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
