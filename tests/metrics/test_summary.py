import json
import statistics
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medpair.metrics.summary import bootstrap_interval, summarize


def test_mean_of_many_normal_values_has_the_normal_interval():
    n = 400
    values = np.random.default_rng(0).normal(3.0, 2.0, n)
    half = statistics.NormalDist().inv_cdf(0.95) * values.std() / np.sqrt(n)
    low, high = bootstrap_interval(values, level=0.9)
    # An end of the interval from 10,000 resamples is good to about 2 % of its half width.
    assert low == pytest.approx(values.mean() - half, abs=0.06 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.06 * half)


def test_interval_is_corrected_for_skew():
    # Exponential quantiles, skewness g near 2. The middle of the exact interval lies
    # (2 z^2 + 1) g / (6 n) standard deviations above the mean, that of BCa too; the percentile
    # interval's only (z^2 - 1) g / (6 n), a third as much (Efron 1987; Hall 1988, Ann Stat 16:927).
    n, z = 200, 1.96
    values = -np.log1p(-(np.arange(n) + 0.5) / n)
    skew = np.mean((values - values.mean()) ** 3) / values.std() ** 3
    middle = np.mean(bootstrap_interval(values)) - values.mean()
    expected = values.std() * skew * (2 * z**2 + 1) / (6 * n)
    assert middle == pytest.approx(expected, rel=0.3)


def test_two_values_can_only_give_their_own_ends():
    # Half of all resamples have mean 1.5, a quarter each 1 and 2.
    assert bootstrap_interval([1, 2]) == (1.0, 2.0)
    assert bootstrap_interval([1, 2], level=0.4) == (1.5, 1.5)


def test_percentiles_where_bca_is_undefined():
    # Leaving out any one value leaves the median 0, so the acceleration is 0 / 0. A resample has
    # median 1 with probability 0.14: more than an 80 % interval's tail, less than a 60 %'s.
    values = [0] * 6 + [1] * 3
    assert bootstrap_interval(values, np.median, level=0.8) == (0.0, 1.0)
    assert bootstrap_interval(values, np.median, level=0.6) == (0.0, 0.0)


@pytest.mark.filterwarnings("error")
def test_says_nothing_on_degenerate_values():
    bootstrap_interval([0] * 6 + [1] * 3, np.median)
    summarize([1.0])
    summarize([1.0, 1.0])
    summarize([])


@pytest.mark.parametrize("values", [[4.0], [4.0, 4.0], [4.0] * 30])
def test_no_spread_gives_the_statistic_twice(values):
    assert bootstrap_interval(values) == (4.0, 4.0)
    assert bootstrap_interval(values, np.sum) == (4.0 * len(values), 4.0 * len(values))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(-1000, 1000), min_size=2, max_size=12, unique=True),
    st.sampled_from([0.125, 1.0, 64.0]),
    st.integers(-100, 100),
)
def test_follows_a_change_of_unit(values, scale, offset):
    # Powers of two and whole numbers, so that resamples with equal means stay equal.
    low, high = bootstrap_interval(values, resamples=200)
    changed = bootstrap_interval(scale * np.array(values) + offset, resamples=200)
    expected = scale * low + offset, scale * high + offset
    assert changed == pytest.approx(expected, abs=1e-6 * scale * np.ptp(values))


def test_wider_level_gives_a_wider_interval():
    values = np.random.default_rng(1).exponential(size=25)
    ends = [bootstrap_interval(values, level=level) for level in (0.5, 0.9, 0.99)]
    lows, highs = zip(*ends, strict=True)
    assert lows[0] > lows[1] > lows[2]
    assert highs[0] < highs[1] < highs[2]


def test_seed_and_resamples_reach_the_resampling():
    values = np.random.default_rng(2).normal(size=15)
    first = bootstrap_interval(values, resamples=500)
    assert bootstrap_interval(values, resamples=500) == first
    assert bootstrap_interval(values, resamples=500, seed=1) != first
    assert bootstrap_interval(values, resamples=501) != first


def test_statistic_without_axis_gives_the_same_interval():
    values = np.random.default_rng(3).normal(size=15)
    plain = bootstrap_interval(values, lambda sample: float(np.mean(sample)), resamples=500)
    assert plain == pytest.approx(bootstrap_interval(values, resamples=500), rel=1e-12)


def test_many_values_fit_in_a_few_batches():
    # 40 million resampled values: 320 MB as float64, and as much again for their indices.
    values = np.arange(4_000) % 100
    tracemalloc.start()
    low, high = bootstrap_interval(values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    half = 1.96 * values.std() / np.sqrt(values.size)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)


@pytest.mark.parametrize("values", [[0.9, 0.8, 0.85, 0.1], [3, 1], np.float32([1, 2, 4, 8, 16])])
def test_summary(values):
    summary = summarize(values, level=0.8, resamples=300, seed=5)
    numbers = [float(value) for value in values]
    low, high = bootstrap_interval(values, np.mean, 0.8, 300, 5)
    assert summary == {
        "n": len(numbers),
        "mean": pytest.approx(statistics.fmean(numbers), rel=1e-12),
        "std": pytest.approx(statistics.stdev(numbers), rel=1e-12),
        "low": low,
        "high": high,
        "median": pytest.approx(statistics.median(numbers), rel=1e-12),
    }
    assert [type(value) for value in summary.values()] == [int] + [float] * 5
    assert json.loads(json.dumps(summary)) == summary


def test_summary_of_one_value():
    expected = {"n": 1, "mean": 0.5, "std": 0.0, "low": 0.5, "high": 0.5, "median": 0.5}
    assert summarize([0.5]) == expected


def test_summary_of_nothing():
    expected = {"n": 0, "mean": None, "std": None, "low": None, "high": None, "median": None}
    assert summarize([]) == expected


def test_refuses_bad_values():
    for measure in (bootstrap_interval, summarize):
        with pytest.raises(ValueError, match=r"values: .* found 2 of 3 that are not$"):
            measure([1.0, np.nan, np.inf])
        with pytest.raises(ValueError, match=r"values: .* found shape \(2, 2\)$"):
            measure(np.ones((2, 2)))
    with pytest.raises(ValueError, match=r"values: expected at least one number, found none$"):
        bootstrap_interval([])


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, float("nan")])
def test_refuses_a_level_outside_0_and_1(level):
    with pytest.raises(ValueError, match=f"level: .* found {level}$"):
        bootstrap_interval([1, 2, 3], level=level)


def test_refuses_no_resamples():
    with pytest.raises(ValueError, match=r"resamples: .* found 0$"):
        bootstrap_interval([1, 2, 3], resamples=0)
