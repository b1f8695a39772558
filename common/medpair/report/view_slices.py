"""Slices of a volume in three views, as networks for photographs take them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medpair.data.slices import AXES

VIEWS = ("axial", "coronal", "sagittal")


def spread(count: int) -> tuple[float, ...]:
    """Return the middles of ``count`` equal parts of 0..1: 5 gives 0.1, 0.3, 0.5, 0.7, 0.9."""
    return tuple((index + 0.5) / count for index in range(count))


def slice_indices(
    label: np.ndarray | None, size: Sequence[int], view: str, positions: Sequence[float]
) -> list[int]:
    """Return the slices at relative positions of the labelled part of a volume.

    Args:
        label: (W, H, D) classes, 0 the background; None, or nothing labelled: the whole volume.
        size: (W, H, D).
        view: axial, coronal or sagittal.
        positions: from 0, the first labelled slice's outer face, to 1, the last one's.

    Returns:
        Indices in ascending order, each once: a thin part gives fewer than ``positions``.
    """
    axis = AXES[view]
    first, stop = 0, int(size[axis])
    if label is not None:
        other = tuple(a for a in range(3) if a != axis)
        found = np.flatnonzero((label > 0).any(axis=other))
        if found.size:
            first, stop = int(found[0]), int(found[-1]) + 1
    chosen = {min(stop - 1, int(first + p * (stop - first))) for p in positions}
    return sorted(chosen)


def take_slice(volume: np.ndarray, view: str, index: int) -> np.ndarray:
    """Return a slice of (W, H, D) as a picture (rows, columns), head or front up."""
    return np.take(volume, index, axis=AXES[view]).T[::-1]


def as_picture(plane: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return a slice (rows, columns) as (3, *size) float32: three equal channels.

    It is resized bilinearly whatever its proportions, and smoothed before it is made smaller.
    """
    tensor = torch.from_numpy(np.ascontiguousarray(plane, dtype=np.float32))[None, None]
    if tuple(plane.shape) != tuple(size):
        tensor = functional.interpolate(
            tensor, size, mode="bilinear", align_corners=False, antialias=True
        )
    return tensor[0].expand(3, -1, -1)
