"""Accuracy of a model over a test set, with its confidence interval."""

from typing import Any

import jax

from othink_jax.checkpoint.load import Checkpoint, load
from othink_jax.config import EvaluateConfig
from othink_jax.data.sources import Source, open_source
from othink_jax.data.stream import ENDLESS
from othink_jax.errors import UserError
from othink_jax.evaluation.answers import predict
from othink_jax.evaluation.grading import answers_of, grade, graders, score
from othink_jax.evaluation.groups import read_groups
from othink_jax.evaluation.harness import write_harness_results
from othink_jax.evaluation.kept import PARTIAL, Kept, what_is_evaluated
from othink_jax.evaluation.result import RESULT, Judged, result_of, write_result
from othink_jax.evaluation.samples import over_samples
from othink_jax.files import check_output_directory
from othink_jax.training.parallel import make_parallel
from othink_jax.training.run_rewards import load_rewards


def evaluate(config: EvaluateConfig, *, checkpoint: Checkpoint | None = None) -> dict[str, Any]:
    """Evaluate a model and write `predictions.jsonl` and `result.json` into `config.out`.

    With `lm_eval_json` the results are also written in the format of other tools, see `harness`.

    Answers are stored there as they are generated. An interrupted evaluation continues from them,
    and its result is that of an uninterrupted one.

    Args:
      config: model, test set and settings.
      checkpoint: the model, if it is already loaded; else `config.model` is loaded.

    Returns:
      The contents of result.json: `accuracy` by the chosen grader; `interval` (95%, over questions,
      see `share_interval`); the accuracy by each grader (R1-V's only if the task of the data set is
      known); the shares of right format and of truncated completions; counts; and seconds. A
      question that cannot be read counts as wrong, and in `unreadable`. With several samples per
      question, all these are means over completions, except `n` and `unreadable`, which count
      questions; `samples` and the entries of `Sampled.summary` are added. `--by` adds `by`, see
      `over_groups`. `--reward` adds `rewards`: `statistics.summaries` of each function by name, and
      of `total`, their weighted sum.

    Raises:
      UserError: `config.out` already holds a result, or answers of another evaluation; it cannot be
        written; not one question can be read; some do not fit into memory; a stream has no limit; a
        column does not exist or has too many values; a reward function cannot be loaded, or fails
        on every answer.
    """
    return evaluated(config, checkpoint=checkpoint)[0]


def evaluated(
    config: EvaluateConfig, *, checkpoint: Checkpoint | None = None, keep: bool = False
) -> tuple[dict[str, Any], Judged]:
    """As `evaluate`; also returns the answers and the verdicts on them.

    Args:
      config, checkpoint: as in `evaluate`.
      keep: leave the file of stored answers. Repeating the same evaluation then generates no answer
        again, uses none of another model, data or settings, and replaces the result.
    """
    rewards = load_rewards(config.reward)
    check_place(config, keep=keep)
    if jax.process_count() > 1:
        raise UserError("an evaluation runs in one process, on all of its devices")
    parallel = make_parallel(config.parallel)
    source = _opened(config)
    groups = read_groups(source, config.by)
    if checkpoint is None:
        checkpoint = load(
            config.model,
            dtype=config.dtype,
            lazy=config.parallel.strategy != "jit",  # neither device nor host holds it twice
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
        chosen = verdicts[config.reward.grader]
        sampled = None
        if config.samples > 1:
            sampled = over_samples(answers_of(predictions, config), chosen, config.samples)
        judged = Judged(
            predictions=predictions,
            verdicts=verdicts,
            chosen=chosen,
            scores=score(predictions, config, rewards),
            sampled=sampled,
        )
        result = result_of(config, judged, rewards=rewards, groups=groups, seconds=kept.seconds)
        if config.lm_eval_json:
            write_harness_results(config, judged, result)
        write_result(config.out, judged, result)
        if not keep:
            kept.discard()
    return result, judged


def check_place(config: EvaluateConfig, *, keep: bool = False) -> None:
    """Raise UserError if no result can be written, or if one exists; see `evaluated`."""
    check_output_directory(config.out)
    if (config.out / RESULT).exists() and not (keep and (config.out / PARTIAL).exists()):
        raise UserError(f"{config.out} holds a result already; give another --out or remove it")


def _opened(config: EvaluateConfig) -> Source:
    if config.data.weights is not None:
        raise UserError(
            "weights of data sets say how often training draws from them; an evaluation asks each"
            " question once: give --dataset without them"
        )
    source = open_source(config.data, size=config.count, columns=True)
    if len(source) == ENDLESS:
        raise UserError("a stream has no end: give --limit, or leave --streaming out")
    return source
