"""Compiled device programs of a step, for each method."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, Int

from othink_jax import rl
from othink_jax.checkpoint.load import Model
from othink_jax.config import GRPOConfig, SamplingConfig, SFTConfig, TrainingConfig
from othink_jax.data.processing import SpecialTokens
from othink_jax.model.log_probs import Reference, completion_logp, completion_stats
from othink_jax.model.stack import unrolled
from othink_jax.model.vlm import cast_matrices, merge
from othink_jax.rows import concat_rows, split_rows
from othink_jax.sampling import make_sampler
from othink_jax.training.losses import LossFn, over_vocabulary
from othink_jax.training.parallel import Parallel
from othink_jax.training.partial import (
    REFERENCE,
    Params,
    decoding_graphdef,
    merge_params,
    policy_graphdef,
)
from othink_jax.training.state import TrainState
from othink_jax.training.update import Metrics, grpo_update, sft_update
from othink_jax.types import GRPOBatch, Prompts, Rollout, SFTBatch, TokenStats


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """Programs compiled for the devices of a run; they take arrays that `Parallel` put there.

    `params` are those of the whole model. Only `update` takes the trained ones in its state.
    """

    encode: Callable[..., Float[Array, "B M D"] | None]  # params, prompts
    update: Callable[..., tuple[TrainState, Metrics]]  # state, (fixed parameters, batch)
    # params -> (prompts, key_data) -> greedy answers, G = 1; None without validation
    greedy_sampler: Callable[[Params], Callable[..., Rollout]] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GRPOPrograms(Programs):
    """Programs of GRPO, which also samples and computes log-probabilities before an update."""

    unroll: Callable[[Params], Params] | None  # params -> weights, unstacked; None if not scanned
    weights: Callable[[Params], Params]  # params -> weights that `sample` takes
    sample: Callable[..., Rollout]  # weights, params, prompts, key_data
    logp: Callable[..., Float[Array, "B G T"]]  # params, prompts, completions
    ref_logp: Callable[..., Float[Array, "B G T"]]  # params of the reference, prompts, completions


def compile_grpo(
    checkpoint: Model,
    config: GRPOConfig,
    parallel: Parallel,
    tx: optax.GradientTransformation,
    loss: LossFn | None = None,
) -> GRPOPrograms:
    """The programs of a GRPO run. All but decoding split the prompts into `micro_batches`.

    Decode steps are bound by reading the weights, so they cost the same for few prompts as for
    many.
    """
    # Not the checkpoint itself: programs that close over it would keep its parameters alive.
    reference = checkpoint.graphdef
    policy = policy_graphdef(checkpoint, config)
    decoding = _decoding(checkpoint, config, parallel)

    def logp(
        graphdef: Any, params: Params, prompts: Prompts, completions: Int[Array, "B G T"]
    ) -> Float[Array, "B G T"]:
        def of_piece(piece: tuple[Prompts, Int[Array, "b G T"]]) -> Float[Array, "b G T"]:
            model = merge(graphdef, params)
            return completion_logp(model, *piece, chunk=config.loss.logp_chunk)

        if config.micro_batches == 1:
            return of_piece((prompts, completions))
        rows = split_rows((prompts, completions), config.micro_batches)
        return concat_rows(jax.lax.map(of_piece, rows))

    def stats(params: Params, batch: GRPOBatch) -> TokenStats:
        own = {name: part for name, part in params.items() if name != REFERENCE}
        measured = None
        if REFERENCE in params:
            terms = rl.KL_DIVERGENCES[config.loss.kl_estimator]
            like = reference if config.kl.reference_every is None else policy
            measured = Reference(model=merge(like, params[REFERENCE]), terms=terms)
        return completion_stats(
            merge(policy, own),
            batch.prompts,
            batch.completions,
            chunk=config.loss.logp_chunk,
            entropy=config.entropy.used,
            reference=measured,
        )

    update = functools.partial(grpo_update, tx=tx, config=config.loss, loss=loss)
    moving = over_vocabulary(config.loss) and config.kl.reference_every is not None
    sampler = decoding.sampler(config.sampling, group_size=config.group_size)
    policy_logp = parallel.compile_apply(functools.partial(logp, policy))
    same = policy is reference  # if so, one compiled program serves both
    return GRPOPrograms(
        encode=parallel.compile_apply(functools.partial(_encode, policy)),
        greedy_sampler=decoding.greedy_sampler(config.sampling.max_new_tokens),
        unroll=decoding.unroll,
        weights=decoding.weights,
        sample=sampler,
        logp=policy_logp,
        ref_logp=policy_logp
        if same
        else parallel.compile_apply(functools.partial(logp, reference)),
        update=_compile_update(update, stats, config, parallel, moving=moving),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Decoding:
    """Builds the samplers of a policy and their weights."""

    tokens: SpecialTokens
    config: TrainingConfig
    parallel: Parallel
    prefill: Any  # graphdef of the policy, for the prefill
    decoder: Any  # graphdef with unrolled layers, for decode steps
    unroll: Callable[[Params], Params] | None  # params -> weights, unstacked; None if not scanned

    def weights(self, params: Params) -> Params:
        """Weights for decoding, the first argument of a sampler."""
        if self.unroll is not None:
            return self.parallel.reshard_for_decoding(self.unroll(params))
        return self.parallel.reshard_for_decoding(cast_matrices(params, self.config.dtype))

    def sampler(self, sampling: SamplingConfig, *, group_size: int) -> Callable[..., Rollout]:
        made = make_sampler(
            self.decoder,
            self.tokens,
            sampling,
            group_size=group_size,
            micro_batches=self.config.micro_batches,
            prefill_graphdef=self.prefill,
        )
        return self.parallel.compile_sampler(made)

    def greedy_sampler(
        self, max_new_tokens: int
    ) -> Callable[[Params], Callable[..., Rollout]] | None:
        """See `Programs.greedy_sampler`."""
        if not self.config.validation.used:
            return None
        greedy = SamplingConfig(temperature=0.0, max_new_tokens=max_new_tokens)
        sample = self.sampler(greedy, group_size=1)

        def with_params(params: Params) -> Callable[..., Rollout]:
            prefill = None if self.unroll is None else params
            return functools.partial(sample, self.weights(params), prefill)

        return with_params


def _decoding(checkpoint: Model, config: TrainingConfig, parallel: Parallel) -> _Decoding:
    policy = policy_graphdef(checkpoint, config)
    decoder, unroll = policy, None
    if checkpoint.scanned:
        decoder = decoding_graphdef(checkpoint, config)
        unroll = parallel.compile_relayout(
            lambda params: unrolled(cast_matrices(params, config.dtype))
        )
    return _Decoding(
        tokens=checkpoint.processor,
        config=config,
        parallel=parallel,
        prefill=policy,
        decoder=decoder,
        unroll=unroll,
    )


def compile_sft(
    checkpoint: Model,
    config: SFTConfig,
    parallel: Parallel,
    tx: optax.GradientTransformation,
) -> Programs:
    """The programs of a supervised fine-tuning run."""
    policy = policy_graphdef(checkpoint, config)

    def logp(params: Params, batch: SFTBatch) -> Float[Array, "B G T"]:
        given = merge(policy, params), batch.prompts, batch.completions
        return completion_logp(*given, chunk=config.logp_chunk)

    update = functools.partial(sft_update, tx=tx)
    decoding = _decoding(checkpoint, config, parallel)
    return Programs(
        greedy_sampler=decoding.greedy_sampler(config.max_completion_tokens),
        encode=parallel.compile_apply(functools.partial(_encode, policy)),
        update=_compile_update(update, logp, config, parallel),
    )


def _encode(graphdef: Any, params: Params, prompts: Prompts) -> Float[Array, "B M D"] | None:
    if prompts.patches.shape[1] == 0:
        return None
    return merge(graphdef, params).encode_images(prompts)


def _compile_update(
    update: Callable[..., tuple[TrainState, Metrics]],
    logp_fn: Callable[[Params, Any], Any],
    config: TrainingConfig,
    parallel: Parallel,
    *,
    moving: bool = False,
) -> Callable[..., tuple[TrainState, Metrics]]:
    """Compile an update: (state, (fixed parameters, batch)) -> (state, metrics).

    Args:
      update: `grpo_update` or `sft_update`, with its optimizer and loss bound.
      logp_fn: function of all parameters and a batch.
      config, parallel: settings and devices of the run.
      moving: whether `logp_fn` also takes the moving reference of the optimizer state.
    """

    def with_frozen(
        state: TrainState, given: tuple[Params, Any], *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        frozen, batch = given
        if moving:
            frozen = frozen | {
                REFERENCE: merge_params(rl.reference_params(state.opt_state), frozen)
            }
        return update(
            state,
            batch,
            logp_fn=logp_fn,
            frozen=frozen,
            micro_batches=config.micro_batches,
            axis_name=axis_name,
            skip_nonfinite=config.skip_nonfinite > 0,
        )

    return parallel.compile_update(with_frozen)
