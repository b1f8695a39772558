import json

import numpy as np
import pytest

from medpair.metrics.prd import max_f_beta, prd_curve, prd_from_histograms


def test_identical_histograms():
    share = np.array([0.1, 0.2, 0.3, 0.4])
    precision, recall = prd_from_histograms(share, share, num_angles=101)
    slopes = np.tan(np.linspace(0, np.pi / 2, 101))
    assert precision == pytest.approx(np.minimum(slopes, 1), abs=1e-12)
    assert recall[1:] == pytest.approx(np.minimum(1 / slopes[1:], 1), abs=1e-12)
    assert (recall[0], precision[-1]) == pytest.approx((1, 1))
    for beta in (8, 1 / 8):
        assert max_f_beta(precision, recall, beta) == pytest.approx(1, abs=1e-12)


def test_disjoint_histograms():
    precision, recall = prd_from_histograms([0.5, 0.5, 0], [0, 0, 1])
    assert not precision.any()
    assert not recall.any()
    assert max_f_beta(precision, recall, 8) == 0


def test_one_of_two_modes_has_all_precision_and_half_recall():
    """Along the curve precision is min(t / 2, 1), recall min(1 / 2, 1 / t)."""
    precision, recall = prd_from_histograms([0.5, 0.5], [1, 0], num_angles=1001)
    slopes = np.tan(np.linspace(0, np.pi / 2, 1001)[1:-1])
    assert precision[1:-1] == pytest.approx(np.minimum(slopes / 2, 1), abs=1e-12)
    assert recall[1:-1] == pytest.approx(np.minimum(0.5, 1 / slopes), abs=1e-12)
    assert (precision.max(), recall.max()) == pytest.approx((1, 0.5), abs=1e-12)
    # the corner of the curve, at t = 2, is the best of both scores: precision 1, recall 1/2
    for beta in (8, 1 / 8):
        expected = (1 + beta**2) * 0.5 / (beta**2 + 0.5)
        assert max_f_beta(precision, recall, beta) == pytest.approx(expected, rel=2e-3)
    # dropped modes cost recall; invented ones precision
    precision, recall = prd_from_histograms([1, 0], [0.5, 0.5])
    assert (precision.max(), recall.max()) == pytest.approx((0.5, 1), abs=1e-12)


def test_swapped_arguments_swap_the_axes():
    rng = np.random.default_rng(0)
    real, synthetic = rng.dirichlet(np.full(12, 0.4), size=2)
    precision, recall = prd_from_histograms(real, synthetic)
    other_precision, other_recall = prd_from_histograms(synthetic, real)
    assert other_precision == pytest.approx(recall[::-1], abs=1e-12)
    assert other_recall == pytest.approx(precision[::-1], abs=1e-12)
    assert (np.diff(precision) >= -1e-12).all()
    assert (np.diff(recall) <= 1e-12).all()


def test_f_beta_by_hand():
    # beta = 8: 65 * 0.4 / (64 * 0.8 + 0.5) and 65 * 0.09 / (64 * 0.1 + 0.9)
    assert max_f_beta([0.8, 0.1], [0.5, 0.9], 8) == pytest.approx(5.85 / 7.3)
    assert max_f_beta([0.8], [0.5], 8) == pytest.approx(26 / 51.7)
    # beta = 1/8: 65/64 * 0.4 / (0.8 / 64 + 0.5) = 26 / 32.8
    assert max_f_beta([0.8, 0.1], [0.5, 0.9], 1 / 8) == pytest.approx(26 / 32.8)
    assert max_f_beta([0, 1], [1, 0], 2) == 0


def four_modes(rng, modes, count, width=300):
    """Points around some of four far corners, in far more dimensions than points."""
    centres = np.zeros((4, width))
    centres[np.arange(4), np.arange(4)] = 100
    return centres[np.asarray(modes)[np.arange(count) % len(modes)]] + rng.normal(
        size=(count, width)
    )


def test_modes_dropped_and_invented():
    rng = np.random.default_rng(0)
    real = four_modes(rng, [0, 1], 60)
    dropped = prd_curve(real, four_modes(rng, [0], 60), clusters=2, num_runs=2)
    assert (dropped.precision.max(), dropped.recall.max()) == pytest.approx((1, 0.5))
    assert dropped.f1_8 > 0.98 > 0.52 > dropped.f8
    invented = prd_curve(real, four_modes(rng, [0, 1, 2, 3], 60), clusters=4, num_runs=2)
    assert (invented.precision.max(), invented.recall.max()) == pytest.approx((0.5, 1))
    assert invented.f8 > 0.98 > 0.52 > invented.f1_8
    disjoint = prd_curve(real, four_modes(rng, [2, 3], 60), clusters=4, num_runs=2)
    assert (disjoint.f8, disjoint.f1_8) == (0, 0)


@pytest.mark.fault(42)
def test_equal_sizes_are_drawn_and_told():
    rng = np.random.default_rng(0)
    few = four_modes(rng, [0, 1], 20)
    many = four_modes(rng, [0] * 9 + [1] * 9, 360)
    found = prd_curve(few, many, clusters=2, num_runs=3)
    assert (found.size, found.clusters) == (20, 2)
    # a random part of the larger cohort has both modes, nearly half each
    assert min(found.f8, found.f1_8) > 0.85
    assert json.loads(json.dumps(found.to_json())) == {
        "f8": found.f8,
        "f1_8": found.f1_8,
        "n_equal": 20,
        "clusters": 2,
    }


def test_same_sample_order_and_seed():
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(80, 3)), rng.normal(size=(50, 3)) + 0.5
    found = prd_curve(real, synthetic, num_runs=3)
    again = prd_curve(real, synthetic, num_runs=3)
    np.testing.assert_array_equal(found.precision, again.precision)
    other = prd_curve(real, synthetic, num_runs=3, seed=1)
    assert not np.array_equal(found.precision, other.precision)
    same = prd_curve(real, real[::-1], num_runs=3)
    assert min(same.f8, same.f1_8) > 1 - 1e-9


@pytest.mark.fault(42)
def test_one_row_few_rows_and_rows_that_are_not_finite():
    rows = np.random.default_rng(0).normal(size=(30, 4))
    for bad in (np.full((30, 4), np.nan), np.where(np.eye(30, 4) > 0, np.inf, rows)):
        for pair in ((rows, bad), (bad, rows)):
            with pytest.raises(ValueError, match="expected finite numbers, found"):
                prd_curve(*pair)
    with pytest.raises(ValueError, match="at least"):
        prd_curve(rows[:1], rows)
    with pytest.raises(ValueError, match="clusters: expected 1 to 6, found 10"):
        prd_curve(rows[:3], rows)
    found = prd_curve(rows[:3], rows, clusters=2)
    assert found.size == 3
    assert min(found.f8, found.f1_8) >= 0
    assert max(found.f8, found.f1_8) <= 1


@pytest.mark.fault(42)
def test_refusals():
    rows = np.zeros((5, 2))
    with pytest.raises(ValueError, match="clusters: expected 1 to 10, found 11"):
        prd_curve(rows, rows, clusters=11)
    with pytest.raises(ValueError, match="num_runs: expected at least one, found 0"):
        prd_curve(rows, rows, num_runs=0)
    with pytest.raises(ValueError, match="second: expected 2 columns, found 3"):
        prd_curve(rows, np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"synthetic: expected shares of sum 1, found 0\.9"):
        prd_from_histograms([0.5, 0.5], [0.5, 0.4])
    with pytest.raises(ValueError, match="synthetic: expected one row"):
        prd_from_histograms([0.5, 0.5], [0.5, 0.4, 0.1])
    with pytest.raises(ValueError, match="recall: expected numbers from 0 to 1"):
        max_f_beta([0.5], [1.5], 8)
    with pytest.raises(ValueError, match="beta: expected a positive number, found 0"):
        max_f_beta([0.5], [0.5], 0)


@pytest.mark.parametrize("width", [3, 300])
def test_both_clusterings_agree_where_clusters_are_plain(width):
    rng = np.random.default_rng(3)
    real = rng.normal(size=(60, width)) + 9 * rng.integers(0, 3, (60, 1))
    synthetic = rng.normal(size=(45, width)) + 9 * rng.integers(0, 2, (45, 1))
    for count in (45, 60):
        one, two = (
            prd_curve(real[:count], synthetic, clusters=3, clustering=how)
            for how in ("lloyd", "minibatch")
        )
        # of unequal cohorts both draw the same rows, and so find the same shares
        np.testing.assert_allclose(one.precision, two.precision, atol=1e-12)
        np.testing.assert_allclose(one.recall, two.recall, atol=1e-12)
    with pytest.raises(ValueError, match="clustering: expected lloyd or minibatch, found 'other'"):
        prd_curve(real, synthetic, clustering="other")
