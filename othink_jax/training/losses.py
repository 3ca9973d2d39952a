"""The loss and the advantages of a run, from its settings: names are looked up in the tables of rl.

The numbers of a function are its keyword arguments. One with no entry in the settings has the
default of its function, which is its paper's.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from othink_jax import rl
from othink_jax.config import LossConfig
from othink_jax.errors import UserError

# (logp, old_logp, ref_logp, advantages, mask, *, kl_coef) -> loss and metrics, of which `kl` is one
LossFn = Callable[..., tuple[rl.Average, dict[str, rl.Average]]]
AdvantageFn = Callable[[Float[Array, "B G"]], Float[Array, "B G"]]


def make_loss(config: LossConfig, *, longest: int | None = None) -> LossFn:
    """The loss that the settings name.

    Args:
      config: names and numbers.
      longest: limit of a completion, tokens, for a reduction that divides by it.

    Raises:
      UserError: a name or a number is not known, or a number is out of range.
    """
    clips = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    given = {name: value for name, value in clips.items() if value is not None}
    objective = _bound(rl.OBJECTIVES, "objective", config.objective, given | config.objective_args)
    estimator = _bound(rl.KL_ESTIMATORS, "kl-estimator", config.kl_estimator, {})
    with_gradient = _bound(rl.KL_GRADIENTS, "kl-gradient", config.kl_gradient, {})
    reduce = _bound(rl.REDUCTIONS, "reduction", config.reduction, {}, {"length": longest})
    loss = functools.partial(
        rl.policy_loss,
        objective=objective,
        kl_term=with_gradient(estimator),
        reduce=reduce,
        kl_in_reward=config.kl_placement == "reward",
    )
    values, advantages = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 2), (1,)))
    mask = jax.ShapeDtypeStruct((1, 2), bool)
    _tried(functools.partial(loss, kl_coef=0.0), values, values, values, advantages, mask)
    return loss


def make_advantages(config: LossConfig, *, prompts: int, group_size: int) -> AdvantageFn:
    """Rewards [B, G] of a step -> advantages [B, G], as the settings name them.

    Raises:
      UserError: a name or a number is not known, or a number is out of range, or the group too
        small.
    """
    shared = {"ddof": config.advantage_ddof, "eps": config.advantage_eps}
    made: AdvantageFn = _bound(
        rl.ADVANTAGES, "advantage", config.advantage, config.advantage_args, shared
    )
    _tried(made, jax.ShapeDtypeStruct((prompts, group_size), jnp.float32))
    return made


def resolved(config: LossConfig) -> LossConfig:
    """The same settings with the defaults of the functions that they name, for the record of a run.

    Raises:
      UserError: as `make_loss`.
    """
    make_loss(config)
    _bound(rl.ADVANTAGES, "advantage", config.advantage, config.advantage_args)
    numbers = _defaults(rl.OBJECTIVES[config.objective]) | config.objective_args
    clips: dict[str, Any] = {}
    for name in ("clip_low", "clip_high"):
        own, given = numbers.pop(name, None), getattr(config, name)
        clips[name] = own if given is None else given
    advantage_args = _defaults(rl.ADVANTAGES[config.advantage]) | config.advantage_args
    for name in ("ddof", "eps"):
        advantage_args.pop(name, None)
    return dataclasses.replace(
        config, objective_args=numbers, advantage_args=advantage_args, **clips
    )


def notes(config: LossConfig) -> list[str]:
    """What a user should know of a loss before it is descended."""
    if config.kl_placement == "loss" and (config.kl_estimator, config.kl_gradient) == ("k1", "own"):
        return [
            "--kl-estimator k1 in the loss has an expected gradient of zero: the KL weight does"
            " nothing but add noise. --kl-gradient reverse or --kl-placement reward descend the KL"
        ]
    return []


def _bound(
    table: Mapping[str, Callable[..., Any]],
    option: str,
    name: str,
    given: Mapping[str, float],
    shared: Mapping[str, Any] | None = None,
) -> Any:
    """A function of a table with its numbers: those `given`, and those `shared` that it takes."""
    if name not in table:
        raise UserError(f"--{option} {name} is not known; what is known: {', '.join(table)}")
    known = _keywords(table[name])
    unknown = [number for number in given if number not in known]
    if unknown:
        has = f"it has {', '.join(known)}" if known else "it has none"
        raise UserError(f"--{option} {name} has no number {', '.join(unknown)}: {has}")
    taken = {number: value for number, value in (shared or {}).items() if number in known}
    numbers = {**taken, **given}
    return functools.partial(table[name], **numbers) if numbers else table[name]


def _keywords(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: each for name, each in parameters.items() if each.kind is each.KEYWORD_ONLY}


def _defaults(function: Callable[..., Any]) -> dict[str, float]:
    return {
        name: each.default
        for name, each in _keywords(function).items()
        if each.default is not each.empty
    }


def _tried(function: Callable[..., Any], *shapes: jax.ShapeDtypeStruct) -> None:
    """Trace a function: what it says of its numbers, it says to the user."""
    try:
        jax.eval_shape(function, *shapes)
    except ValueError as error:
        raise UserError(str(error)) from error
