"""Intervals and tests: published values, values by hand, exact properties."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from othink_jax.statistics import clustered_interval, holm, mcnemar, mean_interval, wilson_interval


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_equals_published_values(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


counts = st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts)
def test_holds_the_proportion_and_stays_within_zero_and_one(count: tuple[int, int]) -> None:
    correct, n = count
    low, high = wilson_interval(correct, n)
    assert 0.0 <= low <= correct / n <= high <= 1.0
    assert (low == 0.0) == (correct == 0)
    assert (high == 1.0) == (correct == n)


@given(counts)
def test_ends_solve_the_score_equation(count: tuple[int, int]) -> None:
    # The ends are the proportions p at distance z standard errors, the error taken at p itself.
    correct, n = count
    z = 1.959963984540054
    for p in wilson_interval(correct, n):
        assert (correct / n - p) ** 2 == pytest.approx(z**2 * p * (1 - p) / n, rel=1e-6, abs=1e-12)


@given(counts)
def test_mirrors_right_and_wrong(count: tuple[int, int]) -> None:
    correct, n = count
    low, high = wilson_interval(correct, n)
    assert wilson_interval(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_narrows_with_more_trials_and_widens_with_confidence() -> None:
    def width(interval: tuple[float, float]) -> float:
        return interval[1] - interval[0]

    assert width(wilson_interval(500, 1000)) < width(wilson_interval(50, 100))
    assert width(wilson_interval(50, 100, 0.99)) > width(wilson_interval(50, 100))
    # For many trials it is the normal approximation: 1.96 * sqrt(0.25 / n) on either side.
    half = width(wilson_interval(500_000, 1_000_000)) / 2
    assert half == pytest.approx(1.959964 * math.sqrt(0.25 / 1_000_000), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), "n must be"),
        ((-1, 5), "correct must be"),
        ((6, 5), "correct must be"),
        ((1, 5, 1.0), "confidence must be"),
        ((1, 5, float("nan")), "confidence must be"),
    ],
)
def test_numbers_out_of_range_are_named(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson_interval(*arguments)


def test_mean_interval_over_seeds_by_hand():
    """t(0.975, 4) = 2.776; the standard error of 1..5 is sqrt(2.5 / 5)."""
    mean, low, high = mean_interval([1, 2, 3, 4, 5])
    assert mean == 3
    assert (high - mean, mean - low) == pytest.approx((2.776 * 0.70711,) * 2, rel=1e-3)
    with pytest.raises(ValueError, match="at least two values, got 1"):
        mean_interval([1.0])


def test_mcnemar_looks_only_at_items_on_which_the_methods_differ():
    """Six to nothing: 2 / 2^6. Six to two: 2 * (1 + 8 + 28) / 2^8."""
    agree = [True] * 50 + [False] * 30
    assert mcnemar(agree + [True] * 6, agree + [False] * 6) == pytest.approx(2 / 64)
    first, second = [True] * 6 + [False] * 2, [False] * 6 + [True] * 2
    assert mcnemar(first, second) == mcnemar(second, first) == pytest.approx(2 * 37 / 256)
    assert mcnemar(agree, agree) == 1.0
    with pytest.raises(ValueError, match="zip"):
        mcnemar([True], [True, False])


def test_mcnemar_of_clusters_flips_them_whole():
    """Sizes 3, 2 and 1, all to one side: 2 of 8 signs. One item each: McNemar's own."""
    first, second = [True] * 6, [False] * 6
    assert mcnemar(first, second, [*"aaabbc"]) == pytest.approx(2 / 8)
    assert mcnemar(first, second, [*"aaaaaa"]) == 1.0
    # 3 + 1 - 2: sums as far from 0 as 2 are those of all signs but +-(3 - 2 - 1).
    assert mcnemar(
        [True] * 3 + [False] * 2 + [True], [*([False] * 3), True, True, False], [*"aaabbc"]
    ) == pytest.approx(6 / 8)
    rng = np.random.default_rng(0)
    first, second = rng.random((2, 400)) < 0.5
    expected = stats.binomtest(int((first & ~second).sum()), int((first != second).sum())).pvalue
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_an_interval_of_clusters_is_that_of_so_many_independent_ones():
    """100 coins, each seen five times: as wide as for 100, not as for 500."""
    coins = [number % 2 == 0 for number in range(100)]
    seen = [coin for coin in coins for _ in range(5)]
    of_coins = clustered_interval(coins, range(100))
    repeated = clustered_interval(seen, [number for number in range(100) for _ in range(5)])
    assert repeated == pytest.approx(of_coins)
    # t(0.975, 99) = 1.984, standard error 0.05 * sqrt(100 / 99).
    assert of_coins[1] - 0.5 == pytest.approx(1.984 * 0.05 * math.sqrt(100 / 99), rel=1e-3)
    low, high = clustered_interval(seen, range(500))
    assert high - low < (of_coins[1] - of_coins[0]) / 2
    assert clustered_interval([True, False], ["a", "a"]) == (0.0, 1.0)


def test_holm_by_hand():
    """Three times the least, twice the next, once the last; never less than one before it."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.5]) == [1.0, 1.0]
    assert holm([]) == []
