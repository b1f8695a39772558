"""Voxel sizes of a cohort: how far they lie apart, within a volume and between volumes.

All volumes of a training are brought to one spacing. What lies far from it is invented or thrown
away by that: a warning from a factor of 2 between volumes, an error from ``MAX_RATIO`` on, between
volumes or between the axes of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medpair.data.faults import Fault, Level, numbers
from medpair.data.orientation import ras_axes

# Slices 6 mm apart with pixels of 0.3 mm are 20; a header that says more is wrong.
MAX_RATIO = 50.0
# Of a voxel, in millimetres: a micrometre to a metre. Headers outside of it count in other units.
SMALLEST, LARGEST = 1e-3, 1e3
# Beyond this between volumes, a person should look.
LARGE_RATIO = 2.0
AXES = ("left-right", "back-front", "foot-head")


def ras_spacing(affine: np.ndarray) -> np.ndarray:
    """Return the voxel sizes (3,) of an affine in RAS order, oblique or not."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axes = ras_axes(affine)[:, 0]
    if np.isnan(axes).any():  # no axis can be told from the others
        return spacing
    return spacing[np.argsort(axes)]


def spacing_faults(json_path: str, spacings: Mapping[Path, np.ndarray]) -> list[Fault]:
    """Compare the voxel sizes of images.

    Args:
        json_path: of the ``dataset.json``, which the range is reported of.
        spacings: (3,) millimetres in RAS order by image.
    """
    faults = []
    for path, spacing in spacings.items():
        if not (spacing.min() >= SMALLEST and spacing.max() <= LARGEST):
            expected = f"voxel sizes from {SMALLEST:g} to {LARGEST:g} mm"
            faults.append(Fault(str(path), "spacing", expected, f"{numbers(spacing)} mm"))
        if spacing.max() > MAX_RATIO * spacing.min():
            expected = f"voxel sizes within a factor of {MAX_RATIO:g}"
            faults.append(Fault(str(path), "spacing", expected, f"{numbers(spacing)} mm"))
    if faults or not spacings:
        return faults
    table = np.stack(list(spacings.values()))
    low, high = table.min(axis=0), table.max(axis=0)
    axis = int(np.argmax(high / low))
    ratio = float(high[axis] / low[axis])
    if ratio > LARGE_RATIO:
        limit = MAX_RATIO if ratio > MAX_RATIO else LARGE_RATIO
        expected = f"volumes whose spacings differ by a factor of {limit:g} at most"
        found = f"{low[axis]:.4g} to {high[axis]:.4g} mm {AXES[axis]}"
        level: Level = "error" if ratio > MAX_RATIO else "warning"
        faults.append(Fault(json_path, "spacing", expected, found, level))
    return faults
