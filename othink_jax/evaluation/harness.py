"""Results in the format of lm-evaluation-harness (0.4), for tools that read its files.

These are the fields of `results_DATE.json` that an evaluation here can fill: `results` by task,
with values and standard errors under `METRIC,FILTER` and `METRIC_stderr,FILTER`; `configs`,
`versions`, `n-shot`, `higher_is_better`, `n-samples`; `config`, and what identifies the model.
https://github.com/EleutherAI/lm-evaluation-harness/blob/main/lm_eval/loggers/evaluation_tracker.py
"""

import json
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

from othink_jax.config import EvaluateConfig
from othink_jax.evaluation.paired import contents_of
from othink_jax.evaluation.result import Judged
from othink_jax.files import write_atomically
from othink_jax.statistics import clustered_error, means_of

HARNESS_RESULTS = "results_lm_eval.json"

_NO_WORD = re.compile(r"[^\w.-]+")
_NO_FILE_NAME = re.compile(r"[\"<>:/|\\?*\[\]]+")  # as in the harness


def write_harness_results(
    config: EvaluateConfig, judged: Judged, result: Mapping[str, Any]
) -> None:
    """Write `results_lm_eval.json` into `config.out`, see `harness_results`."""
    config.out.mkdir(parents=True, exist_ok=True)
    made = harness_results(config, judged, result)
    write_atomically(config.out / HARNESS_RESULTS, json.dumps(made, indent=2))


def harness_results(
    config: EvaluateConfig, judged: Judged, result: Mapping[str, Any]
) -> dict[str, Any]:
    """Results of an evaluation, as lm-evaluation-harness writes them.

    Metrics are `acc`, the share of right answers, and with several samples per question `pass@k`
    and `maj@SAMPLES`. Each is a mean over questions, with a clustered standard error (see
    `clustered_error`): questions of a synthetic task that show the same thing are a cluster.

    Args:
      config: settings of the evaluation.
      judged: its answers.
      result: contents of its result.json.
    """
    data = config.data
    task = _NO_WORD.sub("_", data.task or str(data.dataset_name)).strip("_")
    values = _by_question(config, judged)
    numbers = [prediction.number for prediction in judged.predictions[:: config.samples]]
    shown = list(contents_of(config, numbers).values())
    return {
        "results": {task: {"alias": data.name, **_metrics(values, shown)}},
        "group_subtasks": {task: []},
        "configs": {task: _task(config, task, list(values))},
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "higher_is_better": {task: dict.fromkeys(values, True)},
        "n-samples": {task: {"original": result["n"], "effective": result["n"]}},
        "config": {
            "model": "othink_jax",
            "model_args": f"pretrained={config.model},dtype={config.dtype}",
            "batch_size": config.batch_size,
            "batch_sizes": [],
            "device": result["device"],
            "use_cache": None,
            "limit": data.limit,
            "bootstrap_iters": 0,
            "gen_kwargs": _generation(config),
            "random_seed": config.seed,
        },
        "git_hash": None,
        "date": time.time(),
        "othink_jax_version": result["versions"]["othink_jax"],
        "transformers_version": result["versions"]["transformers"],
        "model_source": "othink_jax",
        "model_name": config.model,
        "model_name_sanitized": _NO_FILE_NAME.sub("__", config.model),
        "system_instruction": data.system_prompt,
        "total_evaluation_time_seconds": str(result["seconds"]),
    }


def _by_question(config: EvaluateConfig, judged: Judged) -> dict[str, Sequence[float]]:
    """Values of each metric, one per question."""
    values: dict[str, Sequence[float]] = {"acc": means_of(judged.right, config.samples)}
    if judged.sampled is not None:
        values |= {f"pass@{k}": shares for k, shares in judged.sampled.pass_at.items()}
        values[f"maj@{config.samples}"] = judged.sampled.voted
    return values


def _metrics(values: Mapping[str, Sequence[float]], shown: Sequence[Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, held in values.items():
        error = clustered_error(held, shown)
        made[f"{name},none"] = statistics.fmean(held)
        made[f"{name}_stderr,none"] = "N/A" if error is None else error
    return made


def _task(config: EvaluateConfig, task: str, metrics: Sequence[str]) -> dict[str, Any]:
    data = config.data
    return {
        "task": task,
        "dataset_path": data.dataset_name,
        "test_split": data.split if data.has_splits else None,
        "output_type": "generate_until",
        "doc_to_text": data.template,
        "num_fewshot": 0,
        "repeats": config.samples,
        "generation_kwargs": _generation(config),
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in metrics
        ],
        "metadata": {"version": 1.0, "grader": config.reward.grader},
    }


def _generation(config: EvaluateConfig) -> dict[str, Any]:
    sampling = config.sampling
    return {
        "do_sample": sampling.temperature > 0,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_gen_toks": sampling.max_new_tokens,
    }
