"""The intensities of a volume and the -1..1 of networks."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)

# The robust range of a volume: a few hot voxels or a wide empty margin must not set the scale.
ROBUST_PERCENTILES = (0.5, 99.5)
# CT numbers mean the same in every volume: one range for all; below air lies only padding. The
# channel's name says what is CT, as in nnU-Net.
CT, LEAST_CT_NUMBER = "CT", -1024.0


def robust_range(image: np.ndarray) -> tuple[float, float]:
    """Return the 0.5th and 99.5th percentile: what becomes -1 and 1.

    Where these are equal, minimum and maximum take their place; of an image with one intensity,
    that intensity and one more, so that it becomes -1 everywhere: the darkest, as padding is.
    """
    low, high = (float(value) for value in np.percentile(image, ROBUST_PERCENTILES))
    if high <= low:
        low, high = float(image.min()), float(image.max())
    # a constant image has no scale: everything maps to the low end
    return (low, high) if high > low else (low, low + 1.0)


def to_unit(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map ``low..high`` to -1..1 and clip."""
    return np.clip((image - low) * (2.0 / (high - low)) - 1.0, -1.0, 1.0).astype(np.float32)


def from_unit(image: Array, low: float, high: float) -> Array:
    """Map -1..1 to ``low..high``."""
    return (image + 1.0) * (0.5 * (high - low)) + low
