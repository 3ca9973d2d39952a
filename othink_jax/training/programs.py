"""The three device programs of a GRPO step."""

import dataclasses
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
from othink_jax.training.state import TrainState
from othink_jax.training.update import Metrics, cut_rows, grpo_update, join_rows
from othink_jax.types import GRPOBatch, Prompts, Rollout


@dataclasses.dataclass(frozen=True, kw_only=True)
class Programs:
    """Compiled for the devices of a run; each takes what `Parallel` has put there."""

    sample: Callable[..., Rollout]  # params, prompts, key_data
    logp: Callable[..., Float[Array, "B G T"]]  # params, prompts, completions
    update: Callable[..., tuple[TrainState, Metrics]]  # state, batch


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
    graphdef, processor = checkpoint.graphdef, checkpoint.processor
    pieces = config.micro_batches

    def logp_of_piece(
        params: Any, prompts: Prompts, completions: Int[Array, "B G T"]
    ) -> Float[Array, "B G T"]:
        model = merge(graphdef, params)
        return completion_logp(model, prompts, completions, chunk=config.loss.logp_chunk)

    def logp(
        params: Any, prompts: Prompts, completions: Int[Array, "B G T"]
    ) -> Float[Array, "B G T"]:
        rows = cut_rows((prompts, completions), pieces)
        return join_rows(jax.lax.map(lambda piece: logp_of_piece(params, *piece), rows))

    def update(
        state: TrainState, batch: GRPOBatch, *, axis_name: str | None = None
    ) -> tuple[TrainState, Metrics]:
        return grpo_update(
            state,
            batch,
            logp_fn=lambda params, batch: logp_of_piece(params, batch.prompts, batch.completions),
            tx=tx,
            config=config.loss,
            micro_batches=pieces,
            axis_name=axis_name,
        )

    sampler = make_sampler(graphdef, processor, config.sampling, group_size=config.group_size)
    return Programs(
        sample=parallel.apply(sampler), logp=parallel.apply(logp), update=parallel.update(update)
    )
