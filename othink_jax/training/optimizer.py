"""The optimizer of a run: clip, AdamW, and the KL weight that rides along."""

import math

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from othink_jax.config import KLConfig, OptimizerConfig
from othink_jax.rl import carry_kl_coef, constant_kl, dynamic_kl


def make_optimizer(
    config: OptimizerConfig, kl: optax.Schedule | None, total_updates: int
) -> optax.GradientTransformationExtraArgs:
    """Global-norm clip, then AdamW, then the carrier of the KL weight.

    The clip comes first, so that one outlier cannot fill Adam's moments; weight decay (decoupled,
    on every parameter) comes after it and is not clipped. `carry_kl_coef` leaves gradients alone,
    so its place does not matter.

    Args:
        config: the optimizer's settings.
        kl: schedule of the KL weight over updates, see `rl.dynamic_kl`; None for a loss without
            one, and a state that holds none.
        total_updates: updates of the whole run, over which the learning rate decays.

    Raises:
        ValueError: `total_updates` is below 1.
    """
    adamw = optax.adamw(
        learning_rate_schedule(config, total_updates),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mu_dtype=config.mu_dtype,
    )
    clip = optax.clip_by_global_norm(config.max_grad_norm)
    carrier = () if kl is None else (carry_kl_coef(kl),)
    return optax.with_extra_args_support(optax.chain(clip, adamw, *carrier))


def learning_rate_schedule(config: OptimizerConfig, total_updates: int) -> optax.Schedule:
    """The learning rate of update number `count` (from 0): float32, elementwise.

    It rises in a straight line from 0 during the first ceil(warmup_fraction * total_updates)
    updates (all but the last one at most), then decays from the peak to 0 at `total_updates`, in a
    straight line or along half a cosine, or stays. Without warmup, update 0 has the peak rate.

    Raises:
        ValueError: `total_updates` is below 1.
    """
    if total_updates < 1:
        raise ValueError(f"total_updates must be >= 1, got {total_updates}")
    peak = config.learning_rate
    # At most all but one: a run of one update would otherwise make it with a rate of 0.
    warmup = min(math.ceil(config.warmup_fraction * total_updates), total_updates - 1)
    decay = {
        "linear": optax.linear_schedule(peak, 0.0, total_updates - warmup),
        "cosine": optax.cosine_decay_schedule(peak, total_updates - warmup),
        "constant": optax.constant_schedule(peak),
    }[config.lr_schedule]

    def schedule(count: ArrayLike) -> Float[Array, "..."]:
        count = jnp.asarray(count)
        rising = peak * count / max(warmup, 1)
        return jnp.where(count < warmup, rising, decay(count - warmup)).astype(jnp.float32)

    return schedule


def kl_schedule(config: KLConfig, total_updates: int) -> optax.Schedule:
    """The KL weight over the updates of a run: Eq. 3 of OThink-MR1, or a constant."""
    if config.kl_schedule == "constant":
        return constant_kl(config.kl_value)
    return dynamic_kl(config.kl_min, config.kl_max, total_updates, config.exploration_fraction)
