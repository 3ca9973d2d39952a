"""Accuracy of a model over a test set, with its confidence interval."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.config import EvaluateConfig, Grader, evaluation_settings
from othink_jax.data.sources import open_source
from othink_jax.data.stream import ENDLESS
from othink_jax.errors import UserError
from othink_jax.evaluation.answers import Prediction, predict
from othink_jax.evaluation.grading import answers_of, grade, graders, score
from othink_jax.evaluation.groups import over_groups, read_groups
from othink_jax.evaluation.kept import Kept, what_is_evaluated
from othink_jax.evaluation.samples import over_samples
from othink_jax.files import check_output_directory, write_atomically
from othink_jax.rewards import (
    ANSWER_FORMAT,
    ANSWER_TAGS,
    EXAMPLE_FIELDS,
    Grade,
    Scores,
    measured,
)
from othink_jax.statistics import means_of, share_interval, summaries
from othink_jax.training.parallel import make_parallel
from othink_jax.training.rewards import load_rewards
from othink_jax.training.run_directory import environment


def evaluate(config: EvaluateConfig, *, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """Evaluate a model and write `predictions.jsonl` and `result.json` into `config.out`.

    Answers are kept there as they come. An evaluation that was interrupted goes on from them, and
    its result is that of one that was not.

    Args:
      config: what to evaluate, on what, and how.
      checkpoint: the model, if it is loaded already; else `config.model` is loaded.

    Returns:
      The contents of result.json: `accuracy` by the chosen grader, `interval` (95%, over questions,
      see `share_interval`), the accuracy by each grader (R1-V's only where it is known what a data
      set asks for), share of right format, of cut completions, counts and seconds. A question that
      cannot be read counts as answered wrongly, and in `unreadable`. Of several samples a question,
      all these are means over completions, but for the counts `n` and `unreadable` of questions,
      and there are `samples`, and what `over_samples` says. With `--by` there is `by`, see
      `over_groups`. With `--reward` also `rewards`: of each
      by name, and of `total`, their weighted sum, what `statistics.summaries` says.

    Raises:
      UserError: there is a result in `config.out` already, or answers of another evaluation;
        nothing can be written there; not one question can be read; some do not fit into memory; a
        stream has no limit; a column does not exist or has too many values; a reward function
        cannot be loaded, or fails on every answer.
    """
    rewards = load_rewards(config.reward)
    check_output_directory(config.out)
    if (config.out / "result.json").exists():
        raise UserError(f"{config.out} holds a result already; give another --out or remove it")
    if jax.process_count() > 1:
        raise UserError("an evaluation runs in one process, on all of its devices")
    if config.data.weights is not None:
        raise UserError(
            "weights of data sets say how often training draws from them; an evaluation asks each"
            " question once: give --dataset without them"
        )
    parallel = make_parallel(config.parallel)
    source = open_source(config.data, size=config.count, columns=True)
    if len(source) == ENDLESS:
        raise UserError("a stream has no end: give --limit, or leave --streaming out")
    groups = read_groups(source, config.by)
    if checkpoint is None:
        checkpoint = load(
            config.model,
            dtype=config.dtype,
            unread=config.parallel.strategy != "jit",  # no device, and not the host, has it twice
            min_pixels=config.data.min_pixels,
            max_pixels=config.data.max_pixels,
        )
    with Kept(config.out, what_is_evaluated(config, checkpoint, len(source))) as kept:
        predictions = predict(checkpoint, source, config, parallel, kept)
        if not any(prediction.readable for prediction in predictions):
            raise UserError(
                f"none of the {len(source)} questions can be read; see the warnings above"
            )
        verdicts = {grader: grade(predictions, config, grader) for grader in graders(config)}
        scores = score(predictions, config, rewards)
        chosen = verdicts[config.reward.grader]
        result = _result(config, predictions, verdicts, kept.seconds)
        if config.samples > 1:
            voted = over_samples(answers_of(predictions, config), chosen, config.samples)
            result |= {"samples": config.samples, **voted}
        if config.by:
            shares = means_of([verdict.accuracy for verdict in chosen], config.samples)
            numbers = [prediction.number for prediction in predictions[:: config.samples]]
            result["by"] = over_groups(groups, dict(zip(numbers, shares, strict=True)))
        if config.reward.functions:
            made = measured(config.reward.weights, rewards, chosen, scores)
            result["rewards"] = summaries(made, samples=config.samples)
        config.out.mkdir(parents=True, exist_ok=True)
        rows = _rows(predictions, chosen, scores)
        write_atomically(config.out / "predictions.jsonl", "".join(map(_line, rows)))
        write_atomically(config.out / "result.json", json.dumps(result, indent=2))
        kept.discard()
    return result


def _result(
    config: EvaluateConfig,
    predictions: Sequence[Prediction],
    verdicts: Mapping[Grader, Sequence[Grade]],
    seconds: float,
) -> dict[str, Any]:
    chosen, samples = verdicts[config.reward.grader], config.samples
    right = [verdict.accuracy for verdict in chosen]
    return {
        "model": config.model,
        "stage": config.stage,
        "task": config.data.task,
        "dataset": config.data.dataset_name,
        "split": config.data.split if config.data.has_splits else None,
        "examples": config.data.name,
        "n": len(predictions) // samples,
        "accuracy": sum(right) / len(predictions),
        "interval": list(share_interval(means_of(right, samples))),
        **{
            f"accuracy_{grader}": float(np.mean([grade.accuracy for grade in grades]))
            for grader, grades in verdicts.items()
        },
        "format": float(np.mean([verdict.format for verdict in chosen])),
        "truncated": float(np.mean([not prediction.finished for prediction in predictions])),
        "tokens": float(np.mean([prediction.tokens for prediction in predictions])),
        "unreadable": sum(not prediction.readable for prediction in predictions) // samples,
        "ungradable": sum(verdict.ungradable for verdict in chosen),
        "grader": config.reward.grader,
        "decoding": "greedy"
        if config.sampling.temperature == 0
        else f"temperature {config.sampling.temperature:g}",
        "seed": config.seed,
        "seconds": round(seconds, 2),
        "config": evaluation_settings(config),
        **environment(),
    }


def _rows(
    predictions: Sequence[Prediction], verdicts: Sequence[Grade], scores: Sequence[Scores]
) -> list[dict[str, Any]]:
    """Of predictions.jsonl: one a completion."""
    several = any(prediction.sample for prediction in predictions)
    return [
        {
            **_row(prediction, with_example=bool(score.values)),
            **({"sample": prediction.sample} if several else {}),
            "correct": bool(verdict.accuracy),
            "format": verdict.format,
            "ungradable": verdict.ungradable,
            **({"rewards": dict(score.values)} if score.values else {}),
        }
        for prediction, verdict, score in zip(predictions, verdicts, scores, strict=True)
    ]


def _row(prediction: Prediction, *, with_example: bool) -> dict[str, Any]:
    """Of a prediction; with what its row and its images have beside it, if functions may ask."""
    row = dataclasses.asdict(prediction)
    example = row.pop("example")
    del row["number"], row["sample"]
    if example is not None and (with_example or example["columns"]):
        row |= {name: example[name] for name in EXAMPLE_FIELDS}
    if prediction.example is not None and prediction.example.answer_format != ANSWER_TAGS:
        row[ANSWER_FORMAT] = dataclasses.asdict(prediction.example.answer_format)
    return row


def _line(row: dict[str, Any]) -> str:
    text = json.dumps(row, ensure_ascii=False)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON has an escape for
        text = json.dumps(row)
    return text + "\n"
