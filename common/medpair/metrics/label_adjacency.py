"""Which classes touch, and over how much of their surface."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def adjacency(label: ArrayLike, num_labels: int, spacing: Sequence[float]) -> NDArray[np.float64]:
    """Return the shares of each class's surface that it has in common with each other class.

    The surface is that of voxel faces between two voxels of the volume: faces at its outside, where
    nothing is known of what follows, do not count.

    Args:
        label: (W, H, D) class indices in 0..num_labels.
        num_labels: number of foreground classes, K.
        spacing: size of a voxel in mm, one number per axis.

    Returns:
        (K + 1, K + 1): row a, column b is the share of class a's surface that touches class b; the
        diagonal is 0, and a row sums to 1, or to 0 where a class has no surface.

    Raises:
        ValueError: ``label`` is not three-dimensional, or has a class out of range.
    """
    classes = np.asarray(label)
    if classes.ndim != 3:
        raise ValueError(f"label: expected (W, H, D), found shape {classes.shape}")
    count = num_labels + 1
    if classes.size and not 0 <= int(classes.min()) <= int(classes.max()) < count:
        raise ValueError(
            f"label: expected classes 0 to {num_labels}, found {classes.min()} to {classes.max()}"
        )
    areas = np.zeros((count, count))
    for axis in range(3):
        area = float(np.prod([size for other, size in enumerate(spacing) if other != axis]))
        here = np.moveaxis(classes, axis, 0)[:-1].ravel().astype(np.int64)
        there = np.moveaxis(classes, axis, 0)[1:].ravel().astype(np.int64)
        differs = here != there
        pairs = here[differs] * count + there[differs]
        faces = np.bincount(pairs, minlength=count * count).reshape(count, count)
        areas += area * (faces + faces.T)
    total = areas.sum(axis=1, keepdims=True)
    return np.divide(areas, total, out=np.zeros_like(areas), where=total > 0)
