"""The training loop that all methods share: a run, step by step, in its run directory."""

import abc
import contextlib
import dataclasses
import importlib.util
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import optax

from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import RunRecord, TrainingConfig
from othink_jax.data.example import Example, answer_format
from othink_jax.data.loader import PromptLoader
from othink_jax.data.processing import EncodedPrompt, PadTo
from othink_jax.data.sources import open_source
from othink_jax.data.stream import ENDLESS
from othink_jax.errors import UserError
from othink_jax.model.attention import check_attention
from othink_jax.rewards import GradingPool
from othink_jax.training import processes
from othink_jax.training.checkpoints import Checkpoints
from othink_jax.training.console import Monitor
from othink_jax.training.interrupt import StopRequest
from othink_jax.training.layout import DiskLayout
from othink_jax.training.optimizer import learning_rate_schedule, make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.partial import Params, merge_params, split_params
from othink_jax.training.programs import Programs
from othink_jax.training.records import Clock
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.samples import Samples
from othink_jax.training.shapes import SURVEYED, Lengths, Shapes, choose_shapes, common, shape_of
from othink_jax.training.state import TrainState
from othink_jax.training.validation import Best, Graded, Questions
from othink_jax.types import Prompts, Rollout

_Config = TypeVar("_Config", bound=TrainingConfig)


class Trainer(abc.ABC, Generic[_Config]):
    """One run of a method. A method implements `step` and `lengths`, and sets `compiled`."""

    compiled: Programs
    pool: GradingPool  # grades the completions of the run; set within `run_context`
    sources: Mapping[str, str] = {}  # digests of the user's own functions, by name
    shown: tuple[str, ...] = ()  # additional metrics of the progress line
    samples: Samples | None = None  # the last sample completions that were stored
    read_columns = False  # whether examples hold the additional columns of their rows

    def __init__(
        self,
        config: _Config,
        checkpoint: Checkpoint,
        *,
        updates_per_step: int = 1,
        max_completion_tokens: int | None = None,
    ) -> None:
        """Check and build everything that can fail before a byte is written.

        Args:
          config: settings of the run.
          checkpoint: initial model.
          updates_per_step: parameter updates per step.
          max_completion_tokens: limit of a solution, if the method learns from solutions; see
            `PromptLoader`.
        """
        if config.wandb and importlib.util.find_spec("wandb") is None:
            raise UserError("--wandb needs the package wandb: pip install 'othink_jax[wandb]'")
        self.config = config
        self.parallel = make_parallel(config.parallel)
        self.parallel.check_batch(config.prompts_per_step, config.micro_batches)
        self.parallel.check_model(checkpoint.config)
        check_attention(checkpoint.compute)
        self.share = (jax.process_index(), jax.process_count())
        self.answers = answer_format(config.data)
        source = open_source(config.data, columns=self.read_columns)
        self.steps = total_steps(config, len(source))
        self.updates_per_step = updates_per_step
        updates = self.steps * updates_per_step
        self.tx = self.optimizer(updates)
        self.learning_rate = learning_rate_schedule(config.optimizer, updates)
        self.nonfinite = NonFinite()
        self.notes: list[str] = []  # messages for the user before the first step
        parts = split_params(checkpoint, config)
        self.frozen = self.parallel.replicate(parts.frozen)
        # From here on, `checkpoint.params` holds only the trained parameters.
        self.checkpoint = dataclasses.replace(checkpoint, params=parts.trained)
        self.loader = PromptLoader(
            source,
            checkpoint.processor,
            batch_size=config.prompts_per_step,
            seed=config.seed,
            template=config.data.template,
            system_prompt=config.data.system_prompt,
            answers=self.answers,
            max_prompt_tokens=config.data.max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
            share=self.share,
            all_gather=processes.all_gather,
        )
        self.best = Best()
        self.questions: Questions | None = None
        if config.validation.used:
            self.questions = Questions(
                config, checkpoint.processor, share=self.share, columns=self.read_columns
            )
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parts.trained)
        like = jax.eval_shape(lambda params: TrainState.create(params, self.tx), shapes)
        self.layout = DiskLayout(self.parallel, like)
        self.shapes = self._choose_shapes(
            min(SURVEYED, math.ceil(len(source) / config.prompts_per_step))
        )

    def optimizer(self, updates: int) -> optax.GradientTransformationExtraArgs:
        """The optimizer of the run, which makes `updates` updates in all."""
        return make_optimizer(self.config.optimizer, None, updates)

    def _choose_shapes(self, batches: int) -> Shapes:
        """Choose shapes by the first `batches`; raises UserError if no example can be used."""
        begin, longest = self.loader.get_state(), 0
        needed = [] if self.questions is None else [*self.questions.shapes]
        for _ in range(batches):
            _, encoded = next(self.loader)
            needed.append(common_shapes(self.checkpoint.processor.bucket(encoded)))
            solutions = [len(x.completion) for x in encoded if x.completion is not None]
            longest = max(longest, *processes.all_gather(max(solutions, default=0)))
        self.loader.set_state(begin)
        return choose_shapes(
            self.checkpoint.processor,
            needed,
            self.lengths(longest),
            max_prompt_tokens=self.config.data.max_prompt_tokens,
        )

    @abc.abstractmethod
    def lengths(self, longest: int) -> Lengths:
        """Lengths that completions are padded to.

        Args:
          longest: tokens of the longest solution in the first batches, if the method learns from
            solutions; else 0.
        """

    @abc.abstractmethod
    def step(
        self, step: int, state: TrainState, directory: RunDirectory
    ) -> tuple[TrainState, dict[str, Any]]:
        """Make step number `step` (from 1); returns the new state and its `row` of metrics."""

    @contextlib.contextmanager
    def run_context(self) -> Iterator[None]:
        """Context of all steps, in which `pool` is open."""
        with self.grading_pool() as self.pool:
            yield

    def grading_pool(self) -> GradingPool:
        """A new pool that grades completions; here with the strict grader."""
        return GradingPool(answers=self.answers)

    def grade_and_reward(
        self, examples: list[Example], encoded: list[EncodedPrompt], rollout: Rollout
    ) -> Graded:
        """Grades of completions, prompt by prompt, and their rewards; here the accuracies."""
        golds = [example.answer for example in examples]
        grades = self.pool.grade_all(self.texts(rollout), golds)
        return grades, np.array([grade.accuracy for grade in grades])

    def texts(self, rollout: Rollout) -> list[str]:
        """Decoded texts of all completions, prompt by prompt."""
        length = rollout.tokens.shape[-1]
        tokens, mask = rollout.tokens.reshape(-1, length), rollout.mask.reshape(-1, length)
        decode = self.checkpoint.processor.decode
        return [decode(row, real) for row, real in zip(tokens, mask, strict=True)]

    def validate(self, questions: Questions, state: TrainState) -> dict[str, Any]:
        """Validation metrics of the current policy; see `Questions.measure`."""
        assert self.compiled.greedy_sampler is not None
        respond = self.compiled.greedy_sampler(self.policy(state))
        # Decoding is greedy: the keys have no effect.
        keys = np.zeros((self.config.prompts_per_step // self.share[1], 2), np.uint32)

        def answer(encoded: list[EncodedPrompt]) -> Rollout:
            prompts = self.prompts_of(encoded, state)
            return self.parallel.gather(respond(prompts, self.parallel.shard(keys)))

        return questions.measure(answer, self.grade_and_reward)

    def run(
        self,
        directory: RunDirectory,
        *,
        record: RunRecord | None = None,
        changed: Mapping[str, Any] | None = None,
    ) -> None:
        """Train from the last intact checkpoint, or from the initial model, to the last step.

        Args:
          directory: run directory.
          record: record of a resumed run, with its current settings; None for a new run.
          changed: settings that differ from those before.
        """
        checkpoints = Checkpoints(directory, self.config, self.parallel, self.layout)
        state, done, notes = self._first_state(directory, checkpoints, resumed=record is not None)
        if record is not None:
            if changed:
                change = {"after_step": done, "settings": changed}
                record = dataclasses.replace(record, changes=(*record.changes, change))
            directory.write_record(record)
        # Drop the initial parameters: from here on, only the copies on the devices are needed.
        self.checkpoint = dataclasses.replace(self.checkpoint, params={})
        self.started = time.perf_counter()
        monitor = Monitor(
            directory.path,
            self.config,
            total=self.steps,
            done=done,
            further=self.shown,
            shown=processes.first(),
        )
        with contextlib.closing(self.loader), StopRequest() as stop, monitor, self.run_context():
            for note in [*self.notes, *notes]:
                monitor.say(note)
            for step in range(done + 1, self.steps + 1):
                if self.best.is_over(self.config.validation.patience):
                    directory.end_early(step - 1)
                    self._say_over(step - 1, monitor)
                    break
                state, row = self.step(step, state, directory)
                if self.nonfinite.in_a_row > self.config.skip_nonfinite:
                    raise _diverged(step, directory, checkpoints)
                better = False
                if self.questions is not None and self._validates(step):
                    row |= self.validate(self.questions, state)
                    better = self.best.take(row[self.config.criterion], step)
                directory.append_metrics(row)
                monitor.show(row, self.samples)
                stopping = any(processes.all_gather(stop.made))
                over = self.best.is_over(self.config.validation.patience)
                due = step % self.config.checkpoint_every == 0 or step == self.steps
                if due or better or over or stopping:
                    directory.list_skipped(self.loader.left_out.values())
                    checkpoints.save(step, state, self._progress(directory), better=better)
                if stopping and step < self.steps:
                    checkpoints.close()
                    self._say_stopped(step, directory, monitor)
                    raise KeyboardInterrupt
            checkpoints.close()

    def _validates(self, step: int) -> bool:
        return step % self.config.validation.validate_every == 0 or step == self.steps

    def _progress(self, directory: RunDirectory) -> dict[str, Any]:
        """Progress that a checkpoint holds beside the state: loader position, shapes, counters."""
        return {
            "loader": self.loader.get_state(),
            "shapes": dataclasses.asdict(self.shapes),
            "nonfinite": dataclasses.asdict(self.nonfinite),
            "metrics": directory.metrics_digest(),
            "best": dataclasses.asdict(self.best),
        }

    def _first_state(
        self, directory: RunDirectory, checkpoints: Checkpoints, *, resumed: bool
    ) -> tuple[TrainState, int, list[str]]:
        """The state on the devices, the number of steps done, and messages for the user.

        For a resumed run, this also restores the loader, the shapes, the counters and the metrics.
        """
        given = self.checkpoint.params
        if not resumed:
            return self.parallel.create_state(given, self.tx), 0, []
        found, notes = checkpoints.restore()
        if found is None:
            directory.keep_metrics_until(0)
            notes.append(f"{directory.path} has no checkpoint yet: it begins at step 1")
            return self.parallel.create_state(given, self.tx), 0, notes
        state, progress = found
        done = int(self.parallel.unreplicate(state.step)) // self.updates_per_step
        if "loader" not in progress:
            raise UserError(
                f"{directory.path} was written by an earlier version of othink_jax, which stored"
                " the position in the data otherwise: continue it with that version"
            )
        if done > self.steps:
            raise UserError(f"--steps is {self.steps}, but {done} steps are done already")
        self.loader.set_state(progress["loader"])
        if "shapes" in progress:  # missing if written by a version that padded each batch by itself
            self.shapes = Shapes.stored(progress["shapes"])
        self.nonfinite = NonFinite(**progress["nonfinite"])
        self.best = Best(**progress.get("best", {}))  # missing if the version had no validation
        if directory.keep_metrics_until(done) != progress["metrics"]:
            notes.append(
                f"{directory.path}/metrics.jsonl is not what was written up to step {done}"
            )
        if self.best.step is not None:
            mended = checkpoints.mend_best(done, state, progress, self.best.step)
            notes += [mended] if mended else []
        return state, done, notes

    def _say_over(self, step: int, monitor: Monitor) -> None:
        monitor.say(
            f"Ended after step {step} of {self.steps}: {self.best.waited} validations in a row were"
            f" no better than that of step {self.best.step}"
        )

    def _say_stopped(self, step: int, directory: RunDirectory, monitor: Monitor) -> None:
        monitor.stop()
        monitor.say(
            f"Stopped after step {step} of {self.steps}; everything is saved. Continue with:"
        )
        path = shlex.quote(str(directory.path))
        monitor.say(f"othink-jax {self.config.kind} --resume {path}")

    def next_prompts(self, state: TrainState) -> tuple[list[Example], list[EncodedPrompt], Prompts]:
        """The next batch: examples, encoded prompts, and prompts on the devices.

        The latter include the features of their images if the vision tower is frozen.
        """
        examples, encoded = next(self.loader)
        return examples, encoded, self.prompts_of(encoded, state)

    def prompts_of(self, encoded: list[EncodedPrompt], state: TrainState) -> Prompts:
        """Prompts on the devices, padded to one of the run's shapes, equal in all processes."""
        processor = self.checkpoint.processor
        pad = self.shapes.of_prompts(common_shapes(processor.bucket(encoded)))
        prompts = self.parallel.shard(processor.batch(encoded, pad=pad))
        if self.config.train != "all":
            features = self.compiled.encode(self.policy(state), prompts)
            prompts = dataclasses.replace(prompts, features=features)
        return prompts

    def common_length(self, prompts: Prompts, longest: int) -> int:
        """Padded completion length T in all processes; `longest` is the maximum of this process."""
        return self.shapes.of_completions(shape_of(prompts), max(processes.all_gather(longest)))

    def update(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, float]]:
        """Make the updates of a step from one batch; the metrics are those of the last update."""
        made = []
        for _ in range(self.updates_per_step):
            state, measured = self.compiled.update(state, (self.fixed, batch))
            made.append(measured)
        made = jax.device_get(made)
        self.nonfinite.count(sum(not measured["finite"] for measured in made))
        return state, {name: float(value) for name, value in made[-1].items() if name != "finite"}

    @property
    def fixed(self) -> Params:
        """The frozen parameters that an update takes beside the state."""
        return self.frozen

    def policy(self, state: TrainState) -> Params:
        """All parameters of the current policy; no array is copied."""
        return merge_params(state.params, self.frozen)

    def row(
        self,
        step: int,
        figures: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        clock: Clock,
    ) -> dict[str, Any]:
        """A row of metrics.jsonl.

        Args:
          step: step number.
          figures: metrics of the method; those that are not finite are left out.
          records: one per process, with its number of completion `tokens`.
          clock: started with the step.
        """
        seconds = clock.stop()
        figures = {name: value for name, value in figures.items() if math.isfinite(value)}
        if self.config.skip_nonfinite:
            figures["nonfinite"] = self.nonfinite.total
        updates = step * self.updates_per_step - self.nonfinite.total
        return {
            "step": step,
            **figures,
            # Like other metrics of an update, that of the last update of this step.
            "learning_rate": float(self.learning_rate(max(updates - 1, 0))),
            "skipped": self.loader.skipped.total(),
            "tokens_per_second": sum(record["tokens"] for record in records)
            / seconds["seconds_step"],
            **{name: round(value, 4) for name, value in seconds.items()},
            "elapsed": round(time.perf_counter() - self.started, 2),
        }


@dataclasses.dataclass
class NonFinite:
    """Counts of updates skipped for a non-finite loss, gradient or parameter change."""

    total: int = 0
    in_a_row: int = 0  # consecutive steps with such an update

    def count(self, updates: int) -> None:
        """Add the number of non-finite updates of a step."""
        self.total += updates
        self.in_a_row = self.in_a_row + 1 if updates else 0


def _diverged(step: int, directory: RunDirectory, checkpoints: Checkpoints) -> UserError:
    return UserError(
        f"step {step}: the loss, its gradient or the change of the parameters is not finite; the"
        f" last good checkpoint of {directory.path} is that of step {checkpoints.latest_step}."
        " Lower --learning-rate, or let --skip-nonfinite leave such steps out"
    )


def total_steps(config: TrainingConfig, examples: int) -> int:
    """Number of steps of a run; raises UserError if the source is endless and `steps` not given."""
    if config.steps is not None:
        return config.steps
    if examples == ENDLESS:
        raise UserError(
            "a synthetic task or a stream has no end: give --steps, or --limit for few examples"
        )
    return math.ceil(config.epochs * examples / config.prompts_per_step)


def common_shapes(needed: PadTo) -> PadTo:
    """The smallest shapes that fit the prompts of all processes."""
    return common([PadTo(**shapes) for shapes in processes.all_gather(dataclasses.asdict(needed))])
