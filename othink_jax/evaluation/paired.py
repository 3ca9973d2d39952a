"""Paired tests between models that have answered the same questions."""

import dataclasses
import itertools
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Self

from othink_jax.config import EvaluateConfig, asked_settings, to_dict
from othink_jax.data.synthetic import LEVELS
from othink_jax.data.synthetic.source import sample_problem
from othink_jax.errors import UserError
from othink_jax.evaluation.kept import flat
from othink_jax.evaluation.result import Judged
from othink_jax.statistics import difference_interval, holm, mcnemar

# Entries of each result that the comparison repeats.
_SHOWN = ("model", "accuracy", "interval", "pass_at", "majority")
# Entries that all results of a comparison share.
_SHARED = ("examples", "n", "grader", "decoding", "samples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """A model's answers, as far as they are compared."""

    result: Mapping[str, Any]  # contents of result.json
    questions: Mapping[int, tuple[str, str, str]]  # by number: id, question, ground truth
    right: Mapping[int, Sequence[bool]]  # by question number, one per sample

    @classmethod
    def of(cls, result: Mapping[str, Any], judged: Judged) -> Self:
        """From the result and the judged answers of an evaluation."""
        questions: dict[int, tuple[str, str, str]] = {}
        right: dict[int, list[bool]] = {}
        for one, verdict in zip(judged.predictions, judged.chosen, strict=True):
            questions[one.number] = one.id, one.question, one.ground_truth
            right.setdefault(one.number, []).append(bool(verdict.accuracy))
        return cls(result=result, questions=questions, right=right)


def compared(answered: Mapping[str, Answered], config: EvaluateConfig) -> dict[str, Any]:
    """McNemar's test between all pairs of models, corrected for multiple tests (Holm).

    Questions that show the same thing, if that is known (in a synthetic task), form a cluster, and
    so do all samples of a question: see `mcnemar`.

    Args:
      answered: by model name, at least two.
      config: settings of one evaluation, which say what the questions show.

    Returns:
      The entries that all results share, `models` by name, and `pairs`. A pair has `first` and
      `second`; the `difference` of their accuracies (second minus first) and its 95% `interval`
      (None if no question tells them apart); `first_better` and `second_better`, the number of
      questions that each answers better; and the p-values `p` and `p_holm`.

    Raises:
      UserError: they have not answered the same questions.
    """
    _check_same(answered)
    shown = next(iter(answered.values()))
    contents = contents_of(config, sorted(shown.questions))
    pairs = [
        {"first": a, "second": b, **_pair(answered[a], answered[b], contents)}
        for a, b in itertools.combinations(answered, 2)
    ]
    corrected = holm([pair["p"] for pair in pairs])
    return {
        **{name: shown.result[name] for name in _SHARED if name in shown.result},
        "models": {
            name: {key: one.result[key] for key in _SHOWN if key in one.result}
            for name, one in answered.items()
        },
        "pairs": [{**pair, "p_holm": p} for pair, p in zip(pairs, corrected, strict=True)],
    }


def _check_same(answered: Mapping[str, Answered]) -> None:
    (first, shown), *others = answered.items()
    for name, one in others:
        if one.questions != shown.questions:
            raise UserError(
                f"{first} and {name} have not answered the same questions: the data has changed"
                " meanwhile; give another --out"
            )


def contents_of(config: EvaluateConfig, numbers: Iterable[int]) -> dict[int, Hashable]:
    """Content that each question shows, by the question's number.

    For a data set it is unknown, and each question is its own content.
    """
    data = config.data
    if data.task is None:
        return {number: number for number in numbers}
    level = LEVELS[data.task][data.difficulty]
    return {
        number: sample_problem(
            data.task, data.split, number, seed=data.limit_seed, difficulty=level
        ).content
        for number in numbers
    }


def _pair(first: Answered, second: Answered, contents: Mapping[int, Hashable]) -> dict[str, Any]:
    differences = [
        statistics.fmean(second.right[number]) - statistics.fmean(first.right[number])
        for number in contents
    ]
    interval = difference_interval(differences, list(contents.values()))
    return {
        "difference": statistics.fmean(differences),
        "interval": None if interval is None else list(interval),
        "first_better": sum(difference < 0 for difference in differences),
        "second_better": sum(difference > 0 for difference in differences),
        "p": mcnemar(
            [right for number in contents for right in first.right[number]],
            [right for number in contents for right in second.right[number]],
            [shown for number, shown in contents.items() for _ in first.right[number]],
        ),
    }


def asked_otherwise(configs: Mapping[str, EvaluateConfig]) -> dict[str, dict[str, Any]]:
    """Settings by which the models are asked differently: by setting, the value of each model."""
    asked = {
        name: dict(flat(asked_settings(to_dict(config), greedy=config.sampling.temperature == 0)))
        for name, config in configs.items()
    }
    settings = dict.fromkeys(itertools.chain.from_iterable(asked.values()))
    found = {
        setting: {name: one.get(setting) for name, one in asked.items()} for setting in settings
    }
    return {
        setting: values
        for setting, values in found.items()
        if any(value != values[next(iter(configs))] for value in values.values())
    }
