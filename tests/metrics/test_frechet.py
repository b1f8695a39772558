import numpy as np
import pytest
from scipy.linalg import sqrtm

from medpair.metrics.frechet import frechet_distance, kernel_distance


def exact_sample(count, mean, deviations, seed=0):
    """A sample whose own mean and covariance, diag(deviations^2), are exact."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=(count, len(deviations)))
    orthogonal = np.linalg.qr(raw - raw.mean(axis=0))[0]
    return np.asarray(mean) + np.sqrt(count - 1) * orthogonal * np.asarray(deviations)


def textbook(first, second):
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = first.mean(axis=0) - second.mean(axis=0)
    return apart @ apart + np.trace(one) + np.trace(two) - 2 * np.trace(sqrtm(one @ two)).real


@pytest.mark.parametrize(("count", "other"), [(9, 9), (9, 40), (200, 7)])
def test_gaussians_with_diagonal_covariance(count, other):
    mean, shifted = np.array([1.0, -2, 0, 5]), np.array([0.0, 1, 0.5, 5])
    wide, narrow = np.array([3.0, 2, 1, 0.5]), np.array([0.5, 2, 4, 0])
    expected = np.square(mean - shifted).sum() + np.square(wide - narrow).sum()
    first = exact_sample(count, mean, wide)
    second = exact_sample(other, shifted, narrow, seed=1)
    assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-9)


@pytest.mark.fault(42)
def test_fewer_samples_than_features():
    """Covariances of rank 1 along u and v: the trace of the root is |u . v|."""
    u, v = np.array([3.0, 0, 4, 0, 0, 0]), np.array([1.0, 2, 0, 0, 0, 2])
    # two rows a distance d apart have the variance d^2 / 2
    first = np.array([u, -u]) / np.sqrt(2)
    second = np.array([v, -v]) / np.sqrt(2) + np.array([0, 0, 0, 1.0, 0, 0])
    expected = 1 + u @ u + v @ v - 2 * abs(u @ v)
    assert frechet_distance(first, second) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("count", "other"), [(60, 80), (12, 80), (12, 9)])
def test_agrees_with_matrix_square_root(count, other):
    rng = np.random.default_rng(count)
    first = rng.normal(size=(count, 20)) @ rng.normal(size=(20, 20))
    second = rng.exponential(size=(other, 20))
    # the square root of a singular product is itself only good to the root of rounding
    tolerance = 1e-10 if min(count, other) > 20 else 1e-5
    assert frechet_distance(first, second) == pytest.approx(textbook(first, second), rel=tolerance)


@pytest.mark.parametrize("width", [3, 30, 300])
def test_equal_sets_rotation_and_order(width):
    rng = np.random.default_rng(width)
    first, second = rng.normal(size=(25, width)), rng.normal(size=(40, width)) + 0.3
    value = frechet_distance(first, second)
    assert frechet_distance(first, first[::-1]) == pytest.approx(0, abs=1e-10 * width)
    assert frechet_distance(second, first) == pytest.approx(value, rel=1e-12)
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0]
    assert frechet_distance(first @ rotation, second @ rotation) == pytest.approx(value, rel=1e-11)
    far = frechet_distance(first + 1e4, second + 1e4)
    assert far == pytest.approx(value, rel=1e-7)
    assert frechet_distance(3 * first, 3 * second) == pytest.approx(9 * value, rel=1e-12)


def test_kernel_distance_is_the_double_loop():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(6, 4)), rng.normal(size=(9, 4)) + 1

    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y, strict=True)) / 4 + 1) ** 3

    def within(rows):
        pairs = [kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j]
        return sum(pairs) / len(pairs)

    between = np.mean([kernel(x, y) for x in first for y in second])
    expected = within(first) + within(second) - 2 * between
    assert kernel_distance(first, second) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_of_one_distribution_is_zero_in_the_mean():
    """Frechet's is not: the reason for a floor at equal sample size."""
    rng = np.random.default_rng(0)
    pairs = [rng.normal(size=(2, 10, 8)) for _ in range(2000)]
    values = np.array([kernel_distance(*pair) for pair in pairs])
    assert abs(values.mean()) < 4 * values.std() / np.sqrt(len(values))
    assert values.min() < 0
    assert np.mean([frechet_distance(*pair) for pair in pairs[:100]]) > 1


def test_kernel_distance_grows_with_a_shift():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 100, 8))
    values = [kernel_distance(first, second + shift) for shift in (0.5, 1, 2)]
    assert 0 < values[0] < values[1] < values[2]


@pytest.mark.fault(42)
@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance])
def test_refusals(measure):
    good = np.zeros((3, 2))
    with pytest.raises(ValueError, match=r"first: expected at least two rows.*\(1, 2\)"):
        measure(np.zeros((1, 2)), good)
    with pytest.raises(ValueError, match=r"second: expected at least two rows.*\(4,\)"):
        measure(good, np.zeros(4))
    with pytest.raises(ValueError, match="second: expected finite numbers, found 1 that"):
        measure(good, np.array([[0, 1], [np.nan, 2]]))
    with pytest.raises(ValueError, match="second: expected 2 columns, found 3"):
        measure(good, np.zeros((3, 3)))
