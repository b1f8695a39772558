"""Paired comparisons against enumeration, SciPy and numbers worked out by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata, wilcoxon

from medpair.metrics import paired
from medpair.metrics.paired import (
    average_over_seeds,
    holm,
    paired_difference,
    spread_over_seeds,
    wilcoxon_signed_rank,
)


def enumerated(differences: list[float]) -> float:
    """Count all signs of the ranks of what is not zero."""
    values = np.array([d for d in differences if d != 0])
    ranks = rankdata(np.abs(values))
    found = ranks[values > 0].sum()
    sums = np.array([np.dot(ranks, signs) for signs in product((0, 1), repeat=len(ranks))])
    return min(1.0, 2 * min(np.mean(sums <= found), np.mean(sums >= found)))


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([3, 1, 4, 1.5, 9], 2 / 32),  # all better: one sign pattern of 32 on either side
        ([1, 2, -3], 1.0),  # both rank sums are 3, the middle
        ([-1, 2, 3, 4], 4 / 16),  # a negative rank sum of 0 or 1, on either side
        ([1, 1, 1, -1], 10 / 16),  # ties: none or one negative, on either side
        ([0, 0, 1, 2, 3], 2 / 8),  # cases that do not differ say nothing
        ([0, 0], 1.0),
        ([], 1.0),
    ],
)
def test_p_values_worked_out_by_hand(differences: list[float], p: float) -> None:
    assert wilcoxon_signed_rank(differences) == pytest.approx(p)
    assert wilcoxon_signed_rank([-d for d in differences]) == pytest.approx(p)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=9).filter(any))
def test_exact_with_ties_and_zeros(differences: list[int]) -> None:
    assert wilcoxon_signed_rank(differences) == pytest.approx(enumerated(list(differences)))


def test_exact_as_scipy_where_scipy_is_exact() -> None:
    rng = np.random.default_rng(0)
    for n in (6, 20, 50):
        values = rng.normal(0.3, 1.0, n)
        expected = wilcoxon(values, method="exact").pvalue
        assert wilcoxon_signed_rank(values) == pytest.approx(expected, rel=1e-9)


def test_the_normal_limit_takes_over_where_it_is_as_good() -> None:
    values = np.random.default_rng(1).normal(0.12, 1.0, paired.MAX_EXACT)
    exact = wilcoxon_signed_rank(values)
    assert 0.001 < exact < 0.5
    assert wilcoxon(values, method="approx").pvalue == pytest.approx(exact, rel=0.02)
    more = np.append(values, 0.5)
    assert wilcoxon_signed_rank(more) == wilcoxon(more).pvalue


def test_every_case_better_by_the_same() -> None:
    reference = np.array([0.1, 0.5, 0.2, 0.4, 0.3, 0.6])
    result = paired_difference(reference + 0.25, reference)
    assert result["n"] == result["better"] == 6
    assert result["worse"] == result["equal"] == 0
    for key in ("difference", "low", "high"):
        assert result[key] == pytest.approx(0.25)
    assert result["p"] == pytest.approx(2 / 2**6)


def test_a_smaller_distance_is_better() -> None:
    result = paired_difference([1.0, 2.0, 5.0], [2.0, 2.0, 1.0], higher_is_better=False)
    assert (result["better"], result["worse"], result["equal"]) == (1, 1, 1)
    assert result["difference"] == pytest.approx(1.0)


def test_rounding_is_no_difference() -> None:
    result = paired_difference([0.1 + 0.2, 1.0, 0.6], [0.3, 0.9, 0.5])
    assert 0.1 + 0.2 != 0.3
    assert (result["better"], result["worse"], result["equal"]) == (2, 0, 1)
    # and the two that differ are tied: p is that of two cases
    assert result["p"] == pytest.approx(2 / 4)


def test_interval_is_that_of_the_differences_not_of_the_scores() -> None:
    """Cases differ far more than the two ways do: pairing takes that out."""
    rng = np.random.default_rng(2)
    reference = rng.uniform(0.0, 1.0, 60)
    values = reference + rng.normal(0.02, 0.01, 60)
    result = paired_difference(values, reference)
    half = 1.96 * np.std(values - reference) / np.sqrt(60)
    assert result["high"] - result["low"] == pytest.approx(2 * half, rel=0.1)
    assert result["low"] > 0
    assert result["p"] < 1e-6


def test_lists_that_do_not_pair_are_refused() -> None:
    with pytest.raises(ValueError, match="expected the 3 cases of the reference, found 2"):
        paired_difference([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="expected the 0 cases"):
        paired_difference([], [])
    with pytest.raises(ValueError, match="finite"):
        paired_difference([1, np.nan], [1, 2])


def test_holm_by_hand() -> None:
    # 3 x 0.01, 2 x 0.03, and 0.04 may not be below the one before it
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([0.2]) == [0.2]
    assert holm([]) == []
    with pytest.raises(ValueError, match="0 to 1"):
        holm([1.5])


def test_seeds_are_averaged_and_do_not_count_as_cases() -> None:
    runs = [{"a": 0.2, "b": 0.6}, {"b": 0.8, "a": 0.4}]
    assert average_over_seeds(runs) == pytest.approx({"a": 0.3, "b": 0.7})
    spread = spread_over_seeds(runs)
    assert spread["seed_means"] == pytest.approx([0.4, 0.6])
    assert spread["seed_std"] == pytest.approx(0.2 / np.sqrt(2))
    assert spread_over_seeds(runs[:1])["seed_std"] is None
    with pytest.raises(ValueError, match=r"same cases in all, found \['b', 'c'\]"):
        average_over_seeds([{"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0}])
    with pytest.raises(ValueError, match="at least one"):
        average_over_seeds([])
