"""Two ways of doing something, scored on the same cases: difference, interval, test.

Cases are the units: where each way was run with several seeds, a case's scores are averaged over
the seeds first, since runs on the same case are not independent of each other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, wilcoxon

from medpair.metrics.summary import bootstrap_interval

# up to so many differences all signs are counted; beyond, the normal limit is as good
MAX_EXACT = 200
# digits to which two scores are told apart, in parts of the largest
ROUNDED = 9
K = TypeVar("K", bound=Hashable)


def wilcoxon_signed_rank(differences: ArrayLike) -> float:
    """Return the two-sided p-value of Wilcoxon's signed-rank test (1945, Biometrics 1:80).

    Exact for up to ``MAX_EXACT`` differences, also with equal ones (mid-ranks, all signs equally
    likely), where SciPy's exact distribution knows no ties; zeros are left out, as Wilcoxon did.
    With n differences that are not zero no p-value is below 2 / 2^n: five cases cannot give 0.05.

    Args:
        differences: (N,) finite numbers, one per case.

    Returns:
        The p-value; 1.0 where nothing differs.

    Raises:
        ValueError: if they are not finite or not one-dimensional.
    """
    values = _checked(differences, "differences")
    values = values[values != 0]
    if values.size == 0:
        return 1.0
    if values.size > MAX_EXACT:
        return float(wilcoxon(values).pvalue)
    # twice the mid-ranks are whole numbers
    ranks = np.rint(2 * rankdata(np.abs(values))).astype(int)
    chance = np.zeros(ranks.sum() + 1)
    chance[0] = 1.0
    for rank in ranks:
        shifted = np.zeros_like(chance)
        shifted[rank:] = chance[: chance.size - rank]
        chance = 0.5 * (chance + shifted)
    positive = ranks[values > 0].sum()
    tails = chance[: positive + 1].sum(), chance[positive:].sum()
    return float(min(1.0, 2 * min(tails)))


def paired_difference(
    values: ArrayLike, reference: ArrayLike, higher_is_better: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Compare two lists of scores of the same cases, as plain data for JSON.

    Args:
        values: (N,) scores, N >= 1.
        reference: (N,) scores of the same cases in the same order.
        higher_is_better: False for distances.
        seed: of the bootstrap.

    Returns:
        ``n``; ``difference``, the mean of values - reference; ``low`` and ``high``, its 95 %
        bootstrap interval over the cases; ``p`` of ``wilcoxon_signed_rank``; how many cases are
        ``better``, ``worse`` and ``equal``.

    Raises:
        ValueError: if the lists are empty, of different length, or not finite.
    """
    first, second = _checked(values, "values"), _checked(reference, "reference")
    if first.size != second.size or not first.size:
        raise ValueError(
            f"values: expected the {second.size} cases of the reference, found {first.size}"
        )
    difference = first - second
    low, high = bootstrap_interval(difference, seed=seed)
    # averages over seeds that are equal may differ in their last digit: neither is the better
    scale = max(np.abs(first).max(), np.abs(second).max(), np.finfo(float).tiny)
    rounded = np.round(difference / scale, ROUNDED)
    gain = rounded if higher_is_better else -rounded
    return {
        "n": int(difference.size),
        "difference": float(difference.mean()),
        "low": low,
        "high": high,
        "p": wilcoxon_signed_rank(rounded),
        "better": int((gain > 0).sum()),
        "worse": int((gain < 0).sum()),
        "equal": int((gain == 0).sum()),
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979, Scand J Stat 6:65), in their order.

    Raises:
        ValueError: if one is outside 0..1.
    """
    if any(not 0 <= p <= 1 for p in p_values):
        raise ValueError(f"p_values: expected numbers from 0 to 1, found {list(p_values)}")
    adjusted, largest = [0.0] * len(p_values), 0.0
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def average_over_seeds(runs: Sequence[Mapping[K, float]]) -> dict[K, float]:
    """Return each case's mean over several runs, in the order of the first.

    Raises:
        ValueError: if there is no run, or two of them have different cases.
    """
    if not runs:
        raise ValueError("runs: expected at least one, found none")
    for run in runs[1:]:
        if run.keys() != runs[0].keys():
            odd = sorted(map(str, run.keys() ^ runs[0].keys()))
            raise ValueError(f"runs: expected the same cases in all, found {odd[:3]} in some")
    return {case: float(np.mean([run[case] for run in runs])) for case in runs[0]}


def spread_over_seeds(runs: Sequence[Mapping[K, float]]) -> dict[str, Any]:
    """Return ``seed_means``, each run's mean over its cases, and their ``seed_std``.

    The standard deviation is divided by n - 1, and None for one run, which shows no spread.
    """
    means = [float(np.mean(list(run.values()))) for run in runs]
    return {
        "seed_means": means,
        "seed_std": float(np.std(means, ddof=1)) if len(means) > 1 else None,
    }


def _checked(values: ArrayLike, name: str) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers in one dimension, found {values!r}")
    return array
