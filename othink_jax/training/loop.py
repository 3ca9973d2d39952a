"""What all methods of training share: a run, from its directory, step after step."""

import abc
import contextlib
import dataclasses
import importlib.util
import itertools
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import optax

from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.checkpoint.orbax_model import save_model
from othink_jax.checkpoint.store import TrainingStore
from othink_jax.checkpoint.tensors import in_memory
from othink_jax.config import TrainingConfig
from othink_jax.data.example import Example
from othink_jax.data.loader import PromptLoader
from othink_jax.data.processing import EncodedPrompt, PadTo
from othink_jax.data.sources import open_source
from othink_jax.data.stream import ENDLESS
from othink_jax.errors import UserError
from othink_jax.training import processes
from othink_jax.training.console import Monitor
from othink_jax.training.interrupt import StopRequest
from othink_jax.training.optimizer import learning_rate_schedule, make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.partial import Params, divide, join, loaded_dtype
from othink_jax.training.programs import Programs
from othink_jax.training.records import Clock
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.state import TrainState
from othink_jax.types import Prompts

_LENGTH_BUCKET = 64  # completions are as long as a multiple of this: few shapes, few compilations

_Config = TypeVar("_Config", bound=TrainingConfig)


class Trainer(abc.ABC, Generic[_Config]):
    """One run of a method, whose `step` is all that a method has to say."""

    compiled: Programs

    def __init__(
        self,
        config: _Config,
        checkpoint: Checkpoint,
        *,
        updates_per_step: int = 1,
        max_completion_tokens: int | None = None,
    ) -> None:
        """Check and build everything that can be wrong before a byte is written.

        Args:
          config: of the run.
          checkpoint: the model that it starts from.
          updates_per_step: updates of the parameters in a step.
          max_completion_tokens: of the solutions, if the method learns from them; see
            `PromptLoader`.
        """
        if config.wandb and importlib.util.find_spec("wandb") is None:
            raise UserError("--wandb needs the package wandb: pip install 'othink_jax[wandb]'")
        self.config = config
        self.parallel = make_parallel(config.parallel)
        self.parallel.check_batch(config.prompts_per_step, config.micro_batches)
        self.share = (jax.process_index(), jax.process_count())
        source = open_source(config.data)
        self.steps = total_steps(config, len(source))
        self.updates_per_step = updates_per_step
        updates = self.steps * updates_per_step
        self.tx = self.optimizer(updates)
        self.learning_rate = learning_rate_schedule(config.optimizer, updates)
        parts = divide(checkpoint, config)
        self.frozen = self.parallel.replicate(parts.frozen)
        # From here on, the parameters that are trained.
        self.checkpoint = dataclasses.replace(checkpoint, params=parts.trained)
        self.loader = PromptLoader(
            source,
            checkpoint.processor,
            batch_size=config.prompts_per_step // jax.process_count(),
            seed=config.seed,
            template=config.data.template,
            max_prompt_tokens=config.data.max_prompt_tokens,
            max_completion_tokens=max_completion_tokens,
            share=self.share,
        )
        begin = self.loader.get_state()
        next(self.loader)  # there is at least one batch that can be used
        self.loader.set_state(begin)

    def optimizer(self, updates: int) -> optax.GradientTransformationExtraArgs:
        """What makes the updates of the run, so many in all."""
        return make_optimizer(self.config.optimizer, None, updates)

    @abc.abstractmethod
    def step(
        self, step: int, state: TrainState, directory: RunDirectory
    ) -> tuple[TrainState, dict[str, Any]]:
        """Make step number `step` (from 1); returns the state after it, and `row`."""

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Around all steps: whatever a method has to open and close."""
        yield

    def run(self, directory: RunDirectory, *, resumed: bool) -> None:
        """Train from the last checkpoint, or from the reference, to the last step."""
        store = TrainingStore(directory.checkpoints, keep=self.config.keep_checkpoints)
        state = self._first_state(store, resumed=resumed)
        done = int(self.parallel.unreplicate(state.step)) // self.updates_per_step
        directory.keep_metrics_until(done)
        # The copies on the devices are all that is needed from here on.
        self.checkpoint = dataclasses.replace(self.checkpoint, params={})
        self.started = time.perf_counter()
        monitor = Monitor(
            directory.path,
            kind=self.config.kind,
            total=self.steps,
            done=done,
            wandb=self.config.wandb,
            shown=processes.first(),
        )
        with StopRequest() as stop, monitor, self.at_work():
            if resumed and done == 0:
                monitor.say(f"{directory.path} has no checkpoint yet: it begins at step 1")
            for step in range(done + 1, self.steps + 1):
                state, row = self.step(step, state, directory)
                if not row.pop("finite"):
                    raise _diverged(step, directory, store)
                directory.append_metrics(row)
                monitor.show(row)
                stopping = any(processes.exchange(stop.made))
                if step % self.config.checkpoint_every == 0 or step == self.steps or stopping:
                    progress = {"loaders": processes.exchange(self.loader.get_state())}
                    left_out = processes.exchange(list(self.loader.left_out.values()))
                    directory.list_skipped(itertools.chain(*left_out))
                    store.save(step, self.parallel.unreplicate(state), progress)
                if stopping and step < self.steps:
                    store.close()
                    self._say_stopped(step, directory, monitor)
                    raise KeyboardInterrupt
            store.close()

    def _first_state(self, store: TrainingStore, *, resumed: bool) -> TrainState:
        """On the devices; of a resumed run, with the loader where it stood."""
        if not resumed or store.latest_step() is None:
            return self.parallel.begin(self.checkpoint.params, self.tx)
        like = jax.eval_shape(lambda: TrainState.create(self.checkpoint.params, self.tx))
        state, progress = store.restore(self.parallel.stored(like))
        self.loader.set_state(progress["loaders"][jax.process_index()])
        return self.parallel.adopt(state)

    def _say_stopped(self, step: int, directory: RunDirectory, monitor: Monitor) -> None:
        monitor.stop()
        monitor.say(
            f"Stopped after step {step} of {self.steps}; everything is saved. Continue with:"
        )
        path = shlex.quote(str(directory.path))
        monitor.say(f"othink-jax {self.config.kind} --resume {path}")

    def next_prompts(self, state: TrainState) -> tuple[list[Example], list[EncodedPrompt], Prompts]:
        """The next batch: as it was read, and as prompts on the devices.

        These have the features of their images, where the vision tower is not trained.
        """
        examples, encoded = next(self.loader)
        processor = self.checkpoint.processor
        pad = common_shapes(processor.bucket(encoded))
        prompts = self.parallel.shard(processor.batch(encoded, pad=pad))
        if self.config.train != "all":
            features = self.compiled.encode(self.policy(state), prompts)
            prompts = dataclasses.replace(prompts, features=features)
        return examples, encoded, prompts

    def update(self, state: TrainState, batch: Any) -> tuple[TrainState, dict[str, float]]:
        """Make the updates of a step from one batch; the figures are those of the last one."""
        for _ in range(self.updates_per_step):
            state, measured = self.compiled.update(state, (self.frozen, batch))
        return state, {name: float(value) for name, value in jax.device_get(measured).items()}

    def policy(self, state: TrainState) -> Params:
        """All parameters of the model as it is now; no array is copied."""
        return join(state.params, self.frozen)

    def row(
        self,
        step: int,
        figures: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        clock: Clock,
    ) -> dict[str, Any]:
        """A row of metrics.jsonl, and whether its step was `finite`.

        Args:
          step: its number.
          figures: what a method measures of a step.
          records: what each process counts of it: `tokens` of completions, `skipped` examples.
          clock: started with the step.
        """
        seconds = clock.stop()
        return {
            "step": step,
            **figures,
            # As other figures of an update, of the last one of this step.
            "learning_rate": float(self.learning_rate(step * self.updates_per_step - 1)),
            "skipped": sum(record["skipped"] for record in records),
            "tokens_per_second": sum(record["tokens"] for record in records)
            / seconds["seconds_step"],
            **{name: round(value, 4) for name, value in seconds.items()},
            "elapsed": round(time.perf_counter() - self.started, 2),
        }

    def skipped(self) -> int:
        """Examples that this process has left out, since the run began."""
        return sum(self.loader.skipped.values())


def _diverged(step: int, directory: RunDirectory, store: TrainingStore) -> UserError:
    return UserError(
        f"step {step}: the loss, its gradient or the change of the parameters is not finite; the"
        f" last good checkpoint of {directory.path} is that of step {store.latest_step() or 0}."
        " Lower --learning-rate"
    )


def total_steps(config: TrainingConfig, examples: int) -> int:
    """Steps of a run over a source of `examples`; UserError if there is no saying."""
    if config.steps is not None:
        return config.steps
    if examples == ENDLESS:
        raise UserError(
            "a synthetic task or a stream has no end: give --steps, or --limit for few examples"
        )
    return math.ceil(config.epochs * examples / config.prompts_per_step)


def common_shapes(pad: PadTo) -> PadTo:
    """The least shapes that the prompts of all processes fit into."""
    given = processes.exchange(dataclasses.asdict(pad))
    return PadTo(**{name: max(shapes[name] for shapes in given) for name in given[0]})


def common_length(longest: int, limit: int) -> int:
    """The length that completions of all processes are brought to: a multiple, or the limit.

    Args:
      longest: tokens of this process's longest completion.
      limit: that no completion is longer than.
    """
    longest = max(processes.exchange(longest))
    return min(limit, math.ceil(longest / _LENGTH_BUCKET) * _LENGTH_BUCKET)


def begin(trainer: type[Trainer[_Config]], config: _Config) -> Path:
    """Start a run in `config.out` and take it to its end; returns the run directory.

    The parameters that are trained, and the moments of their gradients, are float32; `config.dtype`
    is that of the computation, of a reference and of what is frozen.

    Raises UserError for what is wrong with the settings, the model or the data, before anything is
    written, and KeyboardInterrupt after an interrupted run has been saved.
    """
    directory = RunDirectory(config.out, writes=processes.first())
    directory.check_free()
    checkpoint = _load(config.model, config)
    made = trainer(config, checkpoint)
    processes.exchange("all of it can be begun")
    if processes.first():
        save_model(
            directory.reference,
            in_memory(checkpoint.config, checkpoint.params),
            companions=checkpoint.directory,
        )
        directory.begin(config, made.steps)
    processes.exchange("it is begun")
    del checkpoint
    made.run(directory, resumed=False)
    return directory.path


def go_on(trainer: type[Trainer[_Config]], settings: type[_Config], path: Path) -> Path:
    """Continue the run in `path` from its last checkpoint, with its own settings and reference."""
    directory = RunDirectory(path, writes=processes.first())
    config = dataclasses.replace(directory.settings(settings), out=path)
    made = trainer(config, _load(directory.reference, config))
    made.run(directory, resumed=True)
    return directory.path


def _load(model: str | Path, config: TrainingConfig) -> Checkpoint:
    return load(
        model,
        dtype=config.dtype,
        param_dtype=loaded_dtype(config),
        on_host=True,  # a whole copy may have no room on a device
        remat=config.remat,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
    )
