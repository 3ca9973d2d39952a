"""How tables show shares."""

from collections.abc import Sequence

from othink_jax.statistics import mean_interval

# What the intervals of a table are taken over.
OVER_SEEDS = "In parentheses: over seeds of training (Student's t, 95%), for these questions"
OVER_CONTENTS = "of the base, over what the questions show"


def percent(value: float) -> str:
    """A share, in percent."""
    return f"{round(100 * value, 1) + 0.0:.1f}"  # no minus before 0.0


def published(value: float) -> str:
    """A share of the paper, in percent, with the two decimals that the paper gives."""
    return f"{100 * value:.2f}"


def with_interval(value: float, low: float, high: float) -> str:
    """A share and its interval, in percent."""
    return f"{percent(value)} ({percent(low)} to {percent(high)})"


def over_first(values: Sequence[float], first: Sequence[float]) -> str:
    """What a setting has over the first one, in points, seed by seed."""
    if values is first:
        return ""
    return with_interval(*mean_interval([b - a for a, b in zip(first, values, strict=True)]))
