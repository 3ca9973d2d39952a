"""Formatting of shares in tables."""

from collections.abc import Sequence
from statistics import fmean

from experiments.lab.scores import Score
from othink_jax.statistics import mean_interval

# Notes for tables: what the intervals are taken over.
OVER_SEEDS = "In parentheses: over seeds of training (Student's t, 95%), for these questions"
OVER_CONTENTS = "of the base, over what the questions show"
# The graders: the name of a column, and the note in a title about all other columns.
R1V = "R1-V's grader"
STRICT = "strict grader where not said"


def percent(value: float) -> str:
    """A share, in percent."""
    return f"{round(100 * value, 1) + 0.0:.1f}"  # no minus before 0.0


def published(value: float) -> str:
    """A share of the paper, in percent, with the two decimals that the paper gives."""
    return f"{100 * value:.2f}"


def with_interval(value: float, low: float, high: float) -> str:
    """A share and its interval, in percent."""
    return f"{percent(value)} ({percent(low)} to {percent(high)})"


def over_seeds(values: Sequence[float]) -> str:
    """Mean of shares, one per seed, with its interval; a single share is shown alone."""
    return percent(values[0]) if len(values) == 1 else with_interval(*mean_interval(values))


def summary(scores: Sequence[Score]) -> str:
    """Mean accuracy and its interval: over seeds, or over the test set if there is one model."""
    if len(scores) == 1:
        return with_interval(scores[0].accuracy, *scores[0].interval)
    return over_seeds([score.accuracy for score in scores])


def both_columns() -> list[str]:
    """Column titles of `both`."""
    names = ("greedy", "sampled")
    return [part for name in names for part in (name, f"{name}, {R1V}", f"{name}, every seed")]


def both(greedy: Sequence[Score], sampled: Sequence[Score]) -> list[str]:
    """Table cells of a model on the two tests of a task: both graders, and every seed."""
    tests = (greedy, sampled)
    return [part for one in tests for part in (summary(one), r1v_mean(one), every_seed(one))]


def r1v_mean(scores: Sequence[Score]) -> str:
    """Mean accuracy by R1-V's grader, with which the paper's numbers were made."""
    return percent(fmean(score.accuracy_r1v for score in scores))


def every_seed(scores: Sequence[Score]) -> str:
    """The accuracy of every seed."""
    return " ".join(percent(score.accuracy) for score in scores)


def over_first(scores: Sequence[Score], first: Sequence[Score]) -> str:
    """Accuracy of a setting minus that of the first one, in points, paired by seed."""
    if scores is first:
        return ""
    return over_seeds([b.accuracy - a.accuracy for a, b in zip(first, scores, strict=True)])
