"""Confidence of accuracies: of one on a finite test set, over seeds, and of one against another."""

import math
import statistics
from collections.abc import Sequence
from statistics import NormalDist

from scipy import stats


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927, without continuity correction).

    Unlike the normal approximation it stays within [0, 1] and keeps its width at 0 and at n right.

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
    # The ends are exactly 0 and 1 there; rounding would leave 1e-17 beyond them.
    low = 0.0 if correct == 0 else centre - half
    high = 1.0 if correct == n else centre + half
    return low, high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few independent measurements, one a seed, and its interval by Student's t.

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


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value that two methods are right equally often (McNemar 1947).

    Only items that one method has right and the other wrong tell anything; if the methods are
    equally good, each of these falls to either side with probability one half.

    Args:
      first, second: whether each method was right, item for item the same test.

    Raises:
      ValueError: the numbers of items differ.
    """
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    if only_first + only_second == 0:
        return 1.0
    return float(stats.binomtest(only_first, only_first + only_second).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for being several (Holm 1979), in the order given.

    A hypothesis whose corrected value is below a level may be rejected at that level: with all
    hypotheses true, the chance to reject even one is no higher.
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
