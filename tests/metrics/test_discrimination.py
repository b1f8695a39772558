import json
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import nhypergeom, norm
from sklearn.metrics import roc_auc_score

from medpair.metrics.discrimination import auc, auc_interval, below_share_test


def test_auc_by_hand():
    assert auc([3, 4], [1, 2]) == 1
    assert auc([1, 2], [3, 4]) == 0
    assert auc([2, 2], [2]) == 0.5
    # pairs won: 1 of 3, 2 of 3 and a tie
    assert auc([1.5, 3], [1, 2, 3]) == pytest.approx((1 + 2.5) / 6)


def test_auc_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    positive, negative = rng.integers(0, 9, 40) + 2, rng.integers(0, 9, 25)
    expected = roc_auc_score(np.repeat([1, 0], [40, 25]), np.concatenate([positive, negative]))
    assert auc(positive, negative) == pytest.approx(expected, rel=1e-12)
    assert auc(negative, positive) == pytest.approx(1 - expected, rel=1e-12)


def delong_by_definition(positive, negative):
    wins = np.array([[(p > n) + 0.5 * (p == n) for n in negative] for p in positive])
    area = wins.mean()
    of_positive = ((wins.mean(axis=1) - area) ** 2).sum() / (len(positive) - 1)
    of_negative = ((wins.mean(axis=0) - area) ** 2).sum() / (len(negative) - 1)
    return area, of_positive / len(positive) + of_negative / len(negative)


def test_interval_is_delongs_where_that_is_the_wider():
    """Positives of twice the spread: more variance than the group sizes tell."""
    rng = np.random.default_rng(3)
    positive, negative = np.rint(6 * rng.normal(size=15) + 4), np.rint(3 * rng.normal(size=150))
    area, variance = delong_by_definition(positive, negative)
    reach = norm.ppf(0.95) * np.sqrt(variance) / (area * (1 - area))
    odds = area / (1 - area) * np.exp([-reach, reach])
    found = auc_interval(positive, negative, level=0.9)
    assert found == pytest.approx(tuple(odds / (1 + odds)), rel=1e-9)


@pytest.mark.parametrize("sizes", [(2, 2), (5, 9), (30, 30), (500, 500)])
def test_perfect_separation_has_a_width(sizes):
    positive, negative = np.arange(sizes[0]) + 1000.0, np.arange(sizes[1])
    low, high = auc_interval(positive, negative)
    assert high == 1
    assert 0 < low < 1
    # the end is where the score statistic is the normal quantile
    mean_size = sum(sizes) / 2
    scale = 1 + (mean_size - 1) * ((1 - low) / (2 - low) + low / (1 + low))
    score = (1 - low) / np.sqrt(low * (1 - low) * scale / np.prod(sizes))
    assert score == pytest.approx(norm.ppf(0.975), rel=1e-6)
    mirrored = auc_interval(negative, positive)
    assert mirrored == pytest.approx((0, 1 - low), abs=1e-9)


def test_interval_holds_the_area_and_narrows():
    rng = np.random.default_rng(0)
    for count in (4, 20, 100):
        positive, negative = rng.normal(size=count) + 1, rng.normal(size=count)
        low, high = auc_interval(positive, negative)
        assert 0 <= low < auc(positive, negative) < high <= 1
        inner = auc_interval(positive, negative, level=0.5)
        assert low < inner[0] < inner[1] < high
    assert high - low < 0.2
    ties = auc_interval(np.ones(10), np.ones(10))
    assert ties[0] == pytest.approx(1 - ties[1])
    assert ties[0] < 0.4


@pytest.mark.parametrize("area", [0.5, 0.9, 0.98])
@pytest.mark.parametrize(("count", "other", "spread"), [(15, 15, 1.0), (20, 60, 2.0)])
def test_coverage(area, count, other, spread):
    rng = np.random.default_rng(0)
    shift = norm.ppf(area) * np.hypot(1, spread)
    inside = []
    for _ in range(300):
        positive = spread * rng.normal(size=count) + shift
        low, high = auc_interval(positive, rng.normal(size=other))
        inside.append(low <= area <= high)
    # three standard errors under 0.95
    assert np.mean(inside) >= 0.91


@pytest.mark.parametrize(("count", "other", "percentile"), [(3, 4, 1), (4, 3, 50), (2, 5, 100)])
def test_p_value_by_listing_all_orders(count, other, percentile):
    """Every order of the values is equally likely: list them."""
    total = count + other
    found = [
        below_share_test(places, sorted(set(range(total)) - set(places)), percentile)
        for places in combinations(range(total), count)
    ]
    counts = np.array([result.count for result in found])
    for result in found:
        assert result.p_value == pytest.approx(np.mean(counts >= result.count), rel=1e-12)
        assert result.expected == pytest.approx(counts.mean(), rel=1e-12)


def test_rank_threshold_and_shares():
    values, reference = [0.5, 1, 1, 2, 9], np.arange(1, 201)
    found = below_share_test(values, reference, percentile=1)
    assert (found.rank, found.threshold, found.count, found.share) == (2, 2.0, 3, 0.6)
    # three of five before the second of two hundred
    assert found.p_value == pytest.approx(nhypergeom.sf(2, 205, 5, 2), rel=1e-9)
    assert found.p_value < 1e-4
    assert below_share_test([5], range(20), 5).rank == 1
    assert below_share_test([5], range(100), 7).rank == 7
    assert below_share_test([1, 1], [1, 1, 1]).count == 0
    assert below_share_test([1, 1], [1, 1, 1]).p_value == 1
    assert json.loads(json.dumps(found.to_json()))["share"] == 0.6


@pytest.mark.parametrize(("count", "other", "percentile"), [(30, 40, 10), (100, 25, 1)])
def test_false_alarms_are_as_rare_as_promised(count, other, percentile):
    rng = np.random.default_rng(0)
    values = np.array(
        [
            below_share_test(
                rng.exponential(size=count), rng.exponential(size=other), percentile
            ).p_value
            for _ in range(1000)
        ]
    )
    for level in (0.05, 0.2, 0.5):
        assert (values <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 1000)
    # rounded values, with ties: the p-value may only grow
    tied = [
        below_share_test(
            np.rint(rng.exponential(size=count) * 3), np.rint(rng.exponential(size=other) * 3), 10
        ).p_value
        for _ in range(1000)
    ]
    assert np.mean(np.array(tied) <= 0.05) <= 0.07


def test_refusals():
    with pytest.raises(ValueError, match=r"positive: expected at least one number"):
        auc([], [1])
    with pytest.raises(ValueError, match=r"negative: expected finite numbers, found 1"):
        auc([1], [np.nan])
    with pytest.raises(ValueError, match=r"expected at least two scores each"):
        auc_interval([1], [2, 3])
    with pytest.raises(ValueError, match=r"level: expected .* found 0"):
        auc_interval([1, 2], [2, 3], level=0)
    with pytest.raises(ValueError, match=r"percentile: expected above 0, at most 100, found 0"):
        below_share_test([1], [2], 0)
