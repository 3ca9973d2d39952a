"""The result of an evaluation, and the files that it writes."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from othink_jax.config import EvaluateConfig, Grader, evaluation_settings
from othink_jax.evaluation.answers import Prediction
from othink_jax.evaluation.groups import over_groups
from othink_jax.evaluation.samples import Sampled
from othink_jax.files import write_atomically
from othink_jax.rewards import (
    ANSWER_FORMAT,
    ANSWER_TAGS,
    EXAMPLE_FIELDS,
    Grade,
    Reward,
    Scores,
    measured,
)
from othink_jax.statistics import means_of, share_interval, summaries
from othink_jax.training.run_directory import environment

RESULT = "result.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Judged:
    """The answers of an evaluation, with all verdicts on them."""

    predictions: Sequence[Prediction]  # those of a question are consecutive
    verdicts: Mapping[Grader, Sequence[Grade]]
    chosen: Sequence[Grade]  # verdicts of the chosen grader
    scores: Sequence[Scores]  # of the reward functions
    sampled: Sampled | None  # None for a single completion per question

    @property
    def right(self) -> list[float]:
        """1 if an answer is right, else 0."""
        return [verdict.accuracy for verdict in self.chosen]


def result_of(
    config: EvaluateConfig,
    judged: Judged,
    *,
    rewards: Sequence[Reward],
    groups: Mapping[str, Sequence[str]],
    seconds: float,
) -> dict[str, Any]:
    """The contents of result.json, see `evaluate`.

    Args:
      config: settings of the evaluation.
      judged: its answers.
      rewards: the functions that have scored them.
      groups: see `read_groups`.
      seconds: duration of the evaluation.
    """
    samples = config.samples
    result = _result(config, judged, seconds)
    if judged.sampled is not None:
        result |= {"samples": samples, **judged.sampled.summary()}
    if config.by:
        numbers = [prediction.number for prediction in judged.predictions[::samples]]
        shares = dict(zip(numbers, means_of(judged.right, samples), strict=True))
        result["by"] = over_groups(groups, shares)
    if config.reward.functions:
        made = measured(config.reward.weights, rewards, judged.chosen, judged.scores)
        result["rewards"] = summaries(made, samples=samples)
    return result


def _result(config: EvaluateConfig, judged: Judged, seconds: float) -> dict[str, Any]:
    predictions, chosen, samples = judged.predictions, judged.chosen, config.samples
    return {
        "model": config.model,
        "stage": config.stage,
        "task": config.data.task,
        "dataset": config.data.dataset_name,
        "split": config.data.split if config.data.has_splits else None,
        "examples": config.data.name,
        "n": len(predictions) // samples,
        "accuracy": sum(judged.right) / len(predictions),
        "interval": list(share_interval(means_of(judged.right, samples))),
        **{
            f"accuracy_{grader}": float(np.mean([grade.accuracy for grade in grades]))
            for grader, grades in judged.verdicts.items()
        },
        "format": float(np.mean([verdict.format for verdict in chosen])),
        "truncated": float(np.mean([not prediction.finished for prediction in predictions])),
        "tokens": float(np.mean([prediction.tokens for prediction in predictions])),
        "unreadable": sum(not prediction.readable for prediction in predictions) // samples,
        "ungradable": sum(verdict.ungradable for verdict in chosen),
        "grader": config.reward.grader,
        "decoding": _decoding(config),
        "seed": config.seed,
        "seconds": round(seconds, 2),
        "config": evaluation_settings(config),
        **environment(),
    }


def _decoding(config: EvaluateConfig) -> str:
    if config.sampling.temperature == 0:
        return "greedy"
    several = f", {config.samples} samples a question" if config.samples > 1 else ""
    return f"temperature {config.sampling.temperature:g}{several}"


def write_result(out: Path, judged: Judged, result: Mapping[str, Any]) -> None:
    """Write `predictions.jsonl` and, as the last file, `result.json`."""
    out.mkdir(parents=True, exist_ok=True)
    rows = _rows(judged.predictions, judged.chosen, judged.scores)
    write_atomically(out / "predictions.jsonl", "".join(map(_line, rows)))
    write_atomically(out / RESULT, json.dumps(result, indent=2))


def _rows(
    predictions: Sequence[Prediction], verdicts: Sequence[Grade], scores: Sequence[Scores]
) -> list[dict[str, Any]]:
    """Rows of predictions.jsonl, one per completion."""
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
    """Row of a prediction; with solution, columns and image sizes if rewards may need them."""
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
    except UnicodeEncodeError:  # a lone surrogate, which JSON can escape
        text = json.dumps(row)
    return text + "\n"
