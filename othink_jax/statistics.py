"""Confidence intervals and tests of accuracies: on a test set, over seeds, between methods."""

import collections
import math
import statistics
from collections.abc import Hashable, Mapping, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy import stats


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927, without continuity correction).

    Unlike the normal approximation it stays within [0, 1] and keeps its width at 0 and n correct.

    Args:
      correct: how many of the `n` trials succeeded.
      n: trials, at least one.
      confidence: two-sided coverage, strictly between 0 and 1.

    Returns:
      Lower and upper end, as proportions.

    Raises:
      ValueError: a number is out of its range.
    """
    if n < 1:
        raise ValueError(f"n must be >= 1, got {n}")
    if not 0 <= correct <= n:
        raise ValueError(f"correct must be between 0 and n={n}, got {correct}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Exactly 0 and 1 at the extremes; rounding would leave 1e-17 beyond them.
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == n else centre + half
    return low, high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few independent measurements, one per seed, and its interval by Student's t.

    Args:
      values: at least two.
      confidence: two-sided coverage, strictly between 0 and 1.

    Returns:
      Mean, lower and upper end, in the unit of the values.

    Raises:
      ValueError: fewer than two values, or `confidence` out of its range.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least two values, got {len(values)}")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    mean = statistics.fmean(values)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return mean, mean - half, mean + half


def share_interval(shares: Sequence[float]) -> tuple[float, float]:
    """95% interval of the mean of independent shares, such as of right answers per question.

    It is Wilson's if all shares are 0 or 1, else Student's t, clipped to [0, 1]. A single share
    strictly between 0 and 1 gives [0, 1].

    Args:
      shares: in [0, 1], at least one.
    """
    low, high = _interval(shares) or (0.0, 1.0)
    return max(0.0, low), min(1.0, high)


def means_of(values: Sequence[float], count: int) -> list[float]:
    """Means of consecutive groups of `count` values; `count` divides the number of values."""
    return np.reshape(values, (-1, count)).mean(axis=1).tolist()


def summaries(
    measured: Mapping[str, Mapping[str, Any]], *, samples: int = 1
) -> dict[str, dict[str, Any]]:
    """Mean of named measurements, its 95% interval, and the share that reaches the maximum.

    The interval is Wilson's if all values are 0 or 1, else Student's t; None for a single value
    other than 0 or 1.

    Args:
      measured: by name, `values`, at least one; `maximum`, the value that counts as full; and
        `failed`, the number of values that stand for a failure.
      samples: number of consecutive values that belong to one item. Items are independent, and the
        interval is that of the item means.

    Returns:
      By name, `mean`, `interval` (a list of two, or None), `full_share` and `failed`.
    """
    return {
        name: {
            "mean": statistics.fmean(one["values"]),
            "interval": _interval(means_of(one["values"], samples)),
            "full_share": statistics.fmean(value >= one["maximum"] for value in one["values"]),
            "failed": one["failed"],
        }
        for name, one in measured.items()
    }


def _interval(values: Sequence[float]) -> list[float] | None:
    if all(value in (0, 1) for value in values):
        return list(wilson_interval(round(sum(values)), len(values)))
    return list(mean_interval(values)[1:]) if len(values) > 1 else None


def clustered_interval(
    correct: Sequence[bool], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of an accuracy over clustered items, by a robust standard error.

    Items of one cluster may depend on each other: the variance is that between clusters (Liang and
    Zeger 1986), with Student's t of (number of clusters - 1) degrees of freedom.

    Args:
      correct: whether each item was right.
      clusters: the cluster of each item.
      confidence: two-sided coverage.

    Returns:
      Lower and upper end, as proportions, within [0, 1].
    """
    share, error = statistics.fmean(correct), clustered_error(correct, clusters)
    if error is None:
        return 0.0, 1.0
    half = float(stats.t.ppf(0.5 + confidence / 2, len(set(clusters)) - 1)) * error
    return max(0.0, share - half), min(1.0, share + half)


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float | None:
    """Standard error of a mean over clustered items, see `clustered_interval`.

    With a cluster for each item, it is that of independent items. None for fewer than two clusters.
    """
    mean = statistics.fmean(values)
    sums: dict[Hashable, float] = collections.defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    count = len(sums)
    if count < 2:
        return None
    squares = sum(value * value for value in sums.values())
    return math.sqrt(squares * count / (count - 1)) / len(values)


def difference_interval(
    differences: Sequence[float], clusters: Sequence[Hashable], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Interval of the mean of paired differences, computed as in `clustered_interval`.

    Args:
      differences: in [-1, 1], between what two methods get right, item by item.
      clusters: the cluster of each item.
      confidence: two-sided coverage.

    Returns:
      Lower and upper end, within [-1, 1]; None if all differences are the same, as their spread is
      then unknown.
    """
    error = clustered_error(differences, clusters)
    if not error:
        return None
    mean = statistics.fmean(differences)
    half = float(stats.t.ppf(0.5 + confidence / 2, len(set(clusters)) - 1)) * error
    return max(-1.0, mean - half), min(1.0, mean + half)


def mcnemar(
    first: Sequence[bool], second: Sequence[bool], clusters: Sequence[Hashable] | None = None
) -> float:
    """Exact two-sided p-value of the hypothesis that two methods are right equally often.

    McNemar's test (1947): only items that exactly one method has right carry information. If the
    methods are equally good, each of these favours either method with probability one half.
    Clustered items are tested together: the sign of a cluster's difference is flipped instead (a
    sign-flip test). With a cluster for each item, the two tests are the same.

    Args:
      first, second: whether each method was right, item by item on the same test.
      clusters: the cluster of each item; by default every item is its own cluster.

    Raises:
      ValueError: the numbers of items differ.
    """
    differences: collections.Counter[Hashable] = collections.Counter()
    names = range(len(first)) if clusters is None else clusters
    for a, b, cluster in zip(first, second, names, strict=True):
        differences[cluster] += int(a) - int(b)
    sizes = [abs(value) for value in differences.values() if value]
    # Probability of each signed sum of the sizes, both signs equally likely; the middle is sum 0.
    chance = np.ones(1)
    for size in sizes:
        wider = np.zeros(len(chance) + 2 * size)
        wider[: len(chance)] += chance / 2
        wider[2 * size :] += chance / 2
        chance = wider
    sums = np.arange(len(chance)) - sum(sizes)
    return min(1.0, float(chance[np.abs(sums) >= abs(sum(differences.values()))].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for multiple tests (Holm 1979), in the order given.

    A hypothesis whose corrected value is below a level may be rejected at that level: if all
    hypotheses are true, the probability to reject any of them is at most that level.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
