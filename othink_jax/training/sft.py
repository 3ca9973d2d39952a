"""Supervised fine-tuning on the solutions in the data: the loss is on answers, not prompts."""

from pathlib import Path
from typing import Any

from othink_jax.checkpoint.load import Checkpoint
from othink_jax.config import ResumeConfig, SFTConfig
from othink_jax.training import processes
from othink_jax.training.loop import Trainer
from othink_jax.training.programs import compile_sft
from othink_jax.training.records import Clock
from othink_jax.training.run_directory import RunDirectory
from othink_jax.training.runs import resume_run, start_run
from othink_jax.training.shapes import Lengths, around
from othink_jax.training.state import TrainState
from othink_jax.types import SFTBatch


class SFTTrainer(Trainer[SFTConfig]):
    """One run of supervised fine-tuning; the entry points are `train` and `resume`."""

    def __init__(self, config: SFTConfig, checkpoint: Checkpoint) -> None:
        super().__init__(config, checkpoint, max_completion_tokens=config.max_completion_tokens)
        self.compiled = compile_sft(checkpoint, config, self.parallel, self.tx)

    def lengths(self, longest: int) -> Lengths:
        """Lengths around the first solutions, since the limit may be many times as long."""
        return around(longest, self.config.max_completion_tokens)

    def step(
        self, step: int, state: TrainState, directory: RunDirectory
    ) -> tuple[TrainState, dict[str, Any]]:
        """One update from the solutions of a batch."""
        clock = Clock()
        _, encoded, prompts = self.next_prompts(state)
        answers = [prompt.completion for prompt in encoded if prompt.completion is not None]
        length = self.common_length(prompts, max(map(len, answers)))
        completions, mask = self.checkpoint.processor.batch_completions(answers, length)
        batch = SFTBatch(
            prompts=prompts,
            completions=self.parallel.shard(completions),
            mask=self.parallel.shard(mask),
        )
        clock.lap("data")
        state, figures = self.update(state, batch)
        clock.lap("update")
        records = processes.all_gather({"tokens": int(mask.sum())})
        figures["tokens"] = sum(record["tokens"] for record in records)
        return state, self.row(step, figures, records, clock)


def train(config: SFTConfig) -> Path:
    """Start a run in `config.out` and take it to its end; see `runs.start_run`."""
    return start_run(SFTTrainer, config)


def resume(changes: ResumeConfig | Path) -> Path:
    """Continue a run from its last intact checkpoint; see `runs.resume_run`."""
    return resume_run(SFTTrainer, SFTConfig, changes)
