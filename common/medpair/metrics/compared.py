"""A distance between two cohorts, its interval, and its floor: two halves of the real cohort.

Most distances depend on the sample size, so a figure says nothing alone, and nothing beside one
of another sample size. `compare` draws all that it sets side by side at one size.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from medpair.data.sampling import numpy_generator
from medpair.metrics.resampled import (
    Statistic,
    check_level,
    checked_rows,
    permutation_test,
    resampled_interval,
)

# Counters that keep these draws apart, and from those of `medpair.metrics.resampled`.
_HALVES, _EQUAL = 2, 3


@dataclass(frozen=True)
class Drawn:
    """A statistic of random subsets of equal size.

    Attributes:
        mean: over the draws.
        low: lower end of the range that holds `level` of the draws.
        high: its upper end.
        size: rows on each side.
    """

    mean: float
    low: float
    high: float
    size: int


@dataclass(frozen=True)
class Compared:
    """A statistic of a real and a synthetic cohort beside the same of two real ones.

    Attributes:
        value: of all rows.
        p_value: of `value` if both cohorts follow one distribution, see `permutation_test`.
        low: lower end of the interval of `value`, see `resampled_interval`.
        high: its upper end.
        n_first: real rows.
        n_second: synthetic rows.
        n_equal: rows on each side of what follows.
        floor: mean over pairs of disjoint random parts of the real cohort.
        floor_low: lower end of the range of these pairs.
        floor_high: its upper end.
        value_at_equal_n: mean over random parts of the real and of the synthetic cohort. Stands
            beside `floor`; `value` does not.
        equal_low: lower end of the range of these.
        equal_high: its upper end.
    """

    value: float
    p_value: float
    low: float
    high: float
    n_first: int
    n_second: int
    n_equal: int
    floor: float
    floor_low: float
    floor_high: float
    value_at_equal_n: float
    equal_low: float
    equal_high: float

    def to_json(self) -> dict[str, int | float]:
        """Return the fields as plain data."""
        return asdict(self)


def compare(
    statistic: Statistic,
    real: ArrayLike,
    synthetic: ArrayLike,
    level: float = 0.95,
    groups: int = 20,
    repeats: int = 50,
    permutations: int = 99,
    seed: int = 0,
) -> Compared:
    """Compare two cohorts by a statistic, with its interval and its floor at equal sample size.

    A synthetic cohort much above the floor differs from the real one; one much below it holds
    copies, for two halves share no case and a cohort and its copy do. The range of the floor is
    no error bar, as its draws share their rows: of 100 simulated second cohorts of the same
    distribution all were inside for N = 100, D = 16, but for N = 40, D = 256 and the Frechet
    distance 27 were outside. Whether the cohorts differ at all, `p_value` says.

    Args:
        statistic: of two feature matrices.
        real: (N, D), N >= 4.
        synthetic: (M, D), M >= 3. With fewer than N // 2 rows, all that is drawn has M.
        level: of the interval and of the ranges of draws, between 0 and 1.
        groups: as `resampled_interval`.
        repeats: draws of each kind.
        permutations: as `permutation_test`.
        seed: the same seed and features give the same result.

    Returns:
        The statistic, and what to hold it against.

    Raises:
        ValueError: a set is too small, or an argument out of range.
    """
    first, second = checked_rows("real", real, 4), checked_rows("synthetic", synthetic, 3)
    low, high = resampled_interval(statistic, first, second, level, groups, seed)
    size = min(len(first) // 2, len(second))
    floor = halves_floor(statistic, first, repeats, seed, level, size)
    equal = at_equal_size(statistic, first, second, size, repeats, seed, level)
    return Compared(
        value=float(statistic(first, second)),
        p_value=permutation_test(statistic, first, second, permutations, seed),
        low=low,
        high=high,
        n_first=len(first),
        n_second=len(second),
        n_equal=size,
        floor=floor.mean,
        floor_low=floor.low,
        floor_high=floor.high,
        value_at_equal_n=equal.mean,
        equal_low=equal.low,
        equal_high=equal.high,
    )


def halves_floor(
    statistic: Statistic,
    features: ArrayLike,
    repeats: int = 50,
    seed: int = 0,
    level: float = 0.95,
    size: int | None = None,
) -> Drawn:
    """Return a statistic of two disjoint random parts of one cohort, as between real and real.

    Args:
        statistic: of two feature matrices.
        features: (N, D), N >= 4, of the real cohort.
        repeats: pairs of parts to draw.
        seed: the same seed and features give the same draws.
        level: share of the draws in the range.
        size: rows of each part; default and at most N // 2.

    Returns:
        Mean and range over the draws. The draws share rows: their range is no confidence interval.

    Raises:
        ValueError: the set is too small, or an argument out of range.
    """
    rows = checked_rows("features", features, 4)
    size = _checked_size(size, len(rows) // 2)
    draws = []
    for repeat in range(repeats):
        order = numpy_generator(seed, _HALVES, repeat).permutation(len(rows))
        draws.append(statistic(rows[order[:size]], rows[order[size : 2 * size]]))
    return _summary(draws, size, level)


def at_equal_size(
    statistic: Statistic,
    first: ArrayLike,
    second: ArrayLike,
    size: int | None = None,
    repeats: int = 50,
    seed: int = 0,
    level: float = 0.95,
) -> Drawn:
    """Return a statistic of random parts of two cohorts, to stand beside `halves_floor`.

    Args:
        statistic: of two feature matrices.
        first: (N, D), N >= 4, the cohort of the floor.
        second: (M, D), M >= 2.
        size: rows of each part; default and at most the smaller of N // 2 and M.
        repeats: pairs of parts to draw.
        seed: the same seed and features give the same draws.
        level: share of the draws in the range.

    Returns:
        Mean and range over the draws. The draws share rows: their range is no confidence interval.

    Raises:
        ValueError: a set is too small, or an argument out of range.
    """
    one, two = checked_rows("first", first, 4), checked_rows("second", second, 2)
    size = _checked_size(size, min(len(one) // 2, len(two)))
    draws = []
    for repeat in range(repeats):
        generator = numpy_generator(seed, _EQUAL, repeat)
        parts = [rows[generator.permutation(len(rows))[:size]] for rows in (one, two)]
        draws.append(statistic(*parts))
    return _summary(draws, size, level)


def _summary(draws: list[float], size: int, level: float) -> Drawn:
    check_level(level)
    if not draws:
        raise ValueError("repeats: expected at least one, found none")
    low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2])
    return Drawn(float(np.mean(draws)), float(low), float(high), size)


def _checked_size(size: int | None, most: int) -> int:
    if size is None:
        return most
    if not 2 <= size <= most:
        raise ValueError(f"size: expected 2 to {most} rows, found {size}")
    return size
