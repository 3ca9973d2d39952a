"""Our side of `trl.py`: the trainer of `othink-jax grpo`, one step at a time."""

import itertools
import time
from collections.abc import Sequence
from typing import Any, cast

import jax
import numpy as np
import optax
from jaxtyping import Int

import othink_jax
from experiments.bench import trl_work
from experiments.bench.trl_work import Update, Work
from othink_jax.checkpoint.tensors import in_memory
from othink_jax.config import (
    DataConfig,
    GRPOConfig,
    KLConfig,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
)
from othink_jax.data.loader import in_order
from othink_jax.data.sources import open_source
from othink_jax.model.config import VLMConfig
from othink_jax.rewards import Grade, Scores
from othink_jax.training.grpo import GRPOTrainer
from othink_jax.training.run_directory import RunDirectory
from othink_jax.types import GRPOBatch, Rollout

_STEPS = 10**6  # of the run, so that no measured step is its last one


def settings(work: Work) -> GRPOConfig:
    """Settings of the run; all others are the defaults of `othink-jax grpo`."""
    shapes = work.shapes
    return GRPOConfig(
        model=str(work.model),
        out=work.model.parent / "run",
        data=DataConfig(
            dataset=str(work.table), template="{question}", min_pixels=None, max_pixels=None
        ),
        steps=_STEPS,
        sample_every=_STEPS,
        prompts_per_step=shapes.prompts,
        group_size=shapes.group,
        dtype=shapes.dtype,
        micro_batches=shapes.micro_batches,
        remat=shapes.remat,
        # Minimum and maximum are equal: no completion ends early.
        sampling=SamplingConfig(
            max_new_tokens=shapes.length, min_new_tokens=shapes.length, top_k=trl_work.TOP_K
        ),
        loss=LossConfig(logp_chunk=shapes.chunk),
        kl=KLConfig(kl_schedule="constant", kl_value=trl_work.KL_WEIGHT),
        optimizer=OptimizerConfig(
            learning_rate=trl_work.LEARNING_RATE,
            lr_schedule="constant",
            max_grad_norm=trl_work.MAX_GRAD_NORM,
        ),
    )


class _Rewards:
    """Replaces the graders of a run: a completion's accuracy is the reward of both sides."""

    def grade_all(self, completions: Sequence[str], golds: Sequence[str]) -> list[Grade]:
        return [Grade(trl_work.reward(text), 0.0) for text in completions]

    def score_all(self, completions: Sequence[str], examples: Sequence[Any]) -> list[Scores]:
        return [Scores({}, {}) for _ in completions]


class Ours:
    """A run that writes no files."""

    def __init__(self, work: Work) -> None:
        self.config = settings(work)
        checkpoint = othink_jax.load(
            work.model, compute=self.config.compute(jax.default_backend()), on_host=True
        )
        self.trainer = GRPOTrainer(self.config, checkpoint)
        self.trainer.reference = jax.tree.map(
            lambda leaf: leaf * trl_work.REFERENCE_SCALE, self.trainer.reference
        )
        self.trainer.started = time.perf_counter()
        self.directory = RunDirectory(self.config.out, writes=False)
        self.trainer.pool = cast(Any, _Rewards())
        self.state = self.begin()
        self.metrics: list[dict[str, Any]] = []  # one row per step

    def begin(self) -> Any:
        """The state before the first update."""
        return self.trainer.parallel.create_state(self.trainer.checkpoint.params, self.trainer.tx)

    def steps(self, count: int) -> None:
        """Make `count` steps of rollout, rewards, reference and update."""
        for _ in range(count):
            number = len(self.metrics) + 2  # a run stores samples of its first step
            self.state, row = self.trainer.step(number, self.state, self.directory)
            self.metrics.append(row)

    def update_with(self, completions: Int[np.ndarray, "BG T"]) -> Update:
        """The first update of a run, from given completions of all prompts in order."""
        trainer, programs, state = self.trainer, self.trainer.compiled, self.begin()
        groups = completions.reshape(-1, self.config.group_size, completions.shape[1])
        prompts, batch = self._batch(groups)
        logp = programs.logp(state.params, batch.prompts, batch.completions)
        state, metrics = programs.update(state, (trainer.frozen, batch))
        return Update(
            prompts=prompts,
            completions=completions,
            advantages=np.asarray(batch.advantages).ravel(),
            logp=np.asarray(logp).reshape(completions.shape),
            ref_logp=np.asarray(batch.ref_logp).reshape(completions.shape),
            loss=float(metrics["loss"]),
            adam_mean=_by_hub_name(
                trainer.checkpoint.config, optax.tree.get(state.opt_state, "mu")
            ),
        )

    def _batch(
        self, completions: Int[np.ndarray, "B G T"]
    ) -> tuple[Int[np.ndarray, "B P"], GRPOBatch]:
        """The prompts without padding, and the batch that a step makes of these completions."""
        trainer, config, shard = self.trainer, self.config, self.trainer.parallel.shard
        processor = trainer.checkpoint.processor
        prepared = in_order(
            open_source(config.data),
            processor,
            batch_size=config.prompts_per_step,
            template=config.data.template,
        )
        _, examples, encoded = zip(
            *itertools.islice(prepared, config.prompts_per_step), strict=True
        )
        rollout = _whole(completions.astype(np.int32))
        rewards = trainer.graded(list(examples), list(encoded), rollout).rewards
        prompts, sharded = shard(processor.batch(encoded)), shard(rollout.tokens)
        return np.stack([prompt.tokens for prompt in encoded]), GRPOBatch(
            prompts=prompts,
            completions=sharded,
            mask=shard(rollout.mask),
            advantages=shard(trainer.advantages(rewards)),
            ref_logp=trainer.compiled.ref_logp(trainer.reference, prompts, sharded),
        )


def _whole(tokens: Int[np.ndarray, "B G T"]) -> Rollout:
    """Completions that end at the length limit, as the part of a rollout that graders read."""
    zeros = np.zeros(tokens.shape, np.float32)
    return Rollout(
        tokens=tokens,
        mask=np.ones(tokens.shape, bool),
        logp=zeros,
        entropy=zeros,
        finished=np.zeros(tokens.shape[:2], bool),
    )


def _by_hub_name(config: VLMConfig, params: Any) -> dict[str, np.ndarray]:
    """Arrays in the tree of our parameters, by the hub's names and in the hub's layout."""
    tensors = in_memory(config, params)
    return {entry.name: entry.to_hub(tensors.read(entry, ())) for entry in tensors.dtypes}
