"""Whole images side by side: the same image under another label is a copy too.

The search for copies centres volumes by their labels, and learns from real volumes how near is too
near; of few volumes it learns little. What is asked here needs neither: is an image, as a whole and
in any mirrored position, a small fraction as far from a training image as real ones usually are?
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, zoom

from medpair.metrics.nearest import FLIPS
from medpair.report.pairs import PairFolder

SIDE = 24
# Noise must not hide a copy: in voxels of that grid
BLUR = 1.0
# Of the usual distance between real volumes and their nearest ones: the nearest two of 168
# hippocampi, perhaps of one patient, are at 0.44 of it, of 26 brains at 0.73
NEAR = 0.25
# Neighbours of a training volume that say how near volumes usually are where it lies
AROUND = 5


def whole_images(pairs: PairFolder) -> NDArray[np.float32]:
    """Return (N, 24, 24, 24): every image's whole field of view, blurred."""
    grids = []
    for pair in pairs:
        factors = [SIDE / size for size in pair.image.shape]
        grid = zoom(pair.unit(), factors, order=1, mode="nearest", grid_mode=True)
        grids.append(gaussian_filter(grid, BLUR, mode="nearest"))
    return np.stack(grids).astype(np.float32)


def distances(
    queries: NDArray[np.float32], targets: NDArray[np.float32], common: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Return (N, M): 1 - correlation of what is left without ``common``, the nearest of all flips.

    Args:
        queries: (N, s, s, s).
        targets: (M, s, s, s).
        common: (s, s, s), the mean of the training images.
    """
    two = _standardised(targets - common)
    best = np.full((len(queries), len(targets)), -1.0)
    for axes in FLIPS:
        turned = np.flip(queries, tuple(axis + 1 for axis in axes)) if axes else queries
        best = np.maximum(best, _standardised(turned - common) @ two.T)
    return np.maximum(1.0 - best, 0.0)


def whole_copies(
    real: PairFolder, synthetic: PairFolder, holdout: PairFolder | None
) -> dict[str, Any]:
    """Return which synthetic images are training images, as plain data.

    Returns:
        ``usual``, the median distance of real images to their nearest training image; ``limit``,
        a share of that; ``lowest``, the lowest share; ``flagged``; and a row for each that is.
    """
    ours, theirs = whole_images(real), whole_images(synthetic)
    common = ours.mean(axis=0)
    among = distances(ours, ours, common)
    np.fill_diagonal(among, np.inf)
    reference = [among.min(axis=1)]
    if holdout is not None and len(holdout):
        reference.append(distances(whole_images(holdout), ours, common).min(axis=1))
    usual = float(np.median(np.concatenate(reference)))
    found = distances(theirs, ours, common)
    shares = NEAR * found / near_limits(usual, np.sort(among, axis=1)[:, : len(ours) - 1])
    nearest = shares.argmin(axis=1)
    rows: list[dict[str, Any]] = [
        {
            "synthetic": synthetic.cases[index].name,
            "real": real.cases[int(nearest[index])].name,
            "distance": float(found[index, nearest[index]]),
            "share": float(shares[index, nearest[index]]),
        }
        for index in range(len(theirs))
    ]
    copies = [row for row in rows if row["share"] < NEAR]
    return {
        "usual": usual,
        "limit": NEAR,
        "lowest": min(row["share"] for row in rows),
        "flagged": len(copies),
        "volumes": copies,
    }


def near_limits(usual: float, among: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (M,) how near to each training volume a copy of it is at least.

    Where volumes lie close together, as those of one protocol among many, honest ones do too: the
    usual distance is that around the training volume, if it is smaller.

    Args:
        usual: median distance of real volumes to their nearest.
        among: (M, K) distances of each training volume to its nearest others, nearest first.
    """
    around = np.median(among[:, :AROUND], axis=1)
    return np.asarray(np.maximum(NEAR * np.minimum(usual, around), np.finfo(np.float64).tiny))


def _standardised(images: NDArray[np.float32]) -> NDArray[np.float64]:
    flat = images.reshape(len(images), -1).astype(np.float64)
    flat -= flat.mean(axis=1, keepdims=True)
    length = np.linalg.norm(flat, axis=1, keepdims=True)
    return np.asarray(flat / np.maximum(length, 1e-12))
