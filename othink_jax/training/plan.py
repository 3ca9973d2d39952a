"""How much memory a GRPO run takes, from shapes alone: no weights, no accelerator.

What stays on a device between steps is counted; what a program needs while it runs is taken from
the compiler, which is asked on simulated CPU devices, with layers scanned. There, bfloat16 is
computed in float32, so a bfloat16 run needs less than is said.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.config import GRPOConfig
from othink_jax.errors import UserError
from othink_jax.model.qwen2_vl import computing_weights
from othink_jax.model.stack import unrolled
from othink_jax.training.optimizer import kl_schedule, make_optimizer
from othink_jax.training.parallel import OneDevice, Parallel, Sharded, make_parallel, placed
from othink_jax.training.partial import Params, divide, join, own_of_reference
from othink_jax.training.programs import compile_grpo
from othink_jax.training.state import TrainState
from othink_jax.types import GRPOBatch, Prompts

_STEPS = 100  # of the schedules, which take no memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes on one device."""

    micro_batches: int
    staying: dict[str, int]  # between steps, by part
    running: dict[str, int]  # while a program runs, beside what stays, by program

    @property
    def peak(self) -> int:
        return sum(self.staying.values()) + max(self.running.values())


def plans(config: GRPOConfig) -> Iterator[Plan]:
    """The memory of a run, cut into ever more micro-batches, from `config.micro_batches` on.

    Every prompt is taken to be as long as `max_prompt_tokens` allows, with one image of
    `max_pixels`.

    Raises:
      UserError: as a run would; or a bound is missing, without which there is no worst case.
    """
    checkpoint = load(
        config.model,
        compute=config.compute("cpu"),
        abstract=True,
    )
    parallel, prompts = _one_of_its_kind(config)
    parallel.check_model(checkpoint.config)
    per_device = prompts // parallel.batch_shards
    for pieces in range(config.micro_batches, per_device + 1):
        if per_device % pieces == 0:
            cut = dataclasses.replace(config, micro_batches=pieces, prompts_per_step=prompts)
            yield _plan(cut, checkpoint, parallel)


def _one_of_its_kind(config: GRPOConfig) -> tuple[Parallel, int]:
    """How the run is spread, and its prompts; of replicas, one with its share of them."""
    parallel = make_parallel(config.parallel)
    parallel.check_batch(config.prompts_per_step, config.micro_batches)
    if isinstance(parallel, (OneDevice, Sharded)):
        return parallel, config.prompts_per_step
    return OneDevice(parallel.devices[0]), config.prompts_per_step // len(parallel.devices)


def _plan(config: GRPOConfig, checkpoint: Checkpoint, parallel: Parallel) -> Plan:
    tx = make_optimizer(config.optimizer, kl_schedule(config.kl, _STEPS), _STEPS)
    programs: Any = compile_grpo(checkpoint, config, parallel, tx)

    def begin(params: Params) -> tuple[TrainState, Params, Params]:
        whole = dataclasses.replace(checkpoint, params=params)
        parts = divide(whole, config)
        state = TrainState.create(parts.trained, tx)
        return state, parts.frozen, own_of_reference(whole, config)

    state, frozen, reference = map(parallel.stored, jax.eval_shape(begin, checkpoint.params))
    batch = _batch(config, checkpoint, parallel)
    keys = _shape((config.prompts_per_step, 2), np.uint32, parallel)
    policy = join(state.params, frozen)
    weights = parallel.stored(
        jax.eval_shape(lambda params: unrolled(computing_weights(params, config.dtype)), policy)
    )
    weights = placed(weights, parallel.decoding(weights))
    lowered = {
        "rollout": programs.sample.lower(weights, batch.prompts, keys),
        "reference": programs.ref_logp.lower(
            join(reference, frozen), batch.prompts, batch.completions
        ),
        "update": programs.update.lower(state, (frozen, batch)),
    }
    running = {name: _running_bytes(program) for name, program in lowered.items()}
    running["rollout"] += _nbytes(weights) if checkpoint.scanned else _new_bytes(weights, policy)
    return Plan(
        micro_batches=config.micro_batches,
        staying={
            "trained parameters": _nbytes(state.params),
            "moments": _nbytes(state.opt_state),
            "frozen parameters": _nbytes(frozen),
            "reference": _nbytes(reference),
        },
        running=running,
    )


def _batch(config: GRPOConfig, checkpoint: Checkpoint, parallel: Parallel) -> GRPOBatch:
    """The shapes of the largest batch that the settings allow."""
    tokens, pixels = config.data.max_prompt_tokens, config.data.max_pixels
    if tokens is None or pixels is None:
        raise UserError("a plan needs --max-prompt-tokens and --max-pixels: there is no worst case")
    vision = checkpoint.config.vision
    window = vision.spatial_merge_size**2
    patches = math.ceil(pixels / vision.patch_size**2 / window) * window
    B, G, T = config.prompts_per_step, config.group_size, config.sampling.max_new_tokens

    def array(*shape: int, dtype: Any = np.int32) -> Any:
        return _shape((B, *shape), dtype, parallel)

    return GRPOBatch(
        prompts=Prompts(
            tokens=array(tokens),
            mask=array(tokens, dtype=bool),
            positions=array(3, tokens),
            image_index=array(tokens),
            patches=array(1, patches, vision.patch_dim, dtype=np.float32),
            patch_positions=array(1, patches, 2),
            patch_mask=array(1, patches, dtype=bool),
            features=None
            if config.train == "all"
            else array(patches // window, vision.hidden_size, dtype=config.dtype),
        ),
        completions=array(G, T),
        mask=array(G, T, dtype=bool),
        advantages=array(G, dtype=np.float32),
        ref_logp=array(G, T, dtype=np.float32),
        old_logp=None if config.inner_updates == 1 else array(G, T, dtype=np.float32),
    )


def _shape(shape: tuple[int, ...], dtype: Any, parallel: Parallel) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=parallel.batch_sharding)


def _nbytes(tree: PyTree) -> int:
    """Of the pieces that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _new_bytes(tree: PyTree, before: PyTree) -> int:
    """Of the arrays that are cast or put together, of each device."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(before), strict=True)
    return _nbytes([x for x, y in pairs if (x.dtype, x.sharding) != (y.dtype, y.sharding)])


def _running_bytes(program: Any) -> int:
    """What a program needs beside its arguments: results, and what lies between."""
    memory = program.compile().memory_analysis()
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + max(results, 0)


def table(plan: Plan) -> str:
    """The plan for a reader."""
    rows = [
        *((name, size) for name, size in plan.staying.items()),
        *((f"while it runs: {name}", size) for name, size in plan.running.items()),
        ("most at one time", plan.peak),
    ]
    lines = [f"--micro-batches {plan.micro_batches}, GB on each device"]
    return "\n".join([*lines, *(f"  {name:<26}{size / 1e9:>8.2f}" for name, size in rows)])
