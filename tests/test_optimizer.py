"""The optimizer of a run, and its learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from othink_jax import rl
from othink_jax.config import OptimizerConfig
from othink_jax.training.optimizer import learning_rate_schedule, make_optimizer

NO_KL = rl.carry_kl_coef(rl.constant_kl(0.0))


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("linear", 0.0, [1.0, 0.9, 0.5, 0.1, 0.0]),
        ("linear", 0.2, [0.0, 0.5, 5 / 8, 1 / 8, 0.0]),
        ("constant", 0.0, [1.0, 1.0, 1.0, 1.0, 1.0]),
        ("constant", 0.2, [0.0, 0.5, 1.0, 1.0, 1.0]),
        ("cosine", 0.0, [1.0, (1 + np.cos(np.pi / 10)) / 2, 0.5, 0.0244717, 0.0]),
        ("cosine", 0.15, [0.0, 0.5, (1 + np.cos(np.pi * 3 / 8)) / 2, 0.0380602, 0.0]),
    ],
)
def test_learning_rate_equals_hand_computed_values(schedule, warmup, expected):
    config = OptimizerConfig(learning_rate=1.0, lr_schedule=schedule, warmup_fraction=warmup)
    rate = learning_rate_schedule(config, 10)
    counts = [0, 1, 5, 9, 10]
    np.testing.assert_allclose(rate(jnp.array(counts)), expected, atol=1e-6)
    np.testing.assert_allclose([jax.jit(rate)(count) for count in counts], expected, atol=1e-6)
    assert rate(3).dtype == jnp.float32


def test_run_of_one_update_does_not_spend_it_warming_up():
    config = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.5)
    assert learning_rate_schedule(config, 1)(0) == 1.0


def test_run_without_updates_is_refused():
    with pytest.raises(ValueError, match="total_updates must be >= 1, got 0"):
        make_optimizer(OptimizerConfig(), NO_KL, 0)


def test_updates_equal_those_of_torch():
    """Clip, AdamW and decay against torch, with gradients on both sides of the clip."""
    config = OptimizerConfig(
        learning_rate=0.1, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.3, max_grad_norm=1.0
    )
    rng = np.random.default_rng(0)
    start = rng.normal(0, 1, 5).astype(np.float32)
    gradients = rng.normal(0, 1, (6, 5)).astype(np.float32) * [[3], [0.1], [5], [0.2], [1], [0.01]]

    tx = make_optimizer(config, NO_KL, 6)
    params = {"w": jnp.array(start)}
    state = tx.init(params)
    theirs = torch.nn.Parameter(torch.tensor(start))
    adamw = torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.3)
    decay = torch.optim.lr_scheduler.LambdaLR(adamw, lambda step: 1 - step / 6)
    for gradient in gradients.astype(np.float32):
        updates, state = tx.update({"w": jnp.array(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        theirs.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([theirs], 1.0)
        adamw.step()
        decay.step()
        np.testing.assert_allclose(params["w"], theirs.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_mean_of_gradients_is_stored_in_the_type_that_is_asked_for():
    """The mean of squares stays float32: it falls by a thousandth, which bfloat16 rounds away."""
    params = {"w": jnp.ones(2)}
    gradient = {"w": jnp.full(2, 0.1)}
    for dtype in ("float32", "bfloat16"):
        tx = make_optimizer(OptimizerConfig(mu_dtype=dtype), NO_KL, 4)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(gradient, state, params)
        mean, square = (optax.tree.get(state, name)["w"] for name in ("mu", "nu"))
        assert mean.dtype == dtype
        assert square.dtype == updates["w"].dtype == jnp.float32
        # 0.1 * (1 - 0.9**2); three roundings in bfloat16.
        np.testing.assert_allclose(mean.astype(jnp.float32), 0.019, rtol=3 * 2**-9)
        np.testing.assert_allclose(square, 0.01 * (1 - 0.999**2), rtol=1e-5)


def test_optimizer_carries_the_kl_weight():
    schedule = rl.dynamic_kl(0.0, 0.02, 4)
    tx = make_optimizer(OptimizerConfig(), rl.carry_kl_coef(schedule), 4)
    params = {"w": jnp.ones(2, jnp.bfloat16)}
    state = tx.init(params)
    for step in range(5):
        assert rl.kl_coef(state) == schedule(step)
        _, state = tx.update(params, state, params)
