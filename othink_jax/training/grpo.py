"""The GRPO loop: data, rollout, rewards, advantages, update; one direction, no back and forth."""

import dataclasses
import datetime
import importlib.util
import math
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from othink_jax import rl
from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.checkpoint.orbax_model import save_model
from othink_jax.checkpoint.store import TrainingStore
from othink_jax.checkpoint.tensors import in_memory
from othink_jax.config import GRPOConfig, from_dict, to_dict
from othink_jax.data.example import Example
from othink_jax.data.loader import PromptLoader
from othink_jax.data.processing import PadTo
from othink_jax.data.sources import ENDLESS, open_source
from othink_jax.errors import UserError
from othink_jax.model.qwen2_vl import computing_weights
from othink_jax.rewards import Grade, GradingPool
from othink_jax.sampling import prompt_keys
from othink_jax.training import processes
from othink_jax.training.console import Monitor
from othink_jax.training.interrupt import StopRequest
from othink_jax.training.optimizer import kl_schedule, learning_rate_schedule, make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.partial import divide, join, loaded_dtype
from othink_jax.training.programs import compile_programs
from othink_jax.training.records import rollout_metrics, rollout_record, sample_rows
from othink_jax.training.run_directory import RunDirectory, environment
from othink_jax.training.state import TrainState
from othink_jax.types import GRPOBatch, Prompts, Rollout

_LENGTH_BUCKET = 64  # completions are cut to a multiple of this: few shapes, few compilations


def total_steps(config: GRPOConfig, examples: int) -> int:
    """Steps of a run over a source of `examples`; UserError if there is no saying."""
    if config.steps is not None:
        return config.steps
    if examples == ENDLESS:
        raise UserError("a synthetic task has no end: give --steps, or --limit for few examples")
    return math.ceil(config.epochs * examples / config.prompts_per_step)


def _cut_padding(rollout: Rollout) -> Rollout:
    """Drop the columns that no completion reaches, up to a multiple of `_LENGTH_BUCKET`."""
    longest = max(processes.exchange(int(rollout.mask.sum(axis=-1).max())))
    kept = min(rollout.mask.shape[-1], math.ceil(longest / _LENGTH_BUCKET) * _LENGTH_BUCKET)
    return dataclasses.replace(
        rollout,
        tokens=rollout.tokens[..., :kept],
        mask=rollout.mask[..., :kept],
        logp=rollout.logp[..., :kept],
        entropy=rollout.entropy[..., :kept],
    )


def _common(pad: PadTo) -> PadTo:
    """The least shapes that the prompts of all processes fit into."""
    given = processes.exchange(dataclasses.asdict(pad))
    return PadTo(**{name: max(shapes[name] for shapes in given) for name in given[0]})


class GRPOTrainer:
    """One run, from its directory; `train` and `resume` are the ways in."""

    def __init__(self, config: GRPOConfig, checkpoint: Checkpoint) -> None:
        """Check and build everything that can be wrong before a byte is written."""
        if config.wandb and importlib.util.find_spec("wandb") is None:
            raise UserError("--wandb needs the package wandb: pip install 'othink_jax[wandb]'")
        self.config = config
        self.parallel = make_parallel(config.parallel)
        self.parallel.check_batch(config.prompts_per_step, config.micro_batches)
        self.share = (jax.process_index(), jax.process_count())
        source = open_source(config.data)
        self.steps = total_steps(config, len(source))
        updates = self.steps * config.inner_updates
        self.tx = make_optimizer(config.optimizer, kl_schedule(config.kl, updates), updates)
        self.learning_rate = learning_rate_schedule(config.optimizer, updates)
        self.compiled = compile_programs(checkpoint, config, self.parallel, self.tx)
        parts = divide(checkpoint, config)
        self.frozen = self.parallel.replicate(parts.frozen)
        self.reference = join(self.parallel.replicate(parts.reference), self.frozen)
        # From here on, the parameters that are trained.
        self.checkpoint = dataclasses.replace(checkpoint, params=parts.trained)
        self.loader = PromptLoader(
            source,
            checkpoint.processor,
            batch_size=config.prompts_per_step // jax.process_count(),
            seed=config.seed,
            template=config.data.template,
            max_prompt_tokens=config.data.max_prompt_tokens,
            share=self.share,
        )
        begin = self.loader.get_state()
        next(self.loader)  # there is at least one batch that can be used
        self.loader.set_state(begin)

    def run(self, directory: RunDirectory, *, resumed: bool) -> None:
        """Train from the last checkpoint, or from the reference, to the last step."""
        config = self.config
        store = TrainingStore(directory.checkpoints, keep=config.keep_checkpoints)
        done = 0
        if resumed and store.latest_step() is not None:
            like = jax.eval_shape(lambda: TrainState.create(self.checkpoint.params, self.tx))
            state, progress = store.restore(self.parallel.stored(like))
            done = int(state.step) // config.inner_updates
            state = self.parallel.adopt(state)
            self.loader.set_state(progress["loaders"][jax.process_index()])
        else:
            state = self.parallel.begin(self.checkpoint.params, self.tx)
        directory.keep_metrics_until(done)
        # The copies on the devices are all that is needed from here on.
        self.checkpoint = dataclasses.replace(self.checkpoint, params={})
        self.started = time.perf_counter()
        with (
            StopRequest() as stop,
            Monitor(
                directory.path,
                total=self.steps,
                done=done,
                wandb=config.wandb,
                shown=processes.first(),
            ) as monitor,
            GradingPool(
                config.reward.grader,
                task=config.data.task,
                timeout_s=config.reward.grading_timeout_s,
                workers=config.reward.grading_workers,
            ) as pool,
        ):
            if resumed and done == 0:
                monitor.say(f"{directory.path} has no checkpoint yet: it begins at step 1")
            for step in range(done + 1, self.steps + 1):
                state, row = self.step(step, state, pool, directory)
                if not row.pop("finite"):
                    raise UserError(
                        f"step {step}: the loss, its gradient or the change of the parameters is"
                        f" not finite; the last good checkpoint of {directory.path} is that of step"
                        f" {store.latest_step() or 0}. Lower --learning-rate"
                    )
                directory.append_metrics(row)
                monitor.show(row)
                stopping = any(processes.exchange(stop.made))
                if step % config.checkpoint_every == 0 or step == self.steps or stopping:
                    progress = {"loaders": processes.exchange(self.loader.get_state())}
                    store.save(step, self.parallel.unreplicate(state), progress)
                if stopping and step < self.steps:
                    store.close()
                    monitor.stop()
                    monitor.say(
                        f"Stopped after step {step} of {self.steps}; everything is saved. Continue"
                        " with:"
                    )
                    monitor.say(f"othink-jax grpo --resume {shlex.quote(str(directory.path))}")
                    raise KeyboardInterrupt
            store.close()

    def step(
        self, step: int, state: Any, pool: GradingPool, directory: RunDirectory
    ) -> tuple[Any, dict[str, Any]]:
        """One rollout and the updates made from it; returns the state and the row of metrics."""
        config, parallel = self.config, self.parallel
        times = [time.perf_counter()]

        def lap() -> float:
            times.append(time.perf_counter())
            return times[-1] - times[-2]

        examples, encoded = next(self.loader)
        processor = self.checkpoint.processor
        prompts = processor.batch(encoded, pad=_common(processor.bucket(encoded)))
        seconds = {"seconds_data": lap()}

        # A prompt's key does not depend on the process that has drawn it from the stream.
        first, count = self.share
        keys = prompt_keys(config.seed, step, config.prompts_per_step)[first::count]
        device_prompts = self.encoded(parallel.shard(prompts))
        policy = join(state.params, self.frozen)
        weights = computing_weights(policy, config.dtype)
        weights = jax.device_put(weights, parallel.decoding(weights))
        rollout = parallel.gather(
            self.compiled.sample(weights, device_prompts, parallel.shard(keys))
        )
        del weights  # of which the update has no need
        rollout = _cut_padding(rollout)
        seconds["seconds_rollout"] = lap()

        # The reference's log-probabilities are computed while the host grades.
        completions = parallel.shard(rollout.tokens)
        ref_logp = self.compiled.ref_logp(self.reference, device_prompts, completions)
        old_logp = None
        if config.inner_updates > 1:
            old_logp = self.compiled.logp(policy, device_prompts, completions)
        texts, grades, rewards = self.grade(examples, rollout, pool)
        advantages = rl.group_advantages(
            rewards, ddof=config.loss.advantage_ddof, eps=config.loss.advantage_eps
        )
        seconds["seconds_reward"] = lap()

        batch = GRPOBatch(
            prompts=device_prompts,
            completions=completions,
            mask=parallel.shard(rollout.mask),
            advantages=parallel.shard(np.asarray(advantages)),
            ref_logp=ref_logp,
            old_logp=old_logp,
        )
        # As all figures of an update, of the last one of this step.
        learning_rate = float(self.learning_rate(step * config.inner_updates - 1))
        for _ in range(config.inner_updates):
            state, measured = self.compiled.update(state, (self.frozen, batch))
        figures = {name: float(value) for name, value in jax.device_get(measured).items()}
        seconds["seconds_update"] = lap()

        if step % config.sample_every == 0 or step in (1, self.steps):
            rows = sample_rows(step, examples, texts, grades, rewards, rollout)
            pictures = [example.images for example in examples[: len(rows)]]
            directory.write_samples(step, rows, pictures)
        records = processes.exchange(
            rollout_record(rollout, grades, rewards)
            | {"skipped": sum(self.loader.skipped.values())}
        )
        seconds["seconds_step"] = time.perf_counter() - times[0]
        tokens = sum(record["tokens"] for record in records)
        return state, {
            "step": step,
            **rollout_metrics(records),
            **figures,
            "learning_rate": learning_rate,
            "skipped": sum(record["skipped"] for record in records),
            "tokens_per_second": tokens / seconds["seconds_step"],
            **{name: round(value, 4) for name, value in seconds.items()},
            "elapsed": round(time.perf_counter() - self.started, 2),
        }

    def encoded(self, prompts: Prompts) -> Prompts:
        """With the features of their images, where the vision tower is not trained."""
        if self.config.train == "all":
            return prompts
        features = self.compiled.encode(self.reference, prompts)
        return dataclasses.replace(prompts, features=features)

    def grade(
        self, examples: Sequence[Example], rollout: Rollout, pool: GradingPool
    ) -> tuple[list[str], list[Grade], Float[np.ndarray, "B G"]]:
        """Texts and grades of all completions, prompt after prompt, and their rewards (Eq. 1)."""
        batch, group, length = rollout.tokens.shape
        tokens, mask = rollout.tokens.reshape(-1, length), rollout.mask.reshape(-1, length)
        decode = self.checkpoint.processor.decode
        texts = [decode(row, real) for row, real in zip(tokens, mask, strict=True)]
        golds = [example.answer for example in examples for _ in range(group)]
        grades = pool.grade_all(texts, golds)
        rewards = rl.total_reward(
            np.array([grade.accuracy for grade in grades], np.float32),
            np.array([grade.format for grade in grades], np.float32),
            alpha=self.config.reward.format_weight,
        )
        return texts, grades, np.asarray(rewards).reshape(batch, group)


def train(config: GRPOConfig) -> Path:
    """Start a run in `config.out` and take it to its end; returns the run directory.

    The parameters that are trained, and the moments of their gradients, are float32; `config.dtype`
    is that of the computation, of the reference and of what is frozen.

    Raises UserError for what is wrong with the settings, the model or the data, before anything is
    written, and KeyboardInterrupt after an interrupted run has been saved.
    """
    directory = RunDirectory(config.out, writes=processes.first())
    directory.check_free()
    checkpoint = _load(config.model, config)
    trainer = GRPOTrainer(config, checkpoint)
    record = {
        "kind": "grpo",
        "config": to_dict(config),
        "total_steps": trainer.steps,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **environment(),
    }
    processes.exchange("all of it can be begun")
    if processes.first():
        save_model(
            directory.reference,
            in_memory(checkpoint.config, checkpoint.params),
            companions=checkpoint.directory,
        )
        directory.begin(record)
    processes.exchange("it is begun")
    del checkpoint
    trainer.run(directory, resumed=False)
    return directory.path


def resume(path: Path) -> Path:
    """Continue the run in `path` from its last checkpoint, with its own settings and reference."""
    directory = RunDirectory(path, writes=processes.first())
    config = dataclasses.replace(from_dict(GRPOConfig, directory.record()["config"]), out=path)
    trainer = GRPOTrainer(config, _load(directory.reference, config))
    trainer.run(directory, resumed=True)
    return directory.path


def _load(model: str | Path, config: GRPOConfig) -> Checkpoint:
    return load(
        model,
        dtype=config.dtype,
        param_dtype=loaded_dtype(config),
        on_host=True,  # a whole copy may have no room on a device
        remat=config.remat,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
    )
