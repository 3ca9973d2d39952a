"""The device programs of a GRPO step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import optax
from jaxtyping import Array, Float, Int

from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import GRPOConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.qwen2_vl import merge
from othink_jax.sampling import make_sampler
from othink_jax.training.parallel import Parallel
from othink_jax.training.partial import Params, join, policy_graphdef
from othink_jax.training.state import TrainState
from othink_jax.training.update import Metrics, cut_rows, grpo_update, join_rows
from othink_jax.types import GRPOBatch, Prompts, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """Compiled for the devices of a run; each takes what `Parallel` has put there.

    Parameters are those of a whole model, but for the update: what it trains is in the state.
    """

    encode: Callable[..., Float[Array, "B M D"] | None]  # the reference's params, prompts
    sample: Callable[..., Rollout]  # params, prompts, key_data
    logp: Callable[..., Float[Array, "B G T"]]  # params, prompts, completions
    ref_logp: Callable[..., Float[Array, "B G T"]]  # the reference's params, prompts, completions
    update: Callable[..., tuple[TrainState, Metrics]]  # state, (frozen parameters, batch)


def compile_programs(
    checkpoint: Checkpoint,
    config: GRPOConfig,
    parallel: Parallel,
    tx: optax.GradientTransformationExtraArgs,
) -> Programs:
    """The programs of a run. Log-probabilities and updates take prompts in `micro_batches`.

    Sampling takes all of them together: it keeps nothing for a backward pass, and its steps, bound
    by reading the weights, cost the same for few prompts as for many.
    """
    # Not the checkpoint itself: what the programs close over would keep its parameters alive.
    reference, processor = checkpoint.graphdef, checkpoint.processor
    policy = policy_graphdef(checkpoint, config)
    pieces = config.micro_batches

    def encode(params: Params, prompts: Prompts) -> Float[Array, "B M D"] | None:
        if prompts.patches.shape[1] == 0:
            return None
        return merge(reference, params).encode_images(prompts)

    def logp_of_piece(
        graphdef: Any, params: Params, prompts: Prompts, completions: Int[Array, "B G T"]
    ) -> Float[Array, "B G T"]:
        model = merge(graphdef, params)
        return completion_logp(model, prompts, completions, chunk=config.loss.logp_chunk)

    def logp(
        graphdef: Any, params: Params, prompts: Prompts, completions: Int[Array, "B G T"]
    ) -> Float[Array, "B G T"]:
        rows = cut_rows((prompts, completions), pieces)
        return join_rows(jax.lax.map(lambda piece: logp_of_piece(graphdef, params, *piece), rows))

    def update(
        state: TrainState, given: tuple[Params, GRPOBatch], *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        frozen, batch = given

        def logp_fn(trained: Params, batch: GRPOBatch) -> Float[Array, "B G T"]:
            params = join(trained, frozen)
            return logp_of_piece(policy, params, batch.prompts, batch.completions)

        return grpo_update(
            state,
            batch,
            logp_fn=logp_fn,
            tx=tx,
            config=config.loss,
            micro_batches=pieces,
            axis_name=axis_name,
        )

    sampler = make_sampler(policy, processor, config.sampling, group_size=config.group_size)
    policy_logp = parallel.apply(functools.partial(logp, policy))
    same = policy is reference  # then what was compiled for one may serve the other
    return Programs(
        encode=parallel.apply(encode),
        sample=parallel.apply(sampler),
        logp=policy_logp,
        ref_logp=policy_logp if same else parallel.apply(functools.partial(logp, reference)),
        update=parallel.update(update),
    )
