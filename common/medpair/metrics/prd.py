"""Precision and recall of a synthetic cohort as distributions in a space of features.

Precision asks how much of the synthetic cohort lies where real cases lie; recall how much of the
real cohort the synthetic one reaches. Both are curves, since one may be traded for the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import MiniBatchKMeans

from medpair.data.sampling import derive_seed, numpy_generator
from medpair.metrics.clustering import Labels, kmeans
from medpair.metrics.frechet import Features, checked_features

Clustering = Literal["lloyd", "minibatch"]


@dataclass(frozen=True, eq=False)
class PRD:
    """Precision and recall for distributions.

    Attributes:
        precision: (A,) along the curve, from 0 up.
        recall: (A,) along the curve, down to 0.
        f8: largest F_8 of the curve: weighs recall.
        f1_8: largest F_1/8 of the curve: weighs precision.
        size: rows of each cohort that were clustered; the larger cohort gave a random part.
        clusters: number of clusters.
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    f8: float
    f1_8: float
    size: int
    clusters: int

    def to_json(self) -> dict[str, int | float]:
        """Return all but the curve as plain data."""
        return {
            "f8": self.f8,
            "f1_8": self.f1_8,
            "n_equal": self.size,
            "clusters": self.clusters,
        }


def prd_curve(
    real: ArrayLike,
    synthetic: ArrayLike,
    clusters: int = 10,
    num_angles: int = 1001,
    num_runs: int = 10,
    seed: int = 0,
    clustering: Clustering = "lloyd",
) -> PRD:
    """Cluster two cohorts together and return precision and recall of the synthetic one.

    Each run draws as many rows of the larger cohort as the smaller has, since clusters follow the
    larger one, and starts the clustering anew; the curve is the mean over the runs. A cluster
    must hold many rows: with few, chance alone keeps real and real apart. Set it beside the curve
    of two real halves of the same size.
    Reference: Sajjadi et al. 2018, NeurIPS, section 3.3.

    Args:
        real: (N, D), N >= 2.
        synthetic: (M, D), M >= 2.
        clusters: of the union; at most twice the smaller cohort.
        num_angles: points A of the curve.
        num_runs: clusterings to average over.
        seed: the same seed and features give the same curve.
        clustering: ``lloyd``, k-means on all rows (`medpair.metrics.clustering.kmeans`), or
            ``minibatch``, as the authors' code: scikit-learn's MiniBatchKMeans, five times slower
            and more, for figures to set beside published ones.

    Returns:
        The curve and its two summaries.

    Raises:
        ValueError: as `checked_features`, or an argument is out of range.
    """
    one, two = checked_features(real, synthetic)
    size = min(len(one), len(two))
    if not 1 <= clusters <= 2 * size:
        raise ValueError(f"clusters: expected 1 to {2 * size}, found {clusters}")
    if num_runs < 1:
        raise ValueError(f"num_runs: expected at least one, found {num_runs}")
    if clustering not in ("lloyd", "minibatch"):
        raise ValueError(f"clustering: expected lloyd or minibatch, found {clustering!r}")
    one, two = _without_unused_axes(one, two)
    curves = []
    for labels in _clustered(one, two, clusters, num_runs, seed, clustering):
        shares = [
            np.bincount(labels[side], minlength=clusters) / size
            for side in (slice(size), slice(size, None))
        ]
        curves.append(prd_from_histograms(shares[0], shares[1], num_angles))
    precision, recall = np.mean(curves, axis=0)
    return PRD(
        precision=precision,
        recall=recall,
        f8=max_f_beta(precision, recall, 8),
        f1_8=max_f_beta(precision, recall, 1 / 8),
        size=size,
        clusters=clusters,
    )


def prd_from_histograms(
    real: ArrayLike, synthetic: ArrayLike, num_angles: int = 1001
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precision and recall of one discrete distribution for another.

    With the slope ``t = tan(angle)``: precision is the sum of ``min(t real, synthetic)``, recall
    the sum of ``min(real, synthetic / t)``, at angles equally spaced from 0 to a right angle, both
    ends included. The largest precision is the synthetic mass where there is real mass, and the
    largest recall the real mass where there is synthetic mass: swapped arguments swap the two,
    and reverse the curve. (In the authors' code the synthetic distribution comes first.)
    Reference: Sajjadi et al. 2018, NeurIPS, equations 5 and 6, algorithm 1.

    Args:
        real: (K,) non-negative, of sum 1.
        synthetic: (K,), the same.
        num_angles: points A, at least 3.

    Returns:
        Precision (A,), never falling, and recall (A,), never rising; both within [0, 1].

    Raises:
        ValueError: no two distributions over the same bins, or fewer than 3 angles.
    """
    p, q = (np.asarray(histogram, dtype=np.float64) for histogram in (real, synthetic))
    if p.ndim != 1 or p.shape != q.shape:
        raise ValueError(f"synthetic: expected one row of {p.shape} bins, found {q.shape}")
    for name, histogram in (("real", p), ("synthetic", q)):
        if not ((histogram >= 0).all() and np.isclose(histogram.sum(), 1)):
            raise ValueError(f"{name}: expected shares of sum 1, found {histogram.sum()}")
    if num_angles < 3:
        raise ValueError(f"num_angles: expected at least 3, found {num_angles}")
    angles = np.linspace(0, np.pi / 2, num_angles)[1:-1, None]
    common = np.minimum(np.sin(angles) * p, np.cos(angles) * q).sum(axis=1)
    # the ends are limits: one of the two is a distribution's mass on the other's support
    precision = np.concatenate([[0], common / np.cos(angles[:, 0]), [q[p > 0].sum()]])
    recall = np.concatenate([[p[q > 0].sum()], common / np.sin(angles[:, 0]), [0]])
    return np.minimum(precision, 1), np.minimum(recall, 1)


def max_f_beta(precision: ArrayLike, recall: ArrayLike, beta: float) -> float:
    """Return the largest F_beta score along a curve, 0 for disjoint distributions.

    ``F = (1 + beta^2) precision recall / (beta^2 precision + recall)``: a large beta weighs recall.
    Reference: Sajjadi et al. 2018, section 4.

    Args:
        precision: (A,) within [0, 1].
        recall: (A,) within [0, 1].
        beta: positive.

    Returns:
        A number within [0, 1].

    Raises:
        ValueError: `beta` is not positive, the shapes differ or a value is outside [0, 1].
    """
    one, two = (np.asarray(values, dtype=np.float64) for values in (precision, recall))
    if not beta > 0:
        raise ValueError(f"beta: expected a positive number, found {beta}")
    if one.shape != two.shape or one.size == 0:
        raise ValueError(f"recall: expected the shape {one.shape}, not empty, found {two.shape}")
    for name, values in (("precision", one), ("recall", two)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name}: expected numbers from 0 to 1, found others")
    below = beta**2 * one + two
    above = (1 + beta**2) * one * two
    return float(np.divide(above, below, out=np.zeros_like(above), where=below > 0).max())


def _clustered(
    one: Features, two: Features, clusters: int, num_runs: int, seed: int, clustering: Clustering
) -> list[Labels]:
    """Return the clusters of as many rows of either set, those of the first first, by runs."""
    size = min(len(one), len(two))
    generators = [numpy_generator(seed, run) for run in range(num_runs)]
    parts = [
        np.concatenate(
            [
                rows if len(rows) == size else rows[np.sort(draw.permutation(len(rows))[:size])]
                for rows in (one, two)
            ]
        )
        for draw in (generators if len(one) != len(two) else generators[:1])
    ]
    if clustering == "lloyd":
        if len(parts) == 1:  # the same rows in every run: all runs in one pass
            return list(kmeans(parts[0], clusters, generators))
        return [kmeans(rows, clusters, [g])[0] for rows, g in zip(parts, generators, strict=True)]
    return [
        MiniBatchKMeans(
            n_clusters=clusters, n_init=10, random_state=derive_seed(seed, run) % 2**32
        ).fit_predict(parts[run % len(parts)])
        for run in range(num_runs)
    ]


def _without_unused_axes(one: Features, two: Features) -> tuple[Features, Features]:
    """Return both sets in coordinates of their span, where those are fewer than the features.

    Distances stay, and so the clusters; the clustering takes time by the axis.
    """
    both = np.concatenate([one, two])
    if both.shape[1] > len(both):
        both = np.asarray(np.linalg.qr(both.T, mode="r")).T
    return both[: len(one)], both[len(one) :]
