"""The programs of a GRPO run, lowered for shapes instead of arrays."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from othink_jax.checkpoint.load import Model
from othink_jax.config import GRPOConfig
from othink_jax.errors import UserError
from othink_jax.model.stack import unrolled
from othink_jax.model.vlm import cast_matrices
from othink_jax.rl import reference_params
from othink_jax.training.layout import DiskLayout
from othink_jax.training.losses import over_vocabulary
from othink_jax.training.optimizer import check_kl, make_control, make_optimizer
from othink_jax.training.parallel import Parallel, with_shardings
from othink_jax.training.partial import (
    REFERENCE,
    Params,
    merge_params,
    reference_only_params,
    split_params,
)
from othink_jax.training.programs import compile_grpo
from othink_jax.training.state import TrainState
from othink_jax.types import GRPOBatch, Prompts

_STEPS = 100  # length of the schedules, which take no memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunProgram:
    """A program of a run, not yet compiled."""

    name: str
    times: int  # runs per step; 0 for a program that runs between steps
    cut: bool  # whether it takes prompts in micro-batches
    lower: Callable[[], jax.stages.Lowered]
    held: int  # bytes of its arguments that stay between steps, on each device


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lowering:
    """A run, lowered from shapes alone."""

    staying: dict[str, int]  # bytes that stay on each device between steps, by part
    programs: tuple[RunProgram, ...]  # in the order of a step


def lowering(config: GRPOConfig, model: Model, parallel: Parallel) -> Lowering:
    """Memory that stays on the devices of a run, and the run's programs.

    This is the worst case: every prompt is as long as `max_prompt_tokens` allows, with one image of
    `max_pixels`; every completion has `max_new_tokens`.

    Raises:
      UserError: a bound that the worst case needs is missing; or a setting of the KL weight cannot
        be used.
    """
    check_kl(config.kl)
    tx = make_optimizer(config.optimizer, make_control(config, _STEPS), _STEPS)
    programs: Any = compile_grpo(model, config, parallel, tx)
    begun = jax.eval_shape(functools.partial(_begin, model, config, tx), model.params)
    state, frozen, reference = map(parallel.state_shapes, begun)
    batch = parallel.batch_shapes(_batch(config, model))
    keys = parallel.batch_shapes(_shape((config.prompts_per_step, 2), np.uint32))
    policy, under = merge_params(state.params, frozen), merge_params(reference, frozen)
    cast = parallel.state_shapes(
        jax.eval_shape(
            lambda params: unrolled(cast_matrices(params, config.dtype)),
            merge_params(begun[0].params, begun[1]),
        )
    )
    by = policy if model.scanned else None  # parameters of the prefill, if not `weights`
    stay = 0 if model.scanned else _common_bytes(cast, policy)
    weights = with_shardings(cast, parallel.decoding_shardings(cast))
    given = batch.prompts, batch.completions
    made: list[RunProgram] = []

    def add(
        name: str,
        lower: Callable[[], jax.stages.Lowered],
        held: int,
        *,
        times: int = 1,
        cut: bool = False,
    ) -> None:
        made.append(RunProgram(name=name, times=times, cut=cut, lower=lower, held=held))

    if config.train != "all":
        whole = dataclasses.replace(batch.prompts, features=None)
        add("images", lambda: programs.encode.lower(policy, whole), device_bytes(policy))
    if programs.unroll is not None:
        add("unrolling", lambda: programs.unroll.lower(policy), device_bytes(policy))
    if (moving := parallel.lower_reshard_for_decoding(cast)) is not None:
        add("gathering", lambda: moving, stay)
    add(
        "rollout",
        lambda: programs.sample.lower(weights, by, batch.prompts, keys),
        device_bytes(policy) if model.scanned else _common_bytes(weights, policy),
        cut=True,
    )
    fixed = frozen
    if over_vocabulary(config.loss):  # then the update runs the reference itself
        if config.kl.reference_stays:
            fixed = frozen | {REFERENCE: under}
    elif config.kl.reference_every is not None:
        under = merge_params(reference_params(state.opt_state), frozen)
        held = device_bytes(under)
        add("reference", lambda: programs.logp.lower(under, *given), held, cut=True)
    elif not config.kl.is_zero:
        held = device_bytes(under)
        add("reference", lambda: programs.ref_logp.lower(under, *given), held, cut=True)
    if config.inner_updates > 1:
        add("policy", lambda: programs.logp.lower(policy, *given), device_bytes(policy), cut=True)
    add(
        "update",
        lambda: programs.update.lower(state, (fixed, batch)),
        device_bytes((state, fixed)),
        times=config.inner_updates,
        cut=True,
    )
    if (unstack := DiskLayout(parallel, begun[0]).unstack) is not None:
        stored = parallel.checkpoint_shapes(begun[0])
        add("checkpoint", lambda: unstack.lower(stored), device_bytes(stored), times=0)
    staying = {
        "trained parameters": device_bytes(state.params),
        "moments": device_bytes(state.opt_state),
        "frozen parameters": device_bytes(frozen),
        "reference": device_bytes(reference),
    }
    return Lowering(staying=staying, programs=tuple(made))


def _begin(
    model: Model, config: GRPOConfig, tx: Any, params: Params
) -> tuple[TrainState, Params, Params]:
    """Train state, frozen parameters, and parameters that only the reference has."""
    whole = dataclasses.replace(model, params=params)
    parts = split_params(whole, config)
    reference = reference_only_params(whole, config) if config.kl.reference_stays else {}
    return TrainState.create(parts.trained, tx), parts.frozen, reference


def _batch(config: GRPOConfig, model: Model) -> GRPOBatch:
    """The shapes of the largest batch that the settings allow."""
    tokens, pixels = config.data.max_prompt_tokens, config.data.max_pixels
    if tokens is None or pixels is None:
        raise UserError("a plan needs --max-prompt-tokens and --max-pixels: there is no worst case")
    vision = model.config.vision
    window = vision.spatial_merge_size**2
    patches = math.ceil(pixels / vision.patch_size**2 / window) * window
    B, G, T = config.prompts_per_step, config.group_size, config.sampling.max_new_tokens

    def array(*shape: int, dtype: Any = np.int32) -> Any:
        return _shape((B, *shape), dtype)

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
            else array(patches // window, vision.feature_dim, dtype=config.dtype),
        ),
        completions=array(G, T),
        mask=array(G, T, dtype=bool),
        advantages=array(G, dtype=np.float32),
        ref_logp=None
        if config.kl.is_zero or over_vocabulary(config.loss)
        else array(G, T, dtype=np.float32),
        old_logp=None if config.inner_updates == 1 else array(G, T, dtype=np.float32),
    )


def _shape(shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jax.numpy.dtype(dtype))


def device_bytes(tree: PyTree) -> int:
    """Bytes of the shards that one device holds."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _common_bytes(tree: PyTree, before: PyTree) -> int:
    """Bytes per device of the arrays of `tree` that are neither cast nor gathered from `before`."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(before), strict=True)
    return device_bytes([x for x, y in pairs if (x.dtype, x.sharding) == (y.dtype, y.sharding)])
