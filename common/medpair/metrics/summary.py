"""One line of a results table: count, mean, spread and a bootstrap interval of per-case scores."""

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import DegenerateDataWarning, bootstrap

# Resampled values held at once: some 50 MB with SciPy's indices, however many cases there are.
_VALUES_AT_ONCE = 2_000_000


def bootstrap_interval(
    values: ArrayLike,
    statistic: Callable[..., float] = np.mean,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the bias-corrected and accelerated (BCa) bootstrap interval of a statistic.

    Where BCa is undefined (as for a median that no one value moves when left out) the interval is
    the percentile interval of the same resamples. One value, or values all equal, show no spread to
    resample: the interval is then the statistic twice, and its width says nothing.
    Reference: Efron 1987, J Am Stat Assoc 82:171.

    Args:
        values: (N,) finite numbers, N >= 1, one per independent case.
        statistic: maps (N,) to a number; much faster if it takes `axis`, as NumPy's do.
        level: coverage, between 0 and 1.
        resamples: number of bootstrap samples.
        seed: the same seed and values give the same interval.

    Returns:
        Low and high end, in the unit of the statistic.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite; `level` is outside
            (0, 1); `resamples` is not positive.
    """
    cases = _checked(values)
    if cases.size == 0:
        raise ValueError("values: expected at least one number, found none")
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")
    if resamples < 1:
        raise ValueError(f"resamples: expected a positive number, found {resamples}")
    if np.all(cases == cases[0]):
        whole = float(statistic(cases))
        return whole, whole
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", DegenerateDataWarning)
        result = bootstrap(
            (cases,),
            statistic,
            confidence_level=level,
            n_resamples=resamples,
            batch=max(1, _VALUES_AT_ONCE // cases.size),
            method="BCa",
            random_state=np.random.default_rng(seed),
        )
    ends = np.array(result.confidence_interval)
    if not np.isfinite(ends).all():
        tail = (1 - level) / 2
        ends = np.quantile(result.bootstrap_distribution, [tail, 1 - tail])
    return float(ends[0]), float(ends[1])


def summarize(
    values: ArrayLike, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> dict[str, int | float | None]:
    """Summarize per-case scores as plain Python numbers, ready for JSON.

    Args:
        values: (N,) finite numbers, one per independent case; N may be 0.
        level: coverage of the interval, between 0 and 1.
        resamples: number of bootstrap samples.
        seed: the same seed and values give the same interval.

    Returns:
        `n`; `mean`; `std` (divided by n - 1, and 0.0 for one value); `low` and `high`, the ends
        of `bootstrap_interval` of the mean; `median`. All but `n` have the unit of `values`, and
        are None when there are none.

    Raises:
        ValueError: as `bootstrap_interval`, but for the empty case.
    """
    cases = _checked(values)
    if cases.size == 0:
        nothing = dict.fromkeys(("mean", "std", "low", "high", "median"))
        return {"n": 0, **nothing}
    low, high = bootstrap_interval(cases, np.mean, level, resamples, seed)
    return {
        "n": cases.size,
        "mean": float(cases.mean()),
        "std": float(cases.std(ddof=1)) if cases.size > 1 else 0.0,
        "low": low,
        "high": high,
        "median": float(np.median(cases)),
    }


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    cases = np.asarray(values, dtype=np.float64)
    if cases.ndim != 1:
        raise ValueError(f"values: expected one dimension, found shape {cases.shape}")
    bad = int(np.count_nonzero(~np.isfinite(cases)))
    if bad:
        raise ValueError(
            f"values: expected finite numbers, found {bad} of {cases.size} that are not"
        )
    return cases
