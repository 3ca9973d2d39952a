"""Accuracy of a model over a test set, with its confidence interval."""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import jax
import numpy as np

from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.config import EvaluateConfig, Grader, SamplingConfig, to_dict
from othink_jax.data.example import Example
from othink_jax.data.loader import in_order
from othink_jax.data.processing import EncodedPrompt
from othink_jax.data.sources import Source, open_source
from othink_jax.data.stream import ENDLESS
from othink_jax.errors import UserError
from othink_jax.files import check_output_directory, write_atomically
from othink_jax.rewards import Grade, GradingPool
from othink_jax.sampling import make_sampler, prompt_keys
from othink_jax.statistics import wilson_interval
from othink_jax.training.run_directory import environment


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answered test question."""

    id: str
    question: str
    ground_truth: str
    model_output: str
    tokens: int  # length of the completion, its end-of-sequence token included
    finished: bool  # false where the length limit cut it
    readable: bool = True  # false where the question could not be read: no answer, so a wrong one


def predict(
    checkpoint: Checkpoint,
    source: Source,
    *,
    template: str,
    sampling: SamplingConfig,
    batch_size: int,
    max_prompt_tokens: int | None = None,
    seed: int,
) -> Iterator[Prediction]:
    """Answer every question of `source`, in order, one completion each.

    Questions that cannot be read (a broken image, a prompt that is too long) come last, unanswered.
    """
    processor = checkpoint.processor
    sampler = jax.jit(make_sampler(checkpoint.graphdef, processor, sampling))
    unreadable: list[Example] = []
    batches = in_order(
        source,
        processor,
        batch_size=batch_size,
        template=template,
        max_prompt_tokens=max_prompt_tokens,
        unreadable=unreadable,
    )
    for number, (examples, encoded) in enumerate(batches):
        # The last batch is filled up with its first prompt: a smaller one would compile again.
        filled: Sequence[EncodedPrompt] = [*encoded, *[encoded[0]] * (batch_size - len(encoded))]
        keys = prompt_keys(seed, number, batch_size)
        rollout = jax.device_get(sampler(checkpoint.params, processor.batch(filled), keys))
        for row, example in enumerate(examples):
            mask = rollout.mask[row, 0]
            yield Prediction(
                id=example.id,
                question=example.question,
                ground_truth=example.answer,
                model_output=processor.decode(rollout.tokens[row, 0], mask),
                tokens=int(mask.sum()),
                finished=bool(rollout.finished[row, 0]),
            )
    for example in unreadable:
        yield Prediction(
            id=example.id,
            question=example.question,
            ground_truth=example.answer,
            model_output="",
            tokens=0,
            finished=True,
            readable=False,
        )


def grade(predictions: Sequence[Prediction], config: EvaluateConfig, grader: Grader) -> list[Grade]:
    """Verdicts of one grader over predictions."""
    with GradingPool(
        grader,
        task=config.reward.task_of(config.data),
        timeout_s=config.reward.grading_timeout_s,
        workers=config.reward.grading_workers,
    ) as pool:
        return pool.grade_all(
            [prediction.model_output for prediction in predictions],
            [prediction.ground_truth for prediction in predictions],
        )


def _graders(config: EvaluateConfig) -> tuple[Grader, ...]:
    """All that can be asked."""
    known = config.reward.task_of(config.data) is not None
    return get_args(Grader) if known else ("strict",)


def evaluate(config: EvaluateConfig, *, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """Evaluate a model and write `predictions.jsonl` and `result.json` into `config.out`.

    Args:
      config: what to evaluate, on what, and how.
      checkpoint: the model, if it is loaded already; else `config.model` is loaded.

    Returns:
      The contents of result.json: `accuracy` by the chosen grader, `interval` (95%, Wilson), the
      accuracy by each grader (R1-V's only where it is known what a data set asks for), share of
      right format, of cut completions, counts and seconds. A question that cannot be read counts as
      answered wrongly, and in `unreadable`.

    Raises:
      UserError: there is a result in `config.out` already, nothing can be written there, or not one
        question can be read, or a stream has no limit.
    """
    check_output_directory(config.out)
    if (config.out / "result.json").exists():
        raise UserError(f"{config.out} holds a result already; give another --out or remove it")
    source = open_source(config.data, size=config.count)
    if len(source) == ENDLESS:
        raise UserError("a stream has no end: give --limit, or leave --streaming out")
    if checkpoint is None:
        checkpoint = load(
            config.model,
            dtype=config.dtype,
            min_pixels=config.data.min_pixels,
            max_pixels=config.data.max_pixels,
        )
    start = time.perf_counter()
    predictions = list(
        predict(
            checkpoint,
            source,
            template=config.data.template,
            sampling=config.sampling,
            batch_size=min(config.batch_size, len(source)),
            max_prompt_tokens=config.data.max_prompt_tokens,
            seed=config.seed,
        )
    )
    unreadable = sum(not prediction.readable for prediction in predictions)
    if unreadable == len(predictions):
        raise UserError(f"none of the {unreadable} questions can be read; see the warnings above")
    verdicts = {grader: grade(predictions, config, grader) for grader in _graders(config)}
    chosen = verdicts[config.reward.grader]
    right = int(sum(verdict.accuracy for verdict in chosen))
    result = {
        "model": config.model,
        "stage": config.stage,
        "task": config.data.task,
        "dataset": config.data.dataset,
        "split": config.data.split if config.data.has_splits else None,
        "examples": config.data.name,
        "n": len(predictions),
        "accuracy": right / len(predictions),
        "interval": list(wilson_interval(right, len(predictions))),
        **{
            f"accuracy_{grader}": float(np.mean([grade.accuracy for grade in grades]))
            for grader, grades in verdicts.items()
        },
        "format": float(np.mean([verdict.format for verdict in chosen])),
        "truncated": float(np.mean([not prediction.finished for prediction in predictions])),
        "tokens": float(np.mean([prediction.tokens for prediction in predictions])),
        "unreadable": unreadable,
        "ungradable": sum(verdict.ungradable for verdict in chosen),
        "grader": config.reward.grader,
        "decoding": "greedy"
        if config.sampling.temperature == 0
        else f"temperature {config.sampling.temperature:g}",
        "seed": config.seed,
        "seconds": round(time.perf_counter() - start, 2),
        "config": to_dict(config),
        **environment(),
    }
    config.out.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps(
            {
                **dataclasses.asdict(prediction),
                "correct": bool(v.accuracy),
                "format": v.format,
                "ungradable": v.ungradable,
            },
            ensure_ascii=False,
        )
        for prediction, v in zip(predictions, chosen, strict=True)
    ]
    write_atomically(config.out / "predictions.jsonl", "\n".join(lines) + "\n")
    write_atomically(config.out / "result.json", json.dumps(result, indent=2))
    return result
