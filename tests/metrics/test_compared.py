import json
from dataclasses import asdict

import numpy as np
import pytest

from medpair.metrics.compared import (
    at_equal_size,
    compare,
    halves_floor,
)
from medpair.metrics.frechet import frechet_distance, kernel_distance


def mean_apart(first, second):
    return float(first.mean() - second.mean())


def test_floor_is_made_of_disjoint_halves():
    """Of rows 0 ... N - 1, twice the sum of both halves' means is fixed, and none is shared."""
    rows = np.arange(9.0)[:, None]
    seen = []

    def statistic(first, second):
        assert len(first) == len(second) == 4
        assert not set(first[:, 0]) & set(second[:, 0])
        seen.append(tuple(first[:, 0]))
        return mean_apart(first, second)

    floor = halves_floor(statistic, rows, repeats=200)
    assert floor.size == 4
    assert len(set(seen)) > 100
    assert abs(floor.mean) < 0.5
    assert floor.low < -1 < 1 < floor.high
    assert halves_floor(statistic, rows, repeats=200) == floor
    assert halves_floor(statistic, rows, repeats=200, seed=1) != floor


@pytest.mark.parametrize("count", [30, 100])
def test_same_distribution_stands_on_its_floor(count):
    """At equal size; the value of all rows does not, as it depends on the sample size."""
    rng = np.random.default_rng(0)
    ratios, naive = [], []
    for seed in range(20):
        real, synthetic = rng.normal(size=(40, 10)), rng.normal(size=(count, 10))
        found = compare(
            frechet_distance, real, synthetic, groups=4, repeats=10, permutations=1, seed=seed
        )
        assert (found.n_first, found.n_second, found.n_equal) == (40, count, 20)
        ratios.append(found.value_at_equal_n / found.floor)
        naive.append(found.value / found.floor)
    assert np.mean(ratios) == pytest.approx(1, abs=0.08)
    assert np.mean(naive) < 0.75


def test_other_distribution_is_above_and_a_copy_below():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(40, 10))
    other = compare(frechet_distance, real, real + 2)
    assert other.equal_low > other.floor_high
    assert other.value == pytest.approx(40)
    assert other.p_value == 1 / 100
    copy = compare(frechet_distance, real, real.copy())
    assert copy.value == pytest.approx(0, abs=1e-9)
    assert copy.value_at_equal_n < copy.floor


def test_few_synthetic_rows_shrink_the_floor_too():
    rng = np.random.default_rng(0)
    found = compare(frechet_distance, rng.normal(size=(40, 5)), rng.normal(size=(6, 5)))
    assert found.n_equal == 6
    floor = halves_floor(frechet_distance, rng.normal(size=(40, 5)), size=6)
    assert found.floor == pytest.approx(floor.mean, rel=0.3)


def test_json_and_determinism():
    rng = np.random.default_rng(0)
    real, synthetic = rng.normal(size=(20, 3)), rng.normal(size=(25, 3)).astype(np.float32)
    found = compare(kernel_distance, real, synthetic, repeats=5)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False)) == asdict(found)
    assert compare(kernel_distance, real, synthetic, repeats=5) == found
    assert found.low < found.value < found.high
    assert found.floor_low <= found.floor <= found.floor_high
    assert found.equal_low <= found.value_at_equal_n <= found.equal_high


def test_refusals():
    rows = np.zeros((10, 2))
    with pytest.raises(ValueError, match=r"real: expected at least 4 rows.*\(3, 2\)"):
        compare(frechet_distance, rows[:3], rows)
    with pytest.raises(ValueError, match=r"synthetic: expected at least 3 rows.*\(2, 2\)"):
        compare(frechet_distance, rows, rows[:2])
    with pytest.raises(ValueError, match=r"size: expected 2 to 5 rows, found 6"):
        halves_floor(frechet_distance, rows, size=6)
    with pytest.raises(ValueError, match=r"repeats: expected at least one"):
        at_equal_size(frechet_distance, rows, rows, repeats=0)
