"""The update of each method, a pure function. The caller spreads it over devices."""

import functools
import operator
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from othink_jax.config import LossConfig
from othink_jax.model.collectives import axis_size, mean_gradient
from othink_jax.model.sharding import FSDP
from othink_jax.rl import (
    Average,
    entropy_coef,
    entropy_loss,
    kl_coef,
    mean_over_tokens,
    sum_over_tokens,
)
from othink_jax.rows import split_rows
from othink_jax.training.losses import LossFn, make_loss
from othink_jax.training.partial import merge_params
from othink_jax.training.state import TrainState
from othink_jax.types import GRPOBatch, SFTBatch, TokenStats

Metrics = dict[str, Float[Array, ""]]

_T = TypeVar("_T")
_Batch = TypeVar("_Batch", GRPOBatch, SFTBatch)

# (params, batch) -> float32 log-probabilities (nats) of `batch.completions`, for a whole batch or a
# micro-batch. Values outside `batch.mask` do not matter.
LogpFn = Callable[[PyTree, _Batch], Float[Array, "B G T"]]

# The same, or `TokenStats` if the update also needs other statistics, such as the entropy.
StatsFn = Callable[[PyTree, GRPOBatch], Float[Array, "B G T"] | TokenStats]

_Averages = dict[str, Average]

# (trained params, frozen params, micro-batch) -> the micro-batch's share of the loss, and metrics.
_ShareFn = Callable[[PyTree, PyTree, _Batch], tuple[Float[Array, ""], dict[str, Average]]]


def grpo_update(
    state: TrainState,
    batch: GRPOBatch,
    *,
    logp_fn: StatsFn,
    tx: optax.GradientTransformation,
    config: LossConfig,
    frozen: PyTree | None = None,
    loss: LossFn | None = None,
    micro_batches: int = 1,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on a loss such as Eq. 4, with the KL coefficient of `state.opt_state`.

    `micro_batches` is the number of gradient accumulation steps: each micro-batch of prompts has
    its own forward and backward pass, and the optimizer makes one step with the average gradient.
    With `axis_name`, the batch is this device's share of the prompts, and the average is over the
    axis too. A loss returns its numerator and denominator separately. Every micro-batch and device
    divides by the denominator of the whole batch. So, for every reduction, the step is exactly that
    of the whole batch.

    Args:
      state: before the update. `opt_state` must hold the KL coefficient (`rl.carry_kl_coef`). If it
        also holds the coefficient of an entropy bonus (`rl.carry_entropy_coef`), the loss has one.
      batch: old_logp = None makes the update strictly on-policy, with a ratio of one. ref_logp =
        None leaves the KL out of the loss and of the metrics.
      logp_fn: log-probabilities of the policy, see `LogpFn`. For an entropy bonus it returns
        `TokenStats` with the entropy. If these have a `kl`, it replaces that of `batch.ref_logp`.
      tx: optimizer; it receives the measured `kl` and `entropy` as extra arguments of these names.
      config: loss settings.
      frozen: parameters that `logp_fn` gets beside those of the state, and that are not updated;
        nested dicts, as those are.
      loss: replaces the loss of `config`.
      micro_batches: number of micro-batches; divides the number of prompts.
      axis_name: name of the mapped axis that this runs under; None outside of one.
      skip_nonfinite: if the step is not `finite`, keep the old parameters and `opt_state`, with the
        KL coefficient and the position in every schedule; `step` still counts it.

    Returns:
      The state after the update, and metrics, float32 scalars: `loss`, `beta` (the KL coefficient
      that was used), `grad_norm` (before the clip), `completion_length` (mean, tokens), `finite` (1
      if loss, gradient and parameter change are finite; else 0, and the new state is unusable
      unless `skip_nonfinite`), and those of the loss. With an entropy bonus also `entropy_coef`
      (that was used), `entropy_loss` (its share of the loss) and `policy_entropy` (nats per token).

    Raises:
      ValueError: `opt_state` holds no KL coefficient, or the loss is no `rl.Average`, or only one
        of `opt_state` and `logp_fn` has an entropy.
    """
    beta, bonus = kl_coef(state.opt_state), entropy_coef(state.opt_state)
    measure = make_loss(config) if loss is None else loss

    def terms_of(stats: TokenStats, batch: GRPOBatch) -> tuple[_Averages, _Averages]:
        """Loss terms, each with a divisor of its own, and metrics."""
        old_logp = stats.logp if batch.old_logp is None else batch.old_logp
        further = {
            name: value
            for name in ("kept", "weights", "sampler_logp")
            if (value := getattr(batch, name)) is not None
        }
        if stats.kl is not None:
            further["kl"] = stats.kl
        given = (stats.logp, old_logp, batch.ref_logp, batch.advantages, batch.mask)
        value, metrics = measure(*given, kl_coef=beta, **further)
        if not isinstance(value, Average):
            raise ValueError(
                "a loss must be an rl.Average, as that of rl.policy_loss: pieces add up"
            )
        if bonus is None or stats.entropy is None:
            return {"loss": value}, metrics
        of_tokens = (stats.entropy, batch.mask, batch.kept)
        terms = {"loss": value, "entropy_loss": entropy_loss(*of_tokens, coef=bonus)}
        return terms, metrics | {"policy_entropy": mean_over_tokens(*of_tokens)}

    # Divisors do not depend on the policy: zeros stand in for its statistics.
    nothing = jnp.zeros(batch.mask.shape)
    whole, _ = terms_of(TokenStats(logp=nothing, entropy=None if bonus is None else nothing), batch)
    divisors = {
        name: _share_of(term.divisor, micro_batches, axis_name) for name, term in whole.items()
    }

    def share_fn(
        params: PyTree, frozen: PyTree, batch: GRPOBatch
    ) -> tuple[Float[Array, ""], dict[str, Average]]:
        given = logp_fn(merge_params(params, frozen) if frozen else params, batch)
        terms, metrics = terms_of(_stats(given, entropy=bonus is not None), batch)
        shares = [term.total / divisors[name] for name, term in terms.items()]
        length = sum_over_tokens(jnp.ones(batch.mask.shape), batch.mask)
        metrics |= terms | {"completion_length": length}
        return functools.reduce(operator.add, shares), metrics

    gradient, metrics = _mean_gradient(
        share_fn, state.params, frozen or {}, batch, micro_batches, axis_name
    )
    metrics |= {"beta": beta}
    if bonus is not None:
        metrics |= {"loss": metrics["loss"] + metrics["entropy_loss"], "entropy_coef": bonus}
    measured = {
        argument: metrics[name]
        for argument, name in (("kl", "kl"), ("entropy", "policy_entropy"))
        if name in metrics
    }
    return _make_step(state, gradient, metrics, tx, skip_nonfinite, **measured)


def _stats(given: Array | TokenStats, *, entropy: bool) -> TokenStats:
    """Result of a `logp_fn` as `TokenStats`; raises ValueError if `entropy` is missing or extra."""
    stats = given if isinstance(given, TokenStats) else TokenStats(logp=given)
    if entropy and stats.entropy is None:
        raise ValueError(
            "the optimizer state has an entropy coefficient: logp_fn must give an entropy"
        )
    if not entropy and stats.entropy is not None:
        raise ValueError(
            "logp_fn gives an entropy, but the optimizer state has no coefficient for it: put"
            " carry_entropy_coef(coef) into the optimizer's chain"
        )
    return stats


def sft_update(
    state: TrainState,
    batch: SFTBatch,
    *,
    logp_fn: LogpFn[SFTBatch],
    tx: optax.GradientTransformation,
    frozen: PyTree | None = None,
    micro_batches: int = 1,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, Metrics]:
    """One optimizer step on the negative log-likelihood of the answers, nats per token.

    The loss is the mean over all tokens of all answers on all devices, so a long answer weighs more
    than a short one. Micro-batches and devices add up as in `grpo_update`.

    Args:
      state: before the update.
      batch: prompts and target answers.
      logp_fn: log-probabilities of the model, see `LogpFn`.
      tx: optimizer.
      frozen, micro_batches, axis_name, skip_nonfinite: as in `grpo_update`.

    Returns:
      The state after the update, and metrics, float32 scalars: `loss`, `grad_norm` and `finite`, as
      in `grpo_update`.
    """
    divisor = _share_of(batch.mask.sum(), micro_batches, axis_name)

    def share_fn(
        params: PyTree, frozen: PyTree, batch: SFTBatch
    ) -> tuple[Float[Array, ""], dict[str, Average]]:
        logp = logp_fn(merge_params(params, frozen) if frozen else params, batch)
        loss = mean_over_tokens(-logp, batch.mask)
        return loss.total / divisor, {"loss": loss}

    gradient, metrics = _mean_gradient(
        share_fn, state.params, frozen or {}, batch, micro_batches, axis_name
    )
    return _make_step(state, gradient, metrics, tx, skip_nonfinite)


def _make_step(
    state: TrainState,
    gradient: PyTree,
    metrics: Metrics,
    tx: optax.GradientTransformation,
    skip_nonfinite: bool,
    **measured: Float[Array, ""],
) -> tuple[TrainState, Metrics]:
    """Apply `tx`, with `measured` as extra arguments; returns the new state and all metrics."""
    updates, opt_state = optax.with_extra_args_support(tx).update(
        gradient, state.opt_state, state.params, **measured
    )
    params = optax.apply_updates(state.params, updates)
    grad_norm = _norm(gradient)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm) & jnp.isfinite(_norm(updates))
    metrics |= {"grad_norm": grad_norm, "finite": finite}
    metrics = {name: value.astype(jnp.float32) for name, value in metrics.items()}
    if skip_nonfinite:
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.opt_state),
        )
    return TrainState(step=state.step + 1, params=params, opt_state=opt_state), metrics


def _share_of(
    count: Float[Array, ""] | float, pieces: int, axis_name: str | None
) -> Float[Array, ""] | float:
    """Divisor of a micro-batch, such that the mean over all of them is that of the batch."""
    share = count / (pieces * axis_size(FSDP))
    if isinstance(share, float):
        return share
    if axis_name is not None:
        share = jax.lax.pmean(share, axis_name)
    return jnp.where(share == 0, 1.0, share)  # 0 if no token is kept; the total is zero too


def _mean_gradient(
    share_fn: _ShareFn[_Batch],
    params: PyTree,
    frozen: PyTree,
    batch: _Batch,
    pieces: int,
    axis_name: str | None,
) -> tuple[PyTree, Metrics]:
    """Gradient and metrics of the loss shares, averaged over micro-batches and devices."""
    of_rows = functools.partial(_mean_over_pieces, share_fn, pieces)
    gradient, averages = mean_gradient(of_rows, params, frozen, batch)
    if axis_name is not None:
        gradient, averages = jax.lax.pmean((gradient, averages), axis_name)
    return gradient, {name: Average(*average).value for name, average in averages.items()}


def _mean_over_pieces(
    share_fn: _ShareFn[_Batch], pieces: int, params: PyTree, frozen: PyTree, batch: _Batch
) -> tuple[PyTree, dict[str, Average]]:
    """The same on one device, by gradient accumulation over micro-batches."""

    def gradient_of(piece: _Batch) -> tuple[PyTree, dict[str, Average]]:
        gradient, averages = jax.grad(share_fn, has_aux=True)(params, frozen, piece)
        return gradient, jax.tree.map(functools.partial(jnp.asarray, dtype=jnp.float32), averages)

    if pieces == 1:
        return gradient_of(batch)

    def add(total: PyTree, piece: _Batch) -> tuple[PyTree, dict[str, Average]]:
        gradient, averages = gradient_of(piece)
        return jax.tree.map(_add, total, gradient), averages

    # f32: a sum in bf16 loses small terms to large ones.
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params
    )
    total, averages = jax.lax.scan(add, zeros, split_rows(batch, pieces))
    gradient = jax.tree.map(lambda sum_, x: (sum_ / pieces).astype(x.dtype), total, params)
    return gradient, jax.tree.map(lambda values: values.mean(axis=0), averages)


def _add(total: Float[Array, "..."], piece: Float[Array, "..."]) -> Float[Array, "..."]:
    # XLA moves all-reduces out of a loop that accumulates their results, and fails if they are bf16
    # (`while_loop_all_reduce_code_motion`, libtpu 0.0.42). The barrier prevents it. It is set per
    # leaf, so that each is added, and its memory freed, as soon as it is there.
    return total + jax.lax.optimization_barrier(piece)


def _norm(tree: PyTree) -> Float[Array, ""]:
    # f32: a norm summed in bf16 keeps two or three digits, and has no larger range.
    return optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree))
