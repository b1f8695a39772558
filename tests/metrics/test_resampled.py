import numpy as np
import pytest
from scipy.stats import ttest_ind

from medpair.metrics.frechet import frechet_distance, kernel_distance
from medpair.metrics.resampled import permutation_test, resampled_interval


def mean_apart(first, second):
    return float(first.mean() - second.mean())


def test_interval_of_a_difference_of_means_is_welch():
    """Leaving one row out at a time, the jackknife of a mean is the textbook's standard error."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(12, 1)), 3 * rng.normal(size=(7, 1))
    expected = ttest_ind(first[:, 0], second[:, 0], equal_var=False).confidence_interval(0.9)
    low, high = resampled_interval(mean_apart, first, second, level=0.9, groups=12)
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=1e-9)


@pytest.mark.parametrize("rows", [30, 39, 40, 100])
def test_groups_give_the_variance_of_a_mean(rows):
    """Also where the rows are no multiple of the groups."""
    rng = np.random.default_rng(rows)
    variances = []
    for seed in range(300):
        sample = rng.normal(size=(rows, 1))
        low, high = resampled_interval(mean_apart, sample, np.zeros((rows, 1)), seed=seed)
        size = -(-rows // 20)
        quantile = {15: 2.145, 19: 2.101, 20: 2.093}[rows // size]
        variances.append(((high - low) / 2 / quantile) ** 2)
    assert np.mean(variances) == pytest.approx(1 / rows, rel=0.1)


@pytest.mark.parametrize(
    ("measure", "rows", "width", "scale", "shift"),
    [
        (frechet_distance, 60, 6, 1.0, 0.0),
        (frechet_distance, 60, 6, 1.3, 0.5),
        (frechet_distance, 30, 60, 1.3, 0.5),
        (kernel_distance, 60, 6, 1.3, 0.5),
    ],
)
def test_coverage(measure, rows, width, scale, shift):
    rng = np.random.default_rng(0)

    def draw():
        return rng.normal(size=(rows, width)), scale * rng.normal(size=(rows, width)) + shift

    truth = np.mean([measure(*draw()) for _ in range(1000)])
    ends = np.array([resampled_interval(measure, *draw(), seed=seed) for seed in range(100)])
    covered = np.mean((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
    # 0.88 is three standard errors under 0.95
    assert covered >= 0.88


def test_constant_statistic_has_no_width():
    rows = np.arange(10.0)[:, None]
    assert resampled_interval(lambda *_: 2.0, rows, rows) == (2.0, 2.0)


def test_permutation_test_is_exact():
    rng = np.random.default_rng(0)
    values = np.array(
        [
            permutation_test(kernel_distance, *rng.normal(size=(2, 8, 4)), 19, seed)
            for seed in range(400)
        ]
    )
    for level in (0.05, 0.25, 0.5, 0.75):
        expected = 4 * np.sqrt(level * (1 - level) / 400)
        assert np.mean(values <= level) == pytest.approx(level, abs=expected)
    apart = rng.normal(size=(8, 4)), rng.normal(size=(12, 4)) + 3
    assert permutation_test(frechet_distance, *apart, 19) == 1 / 20
    assert permutation_test(frechet_distance, apart[0], apart[0], 19) == 1


def test_refusals():
    rows = np.zeros((10, 2))
    with pytest.raises(ValueError, match=r"second: expected at least 3 rows.*\(2, 2\)"):
        resampled_interval(frechet_distance, rows, rows[:2])
    with pytest.raises(ValueError, match=r"level: expected .* found 1"):
        resampled_interval(frechet_distance, rows, rows, level=1)
    with pytest.raises(ValueError, match=r"groups: expected at least 2, found 1"):
        resampled_interval(frechet_distance, rows, rows, groups=1)
    with pytest.raises(ValueError, match=r"permutations: expected at least one"):
        permutation_test(frechet_distance, rows, rows, 0)
