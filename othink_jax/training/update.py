"""One update of each method, a pure function. How it is spread over devices is decided outside."""

import functools
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from othink_jax.config import LossConfig
from othink_jax.model.collectives import axis_size, mean_gradient
from othink_jax.model.sharding import FSDP
from othink_jax.rl import grpo_loss, kl_coef
from othink_jax.rows import cut_rows
from othink_jax.training.partial import join
from othink_jax.training.state import TrainState
from othink_jax.types import GRPOBatch, SFTBatch

Metrics = dict[str, Float[Array, ""]]

_T = TypeVar("_T")
_Batch = TypeVar("_Batch", GRPOBatch, SFTBatch)

# Float32 log-probabilities (nats) of `batch.completions` under given parameters, of the whole batch
# or of a piece. What it returns outside `batch.mask` does not matter.
LogpFn = Callable[[PyTree, _Batch], Float[Array, "B G T"]]

# Of trained parameters, frozen ones and a batch.
_LossFn = Callable[[PyTree, PyTree, _Batch], tuple[Float[Array, ""], Metrics]]

# Of the arguments of `rl.grpo_loss`: the loss, and metrics of which `kl` is one.
LossFn = Callable[..., tuple[Float[Array, ""], Metrics]]


def grpo_update(
    state: TrainState,
    batch: GRPOBatch,
    *,
    logp_fn: LogpFn[GRPOBatch],
    tx: optax.GradientTransformation,
    config: LossConfig,
    frozen: PyTree | None = None,
    loss: LossFn = grpo_loss,
    micro_batches: int = 1,
    axis_name: str | None = None,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, Metrics]:
    """One step of `tx` down the loss of Eq. 4, with the KL weight that `state.opt_state` holds.

    With `micro_batches` the prompts are taken in that many pieces, one after the other, each with
    its own forward and backward pass; the optimizer makes its one step with the average gradient.
    With `axis_name` the batch is this device's share of the prompts, and the average is over the
    axis too. Gradients and metrics are means over sequences, and all pieces and shares hold the
    same number of sequences, so the average is that of the whole batch, not an approximation.

    Args:
        state: before the update; `opt_state` must hold the KL weight (`rl.carry_kl_coef`).
        batch: old_logp = None makes the update strictly on-policy, with a ratio of one.
        logp_fn: of the policy, see `LogpFn`.
        tx: an optimizer; it is handed the measured KL as the extra argument `kl`.
        config: the clip of the ratio.
        frozen: parameters that `logp_fn` gets beside those of the state, and that stay as they are;
            nested dicts, as those are.
        loss: `rl.grpo_loss`, or a function like it. Where it is not a mean over sequences, the
            average over pieces and shares is not that of the whole batch.
        micro_batches: pieces; divides the number of prompts.
        axis_name: of the mapped axis that this runs under; None outside of one.
        skip_nonfinite: where the step is not `finite`, leave parameters and `opt_state`, the KL
            weight and the position in every schedule among it, as they are; `step` counts it.

    Returns:
        The state after the update, and metrics, float32 scalars: `loss`, `beta` (the KL weight that
        was used), `grad_norm` (before the clip), `completion_length` (mean, tokens), `finite` (1 if
        loss, gradient and the change of the parameters are finite, else 0, and the new state is
        spoilt), and those of `rl.grpo_loss`.

    Raises:
        ValueError: `opt_state` holds no KL weight.
    """
    beta = kl_coef(state.opt_state)

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: GRPOBatch
    ) -> tuple[Float[Array, ""], Metrics]:
        logp = logp_fn(join(params, frozen) if frozen else params, batch)
        value, metrics = loss(
            logp,
            logp if batch.old_logp is None else batch.old_logp,
            batch.ref_logp,
            batch.advantages,
            batch.mask,
            kl_coef=beta,
            clip_low=config.clip_low,
            clip_high=config.clip_high,
        )
        length = batch.mask.sum(axis=-1).mean()
        return value, metrics | {"loss": value, "completion_length": length}

    gradient, metrics = _mean_gradient(
        loss_fn, state.params, frozen or {}, batch, micro_batches, axis_name
    )
    metrics |= {"beta": beta}
    return _make_step(state, gradient, metrics, tx, skip_nonfinite, kl=metrics["kl"])


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
    """One step of `tx` down the negative log-likelihood of the answers, nats per token.

    It is the mean over all tokens of all answers, of all devices: a long answer weighs more than a
    short one. Pieces and shares hold different numbers of tokens, so each sums up what its tokens
    lose and divides by their average number: the mean of those is that of the whole batch, not an
    approximation.

    Args:
        state: before the update.
        batch: prompts, and what is to be answered.
        logp_fn: of the model, see `LogpFn`.
        tx: an optimizer.
        frozen, micro_batches, axis_name, skip_nonfinite: as of `grpo_update`.

    Returns:
        The state after the update, and metrics, float32 scalars: `loss`, `grad_norm` and `finite`,
        as of `grpo_update`.
    """
    average = batch.mask.sum() / (micro_batches * axis_size(FSDP))  # tokens of a piece
    if axis_name is not None:
        average = jax.lax.pmean(average, axis_name)

    def loss_fn(
        params: PyTree, frozen: PyTree, batch: SFTBatch
    ) -> tuple[Float[Array, ""], Metrics]:
        logp = jnp.where(
            batch.mask, logp_fn(join(params, frozen) if frozen else params, batch), 0.0
        )
        loss = -logp.sum() / average
        return loss, {"loss": loss}

    gradient, metrics = _mean_gradient(
        loss_fn, state.params, frozen or {}, batch, micro_batches, axis_name
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
    """The state after a step of `tx`, which is handed what was `measured`, and all metrics."""
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


def _mean_gradient(
    loss_fn: _LossFn[_Batch],
    params: PyTree,
    frozen: PyTree,
    batch: _Batch,
    pieces: int,
    axis_name: str | None,
) -> tuple[PyTree, Metrics]:
    """Gradient and metrics of the mean of a loss over pieces of a batch, and over devices."""
    of_rows = functools.partial(_mean_over_pieces, loss_fn, pieces)
    gradient, metrics = mean_gradient(of_rows, params, frozen, batch)
    if axis_name is not None:
        gradient, metrics = jax.lax.pmean((gradient, metrics), axis_name)
    return gradient, metrics


def _mean_over_pieces(
    loss_fn: _LossFn[_Batch], pieces: int, params: PyTree, frozen: PyTree, batch: _Batch
) -> tuple[PyTree, Metrics]:
    """The same on one device, a piece at a time."""
    gradient_fn = jax.grad(loss_fn, has_aux=True)
    if pieces == 1:
        return gradient_fn(params, frozen, batch)

    def add(total: PyTree, piece: _Batch) -> tuple[PyTree, Metrics]:
        gradient, metrics = gradient_fn(params, frozen, piece)
        return jax.tree.map(jnp.add, total, gradient), metrics

    # f32: a sum in bf16 loses the small pieces to the large ones.
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params
    )
    total, metrics = jax.lax.scan(add, zeros, cut_rows(batch, pieces))
    gradient = jax.tree.map(lambda sum_, x: (sum_ / pieces).astype(x.dtype), total, params)
    return gradient, jax.tree.map(lambda values: values.mean(axis=0), metrics)


def _norm(tree: PyTree) -> Float[Array, ""]:
    # f32: a norm summed in bf16 keeps two or three digits, and overflows no later.
    return optax.tree.norm(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree))
