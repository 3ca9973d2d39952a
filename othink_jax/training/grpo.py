"""GRPO: each step goes through data, rollout, rewards, advantages and update, in this order."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jaxtyping import Array, Float, Int

from othink_jax import rl
from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import GRPOConfig, ResumeConfig
from othink_jax.data.example import Example
from othink_jax.data.processing import EncodedPrompt
from othink_jax.errors import UserError
from othink_jax.rewards import Grade, GradingPool, Scores, why_all_failed
from othink_jax.sampling import prompt_keys
from othink_jax.training import processes, run_rewards
from othink_jax.training.loop import Trainer
from othink_jax.training.losses import (
    LossFn,
    kept_completions,
    make_advantages,
    make_loss,
    notes,
    of_whole_batch,
    over_vocabulary,
    resolved,
    token_weights,
)
from othink_jax.training.optimizer import check_kl, make_control, make_optimizer, resolved_kl
from othink_jax.training.partial import REFERENCE, Params, merge_params, reference_only_params
from othink_jax.training.programs import GRPOPrograms, compile_grpo
from othink_jax.training.records import Clock, reason, rollout_metrics, rollout_record
from othink_jax.training.redraw import Draw, replaced, with_columns
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.runs import resume_run, start_run
from othink_jax.training.samples import samples_of
from othink_jax.training.shapes import Lengths, quarters
from othink_jax.training.state import TrainState
from othink_jax.training.validation import Graded
from othink_jax.types import GRPOBatch, Prompts, Rollout


class GRPOTrainer(Trainer[GRPOConfig]):
    """One GRPO run; the entry points are `train` and `resume`.

    A subclass may have another loss or another optimizer, whose state holds the KL coefficient.
    `start_run` and `resume_run` of `training.runs` take it in place of this class.
    """

    compiled: GRPOPrograms

    def __init__(self, config: GRPOConfig, checkpoint: Checkpoint) -> None:
        make_control(config, 1)  # only to check the settings before the data are read
        self.rewards = run_rewards.load_rewards(config.reward)
        self.read_columns = bool(self.rewards)
        config = dataclasses.replace(config, loss=resolved(config.loss), kl=resolved_kl(config.kl))
        super().__init__(config, checkpoint, updates_per_step=config.inner_updates)
        self.reference: Params | None = None  # parameters of a fixed reference policy
        if config.kl.reference_stays:
            own = self.parallel.replicate(reference_only_params(checkpoint, config))
            self.reference = merge_params(own, self.frozen)
        self.compiled = compile_grpo(checkpoint, config, self.parallel, self.tx, self.loss())
        self.advantages_of_batch = make_advantages(
            config.loss, prompts=config.prompts_per_step, group_size=config.group_size
        )
        self.notes += notes(config.loss, updates=config.inner_updates)
        self.sources = run_rewards.sources(self.rewards)
        self.shown = tuple(run_rewards.metric(reward.name) for reward in self.rewards)
        self._tried = not self.rewards  # whether reward functions were checked on a first batch

    def lengths(self, longest: int) -> Lengths:
        """Quarters of the limit: training changes how long completions become."""
        return quarters(self.config.sampling.max_new_tokens)

    def optimizer(self, updates: int) -> optax.GradientTransformationExtraArgs:
        """The optimizer, with the controllers of the loss coefficients that the settings select."""
        return make_optimizer(self.config.optimizer, make_control(self.config, updates), updates)

    def loss(self) -> LossFn:
        """The loss that the settings select."""
        return make_loss(self.config.loss, longest=self.config.sampling.max_new_tokens)

    @property
    def fixed(self) -> Params:
        """The frozen parameters, with the reference if the update itself measures the KL to it."""
        if self.reference is None or not over_vocabulary(self.config.loss):
            return self.frozen
        return self.frozen | {REFERENCE: self.reference}

    def grading_pool(self) -> GradingPool:
        """A new pool with the grader and the reward functions of the settings."""
        return GradingPool(
            self.config.reward.grader,
            task=self.config.reward.task_of(self.config.data),
            timeout_s=self.config.reward.grading_timeout_s,
            workers=self.config.reward.grading_workers,
            rewards=self.rewards,
            answers=self.answers,
        )

    def grade_and_reward(
        self, examples: list[Example], encoded: list[EncodedPrompt], rollout: Rollout
    ) -> Graded:
        """Grades of completions, prompt by prompt, and their rewards."""
        _, grades, scores = self.grade(examples, encoded, rollout)
        return grades, self.total(grades, scores, rollout)

    def step(
        self, step: int, state: TrainState, directory: RunDirectory
    ) -> tuple[TrainState, dict[str, Any]]:
        """One rollout and the updates made from it."""
        clock = Clock()
        examples, encoded, prompts = self.next_prompts(state)
        clock.lap("data")
        rollout = self.roll_out(step, state, prompts)
        redrawn: dict[str, int] = {}
        if self.config.redraw:
            draw = self.graded(examples, encoded, rollout)
            draw, redrawn["redrawn"] = self.redraw(step, state, draw)
            prompts = self.prompts_of(draw.encoded, state)
            rollout = self._without_padding(prompts, draw.rollout)
        clock.lap("rollout")

        completions = self.parallel.shard(rollout.tokens)
        # Dispatched first, so that the devices compute them while the host grades.
        ref_logp, old_logp = self.log_probs(state, prompts, completions)
        if not self.config.redraw:
            draw = self.graded(examples, encoded, rollout)
        loss = self.config.loss
        batch = GRPOBatch(
            prompts=prompts,
            completions=completions,
            mask=self.parallel.shard(rollout.mask),
            advantages=self.parallel.shard(self.advantages(draw.rewards)),
            ref_logp=ref_logp,
            old_logp=old_logp,
            kept=self.parallel.shard(kept_completions(loss, rollout, draw.rewards)),
            weights=self.parallel.shard(
                token_weights(loss, rollout, self.share[0], processes.all_gather)
            ),
            sampler_logp=self.parallel.shard(rollout.logp if loss.correction else None),
        )
        clock.lap("reward")
        state, figures = self.update(state, batch)
        clock.lap("update")

        if step % self.config.sample_every == 0 or step in (1, self.steps):
            self.samples = samples_of(step, draw, rollout)
            directory.write_samples(self.samples)
        records = processes.all_gather(
            rollout_record(rollout, draw.grades, draw.rewards)
            | run_rewards.record(self.rewards, draw.scores)
        )
        directory.list_failed(itertools.chain(*(each.get("reasons", ()) for each in records)))
        measured = rollout_metrics(records) | run_rewards.figures(self.rewards, records)
        row = self.row(step, measured | redrawn | figures, records, clock)
        return state, row | self.steering(state, row)

    def steering(self, state: TrainState, row: Mapping[str, Any]) -> dict[str, Any]:
        """KL target and reason of the KL coefficient's change; empty if a schedule sets it."""
        target = self.config.kl.kl_target
        if target is None or "kl" not in row:
            return {}
        # Not `rl.kl_coef` of the unreplicated state, which would copy all of it.
        after = float(self.parallel.unreplicate(optax.tree.get(state.opt_state, "kl_coef")))
        bounds = tuple(self.config.kl.kl_args.get(name) for name in ("low", "high"))
        said = reason(row["kl"], target, row["beta"], after, bounds)
        return {"kl_target": target, "beta_reason": said}

    def graded(
        self, examples: list[Example], encoded: list[EncodedPrompt], rollout: Rollout
    ) -> Draw:
        """Completions of these prompts with their grades and rewards."""
        texts, grades, scores = self.grade(examples, encoded, rollout)
        return Draw(
            examples=examples,
            encoded=encoded,
            rollout=rollout,
            texts=texts,
            grades=grades,
            scores=scores,
            rewards=self.total(grades, scores, rollout),
        )

    def redraw(self, step: int, state: TrainState, draw: Draw) -> tuple[Draw, int]:
        """Replace the prompts whose groups have no signal, in at most `redraw` attempts.

        Returns the draw, on the host and with all its columns, and its number of new prompts over
        all processes.
        """
        longest, total = self.config.sampling.max_new_tokens, 0
        draw = dataclasses.replace(draw, rollout=with_columns(draw.rollout, longest))
        for attempt in range(1, self.config.redraw + 1):
            # All processes decide together, because all take part in a rollout.
            if not any(processes.all_gather(bool((~draw.has_signal).any()))):
                break
            examples, encoded, prompts = self.next_prompts(state)
            rollout = self.roll_out(step, state, prompts, attempt=attempt)
            other = self.graded(examples, encoded, with_columns(rollout, longest))
            draw, count = replaced(draw, other)
            total += count
        return draw, sum(processes.all_gather(total))

    def roll_out(
        self, step: int, state: TrainState, prompts: Prompts, *, attempt: int = 0
    ) -> Rollout:
        """Sample completions of a step's prompts and bring them to the host."""
        # A prompt's key depends on its row in the whole batch, not on the process that holds it.
        count = self.config.prompts_per_step
        keys = prompt_keys(self.config.seed, step, count, attempt=attempt)
        keys = np.array_split(keys, self.share[1])[self.share[0]]
        # Local variables, so that the decoding weights are freed before the update.
        policy = self.policy(state)
        weights = self.compiled.weights(policy)
        params = None if self.compiled.unroll is None else policy
        sampled = self.compiled.sample(weights, params, prompts, self.parallel.shard(keys))
        return self._without_padding(prompts, self.parallel.gather(sampled))

    def _without_padding(self, prompts: Prompts, rollout: Rollout) -> Rollout:
        """Drop the padding columns beyond a completion length that all processes share."""
        kept = self.common_length(prompts, int(rollout.mask.sum(axis=-1).max()))
        return with_columns(rollout, kept)

    def log_probs(
        self, state: TrainState, prompts: Prompts, completions: Int[Array, "B G T"]
    ) -> tuple[Float[Array, "B G T"] | None, Float[Array, "B G T"] | None]:
        """Log-probabilities under reference and sampling policy; None if no update needs them."""
        ref_logp = old_logp = None
        exact = over_vocabulary(self.config.loss)  # if so, the update runs the reference itself
        if self.config.kl.reference_every is not None and not exact:
            moving = merge_params(rl.reference_params(state.opt_state), self.frozen)
            ref_logp = self.compiled.logp(moving, prompts, completions)
        elif self.reference is not None and not exact:
            ref_logp = self.compiled.ref_logp(self.reference, prompts, completions)
        if self.config.inner_updates > 1:
            old_logp = self.compiled.logp(self.policy(state), prompts, completions)
        return ref_logp, old_logp

    def grade(
        self, examples: Sequence[Example], encoded: Sequence[EncodedPrompt], rollout: Rollout
    ) -> tuple[list[str], list[Grade], list[Scores]]:
        """Texts, grades and reward function scores of all completions, prompt by prompt.

        Raises:
          UserError: a function fails on all completions of the first batch, in all processes.
        """
        group, texts = rollout.tokens.shape[1], self.texts(rollout)
        golds = [example.answer for example in examples for _ in range(group)]
        asked = [
            example.for_rewards(self.checkpoint.processor.shown_sizes(prompt), self.answers)
            for example, prompt in zip(examples, encoded, strict=True)
            for _ in range(group)
        ]
        grades, scores = self.pool.grade_all(texts, golds), self.pool.score_all(texts, asked)
        if not self._tried:
            self._check_values(scores)
        return texts, grades, scores

    def _check_values(self, scores: Sequence[Scores]) -> None:
        self._tried = True
        told = processes.all_gather([why_all_failed(r, scores) for r in self.rewards])
        for reward, reasons in zip(self.rewards, zip(*told, strict=True), strict=True):
            if all(reasons):
                raise UserError(
                    f"--reward {reward.path} fails on every completion of the first batch, and"
                    f" nothing is trained (mend it, then --resume {self.config.out}"
                    f" --allow-changed-source): {reasons[0]}"
                )

    def total(
        self, grades: Sequence[Grade], scores: Sequence[Scores], rollout: Rollout
    ) -> Float[np.ndarray, "B G"]:
        """Rewards of all completions, including the overlong penalty if there is one."""
        made = run_rewards.total(self.config.reward, grades, scores)
        lengths = np.asarray(rollout.mask).sum(axis=-1)
        if (cache := self.config.overlong_cache) is not None:
            limit = self.config.sampling.max_new_tokens
            made = made + rl.soft_overlong_penalty(lengths.reshape(-1), limit=limit, cache=cache)
        return np.asarray(made).reshape(lengths.shape)

    def advantages(self, rewards: Float[np.ndarray, "b G"]) -> Float[np.ndarray, "b G"]:
        """Advantages of this process's prompts; some kinds standardise over the whole batch."""
        return of_whole_batch(
            self.advantages_of_batch, rewards, self.share[0], processes.all_gather
        )


def train(config: GRPOConfig) -> Path:
    """Start a run in `config.out` and take it to its end; see `runs.start_run`."""
    check_kl(config.kl)
    return start_run(GRPOTrainer, config)


def resume(changes: ResumeConfig | Path) -> Path:
    """Continue a run from its last intact checkpoint; see `runs.resume_run`."""
    return resume_run(GRPOTrainer, GRPOConfig, changes)
