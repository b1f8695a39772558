"""How far apart two sets of feature vectors are: Frechet and kernel distance."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import svdvals

Features = NDArray[np.float64]


def frechet_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the squared Frechet distance of the Gaussians fitted to two sets of features.

    It grows with the number of features and shrinks with the number of samples: the value for
    two samples of one distribution is far above 0. Compare values of equal sample size only, as
    `medpair.metrics.compared.compare` does. Symmetric; 0 for equal sets.
    Reference: Heusel et al. 2017, NeurIPS, equation 6. There the cross term is the trace of a
    matrix square root. It is also the sum of singular values of ``X Y^T``, X and Y the centred
    features, and so needs no square root of a singular matrix.

    Args:
        first: (N, D) finite numbers, N >= 2.
        second: (M, D), M >= 2.

    Returns:
        A number >= 0, in the squared unit of the features. Covariances are divided by n - 1.

    Raises:
        ValueError: a set is no matrix, has fewer than two rows or values that are not finite, or
            the numbers of columns differ.
    """
    one, two = checked_features(first, second)
    apart = one.mean(axis=0) - two.mean(axis=0)
    root, other = _covariance_root(one), _covariance_root(two)
    spread = np.square(root).sum() + np.square(other).sum()
    return max(0.0, float(apart @ apart + spread - 2 * svdvals(root @ other.T).sum()))


def kernel_distance(first: ArrayLike, second: ArrayLike) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets of features.

    The kernel is ``(x . y / D + 1)^3``. The mean over samples of one distribution is 0, whatever
    the sample size, so a value may be negative. Every pair of rows is used: the published mean
    over random blocks estimates the same number, less exactly.
    Reference: Binkowski et al. 2018, ICLR, equation 4 and section 3 (KID).

    Args:
        first: (N, D) finite numbers, N >= 2.
        second: (M, D), M >= 2.

    Returns:
        The distance, without unit.

    Raises:
        ValueError: as `frechet_distance`.
    """
    one, two = checked_features(first, second)
    return _mean_of_pairs(one) + _mean_of_pairs(two) - 2 * float(_kernel(one, two).mean())


def checked_features(first: ArrayLike, second: ArrayLike) -> tuple[Features, Features]:
    """Return two sets of features in double precision.

    Args:
        first: (N, D) finite numbers, N >= 2.
        second: (M, D), M >= 2.

    Returns:
        The two, float64.

    Raises:
        ValueError: a set is no matrix, has fewer than two rows or values that are not finite, or
            the numbers of columns differ.
    """
    sets = []
    for name, values in (("first", first), ("second", second)):
        features = np.asarray(values, dtype=np.float64)
        if features.ndim != 2 or features.shape[0] < 2 or features.shape[1] < 1:
            raise ValueError(
                f"{name}: expected at least two rows of features, found shape {features.shape}"
            )
        bad = int(np.count_nonzero(~np.isfinite(features)))
        if bad:
            raise ValueError(f"{name}: expected finite numbers, found {bad} that are not")
        sets.append(features)
    one, two = sets
    if one.shape[1] != two.shape[1]:
        raise ValueError(f"second: expected {one.shape[1]} columns, found {two.shape[1]}")
    return one, two


def _covariance_root(features: Features) -> Features:
    """Return R of the fewest rows with ``R^T R`` the covariance: centred rows, or their QR's R."""
    count, width = features.shape
    centred = (features - features.mean(axis=0)) / np.sqrt(count - 1)
    if count <= width:
        return centred
    return np.asarray(np.linalg.qr(centred, mode="r"))


def _kernel(one: Features, two: Features) -> Features:
    return np.asarray((one @ two.T / one.shape[1] + 1) ** 3)


def _mean_of_pairs(features: Features) -> float:
    """Return the mean of the kernel over the pairs of two different rows."""
    count = len(features)
    kernel = _kernel(features, features)
    return float((kernel.sum() - np.trace(kernel)) / (count * (count - 1)))
