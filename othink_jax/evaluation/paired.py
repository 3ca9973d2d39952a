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

# Of a result, what the comparison repeats.
_SHOWN = ("model", "accuracy", "interval", "pass_at", "majority")
# Of all results of a comparison.
_SHARED = ("examples", "n", "grader", "decoding", "samples")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
    """What is compared of a model's answers."""

    result: Mapping[str, Any]  # contents of result.json
    questions: Mapping[int, tuple[str, str, str]]  # by number: id, question, ground truth
    right: Mapping[int, Sequence[bool]]  # by the number of a question, sample after sample

    @classmethod
    def of(cls, result: Mapping[str, Any], judged: Judged) -> Self:
        """Of an evaluation."""
        questions: dict[int, tuple[str, str, str]] = {}
        right: dict[int, list[bool]] = {}
        for one, verdict in zip(judged.predictions, judged.chosen, strict=True):
            questions[one.number] = one.id, one.question, one.ground_truth
            right.setdefault(one.number, []).append(bool(verdict.accuracy))
        return cls(result=result, questions=questions, right=right)


def compared(answered: Mapping[str, Answered], config: EvaluateConfig) -> dict[str, Any]:
    """All pairs of models, by McNemar's test, corrected for being several (Holm).

    Questions that show the same thing, as far as that is known (of a synthetic task), are taken
    together, and so are all samples of a question: see `mcnemar`.

    Args:
      answered: by the names of the models, at least two.
      config: of one of them, for what the questions show.

    Returns:
      What all results share, `models` by name, and `pairs`: of each `first` and `second`, the
      `difference` of their accuracies (second minus first) and its 95% `interval` (None, where no
      question tells them apart), how many questions the `first_better` and the `second_better`
      answers, and `p`, and `p_holm`.

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
    """What each question shows, by its number.

    Of a data set that is not known, and a question stands for itself.
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
    """By name of a setting what each model has, where they are not asked in the same way."""
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
