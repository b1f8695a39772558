"""Which volumes are copies: nearer to one volume than neighbours are to one another.

A blurred volume is near to everything, so a small distance proves nothing. What tells a copy is
its isolation: the nearest distance over the median of the next ones (the nearest neighbour
distance ratio of Zhao et al. 2021, "CTAB-GAN", ACML, section 4.1, with a median for the second).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.stats import t as student

# Below this two volumes count as equally near: interpolation leaves as much of an exact copy.
FLOOR = 1e-3
# Nominal chance of any flag in an honest cohort. Isolation has a heavier lower tail than the
# log-normal that this supposes (relatives in a cohort): at 0.02 honest cohorts of hippocampi were
# flagged in 6 to 22 % of random splits; at this level, see tests/benchmarks/measure_privacy.py.
LEVEL = 0.0005
# However narrow the reference: a copy is at least so much nearer than the next.
MOST_RATIO = 0.4
# Values that a robust deviation is worth, in Gaussian ones: its efficiency.
EFFICIENCY = 0.37
LEAST_REFERENCE = 5


@dataclass(frozen=True)
class Limit:
    """The isolation below which a volume counts as a copy.

    Attributes:
        ratio: the limit.
        typical: median of the reference.
        spread: robust standard deviation of its logarithm.
        reference: number of its values.
        tests: how many comparisons share the level.
    """

    ratio: float
    typical: float
    spread: float
    reference: int
    tests: int

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def isolation(distances: ArrayLike) -> NDArray[np.float64]:
    """Return (N,) nearest distances over the median of the others.

    Args:
        distances: (N, K), ascending, K >= 2.

    Raises:
        ValueError: if there are fewer than two columns.
    """
    table = np.maximum(np.asarray(distances, np.float64), FLOOR)
    if table.ndim != 2 or table.shape[1] < 2:
        raise ValueError(f"distances: expected (N, K) with K >= 2, found {table.shape}")
    return table[:, 0] / np.median(table[:, 1:], axis=1)


def copy_limit(reference: ArrayLike, tests: int, level: float = LEVEL) -> Limit:
    """Return the isolation below which a volume is flagged.

    The logarithm of the reference has a robust location and spread; the limit is Student's
    quantile at ``level / tests`` (Bonferroni), with as many degrees of freedom as the median
    absolute deviation is worth.

    Args:
        reference: (R,) isolations of volumes that are no copies.
        tests: comparisons made.
        level: nominal chance of any false flag, see ``LEVEL``.

    Raises:
        ValueError: if there are fewer than five values.
    """
    values = np.log(np.asarray(reference, np.float64))
    if values.size < LEAST_REFERENCE:
        raise ValueError(
            f"reference: expected at least {LEAST_REFERENCE} values, found {values.size}"
        )
    middle = float(np.median(values))
    spread = max(1.4826 * float(np.median(np.abs(values - middle))), 0.02)
    reach = -float(student.ppf(level / max(tests, 1), max(2.0, EFFICIENCY * values.size)))
    limit = min(float(np.exp(middle - reach * spread)), MOST_RATIO)
    return Limit(limit, float(np.exp(middle)), spread, int(values.size), int(tests))


def duplicate_groups(nearest: ArrayLike, index: ArrayLike, limit: float) -> list[list[int]]:
    """Return groups of volumes of one cohort that lie nearer to each other than ``limit``.

    Args:
        nearest: (N, K) distances within the cohort.
        index: (N, K) whom they lead to.
        limit: distance.
    """
    table = np.asarray(nearest)
    rows, columns = np.nonzero(table < limit)
    others = np.asarray(index)[rows, columns]
    size = len(table)
    links = coo_array((np.ones(len(rows)), (rows, others)), shape=(size, size))
    _, group = connected_components(links, directed=False)
    members = [np.flatnonzero(group == number).tolist() for number in range(group.max() + 1)]
    return [one for one in members if len(one) > 1]
