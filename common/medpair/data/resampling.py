"""Volumes from one voxel size to another, on the grid that segmenters are trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Spacing

from medpair.data.check_header import MAX_VOXELS
from medpair.data.faults import numbers
from medpair.data.files import DataError

# Two spacings closer than this (relative) are the same grid: headers carry rounding.
SPACING_TOLERANCE = 0.05


def resampled_size(
    size: Sequence[int], old: Sequence[float], new: Sequence[float], source: str = "spacing"
) -> list[int]:
    """Return the size of a volume that is brought from one spacing to another.

    Raises:
        DataError: if it would have more voxels than a volume may have; names ``source``.
    """
    result = [int(np.round((n - 1) * a / b + 1)) for n, a, b in zip(size, old, new, strict=True)]
    if math.prod(result) > MAX_VOXELS:
        raise DataError(
            f"{source}: expected at most {MAX_VOXELS} voxels at {numbers(new)} mm, found "
            f"{tuple(result)} made of {tuple(size)} at {numbers(old)} mm"
        )
    return result


def same_spacing(old: Sequence[float], new: Sequence[float]) -> bool:
    """Tell whether a volume of one spacing counts as one of another, and is not resampled."""
    return bool(np.allclose(old, new, rtol=SPACING_TOLERANCE))


def resample(
    array: np.ndarray, old: Sequence[float], new: Sequence[float], order: int
) -> np.ndarray:
    """Resample (W, H, D) from one spacing to another; ``order`` 1 for images, 0 for labels.

    The grid is that of MONAI's ``Spacing``, with which segmenters are trained: the first voxel
    keeps its place. Were every second voxel taken there and the mean of eight here, a segmenter
    would find generated images smoother than real ones, and their labels half a voxel off.
    """
    if same_spacing(old, new):
        return array
    resampled_size(array.shape, old, new)
    spacing = Spacing(new, mode="bilinear" if order else "nearest", padding_mode="border")
    affine = torch.diag(torch.tensor([*old, 1.0], dtype=torch.float64))
    volume = MetaTensor(np.ascontiguousarray(array, np.float32)[None], affine=affine)
    return spacing(volume)[0].numpy().astype(array.dtype)
