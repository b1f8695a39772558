"""How well a score tells two groups of cases apart: area under the curve, and low values."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import hypergeom, norm, rankdata


@dataclass(frozen=True)
class BelowShare:
    """How many values lie below a low percentile of a reference.

    Attributes:
        count: values below `threshold`.
        values: number of values.
        reference: number of reference values.
        threshold: the reference value of rank `rank`.
        rank: of the threshold, from 1 for the smallest.
        expected: mean of `count` if both come from one distribution.
        p_value: chance of `count` or more if both come from one distribution.
    """

    count: int
    values: int
    reference: int
    threshold: float
    rank: int
    expected: float
    p_value: float

    @property
    def share(self) -> float:
        """Share of the values that lie below the threshold."""
        return self.count / self.values

    def to_json(self) -> dict[str, Any]:
        """Return the fields and the share as plain data."""
        return {**asdict(self), "share": self.share}


def auc(positive: ArrayLike, negative: ArrayLike) -> float:
    """Return the chance that a positive case scores above a negative one, ties counted half.

    Reference: Mann & Whitney 1947, Ann Math Stat 18:50; the area under the ROC curve.

    Args:
        positive: (N,) finite scores, N >= 1.
        negative: (M,), M >= 1.

    Returns:
        0.5 for no difference, 1 for all positive above all negative.

    Raises:
        ValueError: a group is empty, not one-dimensional or not finite.
    """
    return float(_placements(positive, negative)[0].mean())


def auc_interval(
    positive: ArrayLike, negative: ArrayLike, level: float = 0.95
) -> tuple[float, float]:
    """Return an interval of the area under the ROC curve that holds up near 0 and 1.

    It reaches as far as either of two intervals: DeLong's variance (DeLong et al. 1988,
    Biometrics 44:837) on the logit scale, which knows unequal spreads but shrinks to a point at
    0 and 1; and Newcombe's score interval (Newcombe 2006, Stat Med 25:559, method 5), which
    depends on the area and the group sizes alone and has a width there. At 0 and 1 it is the
    latter.

    Coverage of the nominal 95 %, 1000 simulations of normal scores each, areas 0.5 to 0.995, 10 to
    100 cases a group, spreads equal or 2 to 1: 0.945 to 0.99. Alone, DeLong's on the logit scale
    fell to 0.83 (20 and 100 cases, area 0.97), Newcombe's to 0.88 and DeLong's plain one to 0.20.

    Args:
        positive: (N,) finite scores, N >= 2.
        negative: (M,), M >= 2.
        level: nominal coverage, between 0 and 1.

    Returns:
        Low and high end, within [0, 1].

    Raises:
        ValueError: a group has fewer than two scores, is not one-dimensional or not finite, or
            `level` is outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected a number between 0 and 1, found {level}")
    of_positive, of_negative = _placements(positive, negative)
    if min(of_positive.size, of_negative.size) < 2:
        raise ValueError("positive, negative: expected at least two scores each, found fewer")
    area = float(of_positive.mean())
    reach = float(norm.ppf(0.5 + level / 2))
    low, high = _newcombe(area, of_positive.size, of_negative.size, reach)
    if 0 < area < 1:
        variance = sum(side.var(ddof=1) / side.size for side in (of_positive, of_negative))
        half = reach * math.sqrt(variance) / (area * (1 - area))
        low = min(low, float(expit(logit(area) - half)))
        high = max(high, float(expit(logit(area) + half)))
    return low, high


def below_share_test(
    values: ArrayLike, reference: ArrayLike, percentile: float = 1.0
) -> BelowShare:
    """Count the values below a low percentile of a reference, and test it exactly.

    The percentile of few reference values is itself uncertain: the smallest of 20 is no first
    percentile. So the threshold is the k-th smallest reference value, ``k = percentile / 100 * M``
    rounded up. If both groups come from one distribution, every order of the N + M values is
    equally likely, and the number of values before the k-th reference value is negative
    hypergeometric whatever the distribution. Equal to the threshold is not below it, so ties make
    the p-value too large, never too small. With k = 1 and N values, s of them below, the p-value
    cannot be under that of ``s = N``: few reference values prove little.

    Args:
        values: (N,) finite numbers, N >= 1, as the distances of synthetic to training cases.
        reference: (M,), M >= 1, as the distances of real unseen to training cases.
        percentile: above 0, at most 100.

    Returns:
        The count, the threshold and the one-sided p-value.

    Raises:
        ValueError: a group is empty, not one-dimensional or not finite; `percentile` is out of
            range.
    """
    ours, theirs = _scores("values", values), np.sort(_scores("reference", reference))
    if not 0 < percentile <= 100:
        raise ValueError(f"percentile: expected above 0, at most 100, found {percentile}")
    # rounded first: 7 % of 100 is 7.000000000000001 in floating point
    rank = max(1, math.ceil(round(percentile / 100 * theirs.size, 9)))
    threshold = float(theirs[rank - 1])
    count = int(np.count_nonzero(ours < threshold))
    # s or more values come before the k-th reference value where the first s + k - 1 of all hold
    # at most k - 1 reference values
    chance = hypergeom.cdf(rank - 1, ours.size + theirs.size, theirs.size, count + rank - 1)
    return BelowShare(
        count=count,
        values=ours.size,
        reference=theirs.size,
        threshold=threshold,
        rank=rank,
        expected=ours.size * rank / (theirs.size + 1),
        p_value=min(1.0, float(chance)),
    )


def _placements(
    positive: ArrayLike, negative: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each case's share of the other group on its right side (Sun & Xu 2014, equation 3)."""
    one, two = _scores("positive", positive), _scores("negative", negative)
    ranks = rankdata(np.concatenate([one, two]))
    of_positive = (ranks[: one.size] - rankdata(one)) / two.size
    of_negative = 1 - (ranks[one.size :] - rankdata(two)) / one.size
    return of_positive, of_negative


def _newcombe(area: float, positive: int, negative: int, reach: float) -> tuple[float, float]:
    """Return the areas t with ``|area - t| <= reach sd(t)``, sd from Hanley & McNeil 1982."""
    mean_size = (positive + negative) / 2

    def beyond(t: float) -> float:
        scale = 1 + (mean_size - 1) * ((1 - t) / (2 - t) + t / (1 + t))
        return (area - t) ** 2 - reach**2 * t * (1 - t) * scale / (positive * negative)

    # at its own place `beyond` is below 0 and at 0 and 1 above, but for an area of 0 or 1
    edge = 1e-12
    low = brentq(beyond, 0, min(area, 1 - edge)) if area > edge else 0.0
    high = brentq(beyond, max(area, edge), 1) if area < 1 - edge else 1.0
    return float(low), float(high)


def _scores(name: str, values: ArrayLike) -> NDArray[np.float64]:
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or scores.size == 0:
        raise ValueError(f"{name}: expected at least one number in a row, found {scores.shape}")
    bad = int(np.count_nonzero(~np.isfinite(scores)))
    if bad:
        raise ValueError(f"{name}: expected finite numbers, found {bad} that are not")
    return scores
