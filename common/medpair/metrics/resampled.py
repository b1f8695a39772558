"""What chance does to a statistic of two cohorts: an interval, and a test that they differ."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import t as student

from medpair.data.sampling import numpy_generator

# Of two feature matrices (N, D) and (M, D), as frechet_distance.
Statistic = Callable[[NDArray[np.float64], NDArray[np.float64]], float]

# Counters that keep the draws of the two functions apart for one seed.
_GROUPS, _DEALS = range(2)


def resampled_interval(
    statistic: Statistic,
    first: ArrayLike,
    second: ArrayLike,
    level: float = 0.95,
    groups: int = 20,
    seed: int = 0,
) -> tuple[float, float]:
    """Return a grouped jackknife interval of the mean of a statistic at these sample sizes.

    Each set in turn loses one of about `groups` random groups of rows, all of one size, as a
    statistic with a bias moves with the size. The spread of what is left gives the variance, in
    the mean not too small (Efron & Stein 1981, Ann Stat 9:586); Student's t with Welch's degrees
    of freedom gives the width around the statistic of all rows.

    Coverage of the nominal 95 % for the mean over samples of that size, 200 simulated cohorts of
    normal or of correlated, skewed features, equal, shifted and scaled: Frechet distance 0.95 to
    0.995 (N = M = 100, D = 16; 30 and 256), kernel distance 0.92 to 1.0, the least for skewed
    features. It is wide where both cohorts follow one distribution, 1.3 to 1.5 times what 95 %
    need. Tried and left: the bootstrap with replacement, whose repeated rows shift both distances
    (its percentiles covered 0 to 0.45 of the time for Frechet; its deviations, put around the
    estimate, are up to 3.6 times too wide), and half samples, up to 1.8 times too wide.

    Args:
        statistic: of two feature matrices. It must change little with one row: cluster shares
            and quantiles do not qualify.
        first: (N, D), N >= 3.
        second: (M, D), M >= 3.
        level: nominal coverage, between 0 and 1.
        groups: of each set, at least 2; there are ``2 groups + 1`` values to compute at most.
        seed: the same seed and features give the same interval.

    Returns:
        Low and high end, in the unit of the statistic; the low end of a distance may be below 0.

    Raises:
        ValueError: a set is too small, or an argument out of range.
    """
    sets = (checked_rows("first", first, 3), checked_rows("second", second, 3))
    check_level(level)
    if groups < 2:
        raise ValueError(f"groups: expected at least 2, found {groups}")
    whole = float(statistic(*sets))
    spreads = [_jackknife(statistic, sets, side, groups, seed) for side in (0, 1)]
    variance = sum(one for one, _ in spreads)
    if variance == 0:
        return whole, whole
    freedom = variance**2 / sum(one**2 / degrees for one, degrees in spreads)
    reach = float(student.ppf(0.5 + level / 2, freedom)) * math.sqrt(variance)
    return whole - reach, whole + reach


def permutation_test(
    statistic: Statistic,
    first: ArrayLike,
    second: ArrayLike,
    permutations: int = 99,
    seed: int = 0,
) -> float:
    """Return the chance of so large a statistic if both sets follow one distribution.

    Rows are dealt to the two sets at random; the p-value is exact for any statistic and size, and
    at least ``1 / (permutations + 1)``. Reference: Phipson & Smyth 2010, equation 2.

    Args:
        statistic: of two feature matrices, larger for sets further apart.
        first: (N, D), N >= 2.
        second: (M, D), M >= 2.
        permutations: random deals.
        seed: the same seed and features give the same result.

    Raises:
        ValueError: a set is too small, or there is no permutation.
    """
    one, two = checked_rows("first", first, 2), checked_rows("second", second, 2)
    if permutations < 1:
        raise ValueError(f"permutations: expected at least one, found {permutations}")
    pooled = np.concatenate([one, two])
    # a deal that only swaps rows within the sets gives the same value but for rounding
    whole = statistic(one, two)
    least = whole - 1e-9 * abs(whole)
    reached = 0
    for deal in range(permutations):
        order = numpy_generator(seed, _DEALS, deal).permutation(len(pooled))
        reached += statistic(pooled[order[: len(one)]], pooled[order[len(one) :]]) >= least
    return (1 + int(reached)) / (1 + permutations)


def checked_rows(name: str, values: ArrayLike, least: int) -> NDArray[np.float64]:
    """Return a feature matrix in double precision; ValueError for fewer than `least` rows."""
    matrix = np.asarray(values, dtype=np.float64)
    if matrix.ndim != 2 or len(matrix) < least:
        raise ValueError(
            f"{name}: expected at least {least} rows of features, found shape {matrix.shape}"
        )
    return matrix


def check_level(level: float) -> None:
    """Raise ValueError for a coverage outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")


def _jackknife(
    statistic: Statistic,
    sets: tuple[NDArray[np.float64], NDArray[np.float64]],
    side: int,
    groups: int,
    seed: int,
) -> tuple[float, int]:
    """Return the variance that one set adds to a statistic, and its degrees of freedom."""
    rows = len(sets[side])
    # rows that do not fill a group are never left out
    size = min(math.ceil(rows / groups), rows // 2)
    order = numpy_generator(seed, _GROUPS, side).permutation(rows)
    left = []
    for group in range(rows // size):
        parts = list(sets)
        out = order[group * size : (group + 1) * size]
        parts[side] = np.delete(parts[side], out, axis=0)
        left.append(statistic(*parts))
    factor = (rows - size) ** 2 / (rows * size)
    return float(np.var(left, ddof=1)) * factor, len(left) - 1
