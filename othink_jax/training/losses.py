"""Loss and advantages of a run: the settings name functions in the tables of `rl`.

A number that the settings leave out has its function's default, which is that of its paper.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from othink_jax import rl
from othink_jax.config import LossConfig
from othink_jax.errors import UserError
from othink_jax.training.named import bound, defaults, refuse_own, tried
from othink_jax.types import Rollout

# (logp, old_logp, ref_logp, advantages, mask, *, kl_coef) -> loss and metrics. `kept`, `weights`
# and `sampler_logp` of a batch, and `kl`, are keyword arguments, given if the settings need them.
LossFn = Callable[..., tuple[rl.Average, dict[str, rl.Average]]]
AdvantageFn = Callable[[Float[Array, "B G"]], Float[Array, "B G"]]

# KL estimators from sampled tokens, and exact KLs over the vocabulary.
_ESTIMATORS: Mapping[str, Callable[..., Any]] = {**rl.KL_ESTIMATORS, **rl.KL_DIVERGENCES}


def make_loss(config: LossConfig, *, longest: int | None = None) -> LossFn:
    """The loss that the settings select.

    Args:
      config: names and numbers of the loss.
      longest: limit of a completion, tokens, for a reduction that divides by it.

    Raises:
      UserError: a name or a number is unknown, or a number is out of range.
    """
    clips = {"clip_low": config.clip_low, "clip_high": config.clip_high}
    refuse_own("objective", config.objective, config.objective_args, clips)
    given = {name: value for name, value in clips.items() if value is not None}
    objective = bound(rl.OBJECTIVES, "objective", config.objective, given | config.objective_args)
    kl_term = _kl_term(config)
    reduce = bound(rl.REDUCTIONS, "reduction", config.reduction, {}, {"length": longest})
    correction = None
    if config.correction is not None:
        correction = bound(rl.CORRECTIONS, "correction", config.correction, config.correction_args)
    loss = functools.partial(
        rl.policy_loss,
        objective=objective,
        kl_term=kl_term,
        reduce=reduce,
        kl_in_reward=config.kl_placement == "reward",
        correction=correction,
    )
    values, advantages = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 2), (1,)))
    mask = jax.ShapeDtypeStruct((1, 2), bool)
    ref_logp = None if over_vocabulary(config) else values
    tried(functools.partial(loss, kl_coef=0.0), values, values, ref_logp, advantages, mask)
    return loss


def over_vocabulary(config: LossConfig) -> bool:
    """Whether the KL is exact over the vocabulary, not estimated from the sampled token."""
    return config.kl_estimator in rl.KL_DIVERGENCES


def _kl_term(config: LossConfig) -> rl.KLTerm:
    """The KL term from log-probabilities of sampled tokens.

    Raises:
      UserError: a name is unknown, or the estimator does not allow the gradient or the placement.
    """
    estimator = bound(_ESTIMATORS, "kl-estimator", config.kl_estimator, {})
    with_gradient = bound(rl.KL_GRADIENTS, "kl-gradient", config.kl_gradient, {})
    if not over_vocabulary(config):
        return with_gradient(estimator)
    if config.kl_gradient != "own" or config.kl_placement != "loss":
        raise UserError(
            f"--kl-estimator {config.kl_estimator} is exact: it stands in the loss with its own"
            " gradient, so leave --kl-gradient and --kl-placement out"
        )
    return _not_of_tokens


def _not_of_tokens(logp: Array, old_logp: Array, ref_logp: Array) -> Array:
    del logp, old_logp, ref_logp
    raise ValueError("a KL over the vocabulary comes as `kl`, not from ref_logp of sampled tokens")


def make_advantages(config: LossConfig, *, prompts: int, group_size: int) -> AdvantageFn:
    """The function that the settings select: rewards [B, G] of a step -> advantages [B, G].

    Raises:
      UserError: a name or a number is unknown, or a number is out of range, or the group is too
        small.
    """
    shared = {"ddof": config.advantage_ddof, "eps": config.advantage_eps}
    made: AdvantageFn = bound(
        rl.ADVANTAGES, "advantage", config.advantage, config.advantage_args, shared
    )
    tried(made, jax.ShapeDtypeStruct((prompts, group_size), jnp.float32))
    return made


def kept_completions(
    config: LossConfig, rollout: Rollout, rewards: Float[np.ndarray, "B G"]
) -> Bool[np.ndarray, "B G"] | None:
    """Mask of the completions of a step that the loss uses; None for all of them."""
    if not (config.mask_truncated or config.drop_no_signal):
        return None
    kept = np.ones(rewards.shape, bool)
    if config.mask_truncated:
        kept &= np.asarray(rollout.finished)
    if config.drop_no_signal:
        kept &= ~np.asarray(rl.zero_variance_groups(rewards))[:, None]
    return kept


def token_weights(
    config: LossConfig, rollout: Rollout, index: int, all_gather: Callable[[Any], list[Any]]
) -> Float[np.ndarray, "B G T"] | None:
    """Token weights of the objective; None if all of them are one.

    Args:
      config: names and numbers of the loss.
      rollout: rollout of this process's prompts, on the host.
      index: index of this process.
      all_gather: all-gather of JSON values: the highest entropies are those of the whole batch.
    """
    if config.top_entropy is None:
        return None
    share = config.top_entropy

    def chosen(entropy: Float[Array, "B G T"]) -> Bool[Array, "B G T"]:
        return rl.top_entropy_mask(entropy, ~jnp.isnan(entropy), share=share)

    entropy = np.where(rollout.mask, rollout.entropy, np.nan)
    return of_whole_batch(chosen, entropy, index, all_gather).astype(np.float32)


def of_whole_batch(
    function: Callable[[Array], Array],
    rows: Float[np.ndarray, "b ..."],
    index: int,
    all_gather: Callable[[Any], list[Any]],
) -> Float[np.ndarray, "b ..."]:
    """Apply a function to the rows of all processes; returns the result of this process's rows.

    Args:
      function: takes the whole batch, [B, ...] float32, and returns one result row per row.
      rows: rows of this process.
      index: index of this process.
      all_gather: all-gather of JSON values.
    """
    every = all_gather(rows.tolist())
    whole = function(jnp.asarray(np.concatenate(every), jnp.float32))
    begin = sum(map(len, every[:index]))
    return np.asarray(whole)[begin : begin + len(rows)]


def resolved(config: LossConfig) -> LossConfig:
    """The same settings with the defaults of their functions filled in, for the run record.

    Raises:
      UserError: as `make_loss`.
    """
    make_loss(config, longest=1)
    bound(rl.ADVANTAGES, "advantage", config.advantage, config.advantage_args)
    numbers = defaults(rl.OBJECTIVES[config.objective]) | config.objective_args
    clips: dict[str, Any] = {}
    for name in ("clip_low", "clip_high"):
        own, given = numbers.pop(name, None), getattr(config, name)
        clips[name] = own if given is None else given
    advantage_args = defaults(rl.ADVANTAGES[config.advantage]) | config.advantage_args
    for name in ("ddof", "eps"):
        advantage_args.pop(name, None)
    correction_args = dict(config.correction_args)
    if config.correction is not None:
        correction_args = defaults(rl.CORRECTIONS[config.correction]) | correction_args
    return dataclasses.replace(
        config,
        correction_args=correction_args,
        objective_args=numbers,
        advantage_args=advantage_args,
        **clips,
    )


def known_names() -> dict[str, dict[str, tuple[str, str]]]:
    """Description of each function, and its numbers with their defaults, by option and name."""
    tables: dict[str, Mapping[str, Callable[..., Any]]] = {
        "kl-schedule": rl.KL_CONTROLS,
        "objective": rl.OBJECTIVES,
        "advantage": rl.ADVANTAGES,
        "kl-estimator": _ESTIMATORS,
        "kl-gradient": rl.KL_GRADIENTS,
        "reduction": rl.REDUCTIONS,
        "correction": rl.CORRECTIONS,
    }
    return {
        option: {
            name: (
                (inspect.getdoc(function) or "").partition("\n")[0],
                ", ".join(f"{number} {value:g}" for number, value in defaults(function).items()),
            )
            for name, function in table.items()
        }
        for option, table in tables.items()
    }


def notes(config: LossConfig, *, updates: int = 1) -> list[str]:
    """Warnings about a loss before training, one line each.

    Args:
      config: loss settings.
      updates: number of updates per rollout.
    """
    found = []
    if config.kl_placement == "loss" and (config.kl_estimator, config.kl_gradient) == ("k1", "own"):
        later = ", and from the second update of a rollout on it climbs the KL"
        found.append(
            "--kl-estimator k1 in the loss has an expected gradient of zero: the KL weight does"
            f" nothing but add noise{later if updates > 1 else ''}. --kl-gradient reverse or"
            " --kl-placement reward descend the KL"
        )
    if config.kl_placement == "reward" and updates > 1:
        found.append(
            "--kl-placement reward descends the KL of the policy that has sampled: later updates of"
            f" a rollout, of which there are {updates}, descend their own KL less. --kl-placement"
            " loss --kl-gradient ratio descends it at each"
        )
    if config.objective == "luspo" and config.reduction != "sequence":
        found.append(
            "--objective luspo is multiplied by a sequence's length already, which --reduction"
            f" {config.reduction} counts again: LUSPO has --reduction sequence"
        )
    return found
