"""The optimizer of a run: gradient clip, AdamW, and controllers of the loss coefficients."""

import dataclasses
import math

import jax.numpy as jnp
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from othink_jax.config import EntropyConfig, GRPOConfig, KLConfig, OptimizerConfig
from othink_jax.errors import UserError
from othink_jax.rl import (
    KL_CONTROLS,
    adapt_entropy_coef,
    carry_entropy_coef,
    moving_reference,
)
from othink_jax.training.named import bound, defaults, keywords

# Settings that several controllers share; numbers of a single controller are in `kl_args`.
_SHARED = ("kl_min", "kl_max", "exploration_fraction", "kl_value", "kl_target")


def make_optimizer(
    config: OptimizerConfig, control: optax.GradientTransformation | None, total_updates: int
) -> optax.GradientTransformationExtraArgs:
    """Global-norm clip, then AdamW, then the controller of the loss coefficients.

    The clip comes first, so that one outlier cannot fill Adam's moments. Weight decay (decoupled,
    on every parameter) comes after it and is not clipped. A controller leaves gradients unchanged,
    so its place in the chain does not matter.

    Args:
      config: optimizer settings.
      control: controller of the loss coefficients, see `make_control`; None if the loss has no
        coefficients, in which case the state holds none.
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
    controls = () if control is None else (control,)
    return optax.with_extra_args_support(optax.chain(clip, adamw, *controls))


def learning_rate_schedule(config: OptimizerConfig, total_updates: int) -> optax.Schedule:
    """Schedule of the learning rate by update number `count` (from 0): float32, elementwise.

    It rises linearly from 0 during the first ceil(warmup_fraction * total_updates) updates (at most
    all but the last one). It then decays from the peak to 0 at `total_updates`, linearly or along
    half a cosine, or stays constant. Without warmup, update 0 has the peak rate.

    Raises:
      ValueError: `total_updates` is below 1.
    """
    if total_updates < 1:
        raise ValueError(f"total_updates must be >= 1, got {total_updates}")
    peak = config.learning_rate
    # At most all but one: otherwise the only update of a run of one would have a rate of 0.
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


def make_control(config: GRPOConfig, updates: int) -> optax.GradientTransformationExtraArgs:
    """Controllers of the loss coefficients that the settings select: KL, and entropy bonus.

    Args:
      config: settings of the run.
      updates: updates of the whole run.

    Raises:
      UserError: as `make_kl` and `make_entropy`.
    """
    kl = make_kl(config.kl, updates)
    if not config.entropy.used:
        return kl
    return optax.with_extra_args_support(optax.chain(kl, make_entropy(config.entropy)))


def make_entropy(config: EntropyConfig) -> optax.GradientTransformationExtraArgs:
    """Controller of the coefficient of the entropy bonus.

    Raises:
      UserError: a number is out of range.
    """
    if config.entropy_target is None:
        return carry_entropy_coef(config.entropy_coef)
    try:
        return adapt_entropy_coef(
            config.entropy_coef,
            config.entropy_target,
            delta=config.entropy_coef_delta,
            low=config.entropy_coef_min,
            high=config.entropy_coef_max,
        )
    except ValueError as error:
        raise UserError(f"the coefficient of the --entropy-target: {error}") from error


def make_kl(config: KLConfig, updates: int) -> optax.GradientTransformationExtraArgs:
    """Controller of the KL coefficient that the settings select, one of `rl.KL_CONTROLS`.

    If the reference policy moves, its update is chained to the controller.

    Args:
      config: name and numbers of the controller.
      updates: updates of the whole run.

    Raises:
      UserError: the name or a number is unknown, or a number is missing or out of range.
    """
    shared = {name: getattr(config, name) for name in _SHARED}
    control = bound(KL_CONTROLS, "kl-schedule", config.kl_schedule, config.kl_args, shared)
    try:
        made: optax.GradientTransformationExtraArgs = control(updates)
    except ValueError as error:
        raise UserError(f"--kl-schedule {config.kl_schedule}: {error}") from error
    if config.reference_every is None:
        return made
    moving = moving_reference(config.reference_every, config.reference_mix)
    return optax.with_extra_args_support(optax.chain(made, moving))


def check_kl(config: KLConfig) -> None:
    """Refuse to start a run with a number that its KL controller does not take.

    Not part of `make_kl`, so that a run of a version that ignored such numbers can be resumed.

    Raises:
      UserError: there is such a number; or as `make_kl`.
    """
    make_kl(config, 1)
    known, usual = keywords(KL_CONTROLS[config.kl_schedule]), KLConfig()
    for name in _SHARED:
        if name not in known and getattr(config, name) != getattr(usual, name):
            option = "--" + name.replace("_", "-")
            raise UserError(f"--kl-schedule {config.kl_schedule} does not take {option}")


def resolved_kl(config: KLConfig) -> KLConfig:
    """The same settings with the defaults of the controller filled in, for the run record."""
    own = defaults(KL_CONTROLS[config.kl_schedule])
    numbers = {name: value for name, value in own.items() if name not in _SHARED}
    return dataclasses.replace(config, kl_args=numbers | config.kl_args)
