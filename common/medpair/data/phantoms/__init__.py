"""Simulated cohorts: labelled volumes that belong to nobody, made from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Phantom"]


@dataclass(frozen=True)
class Phantom:
    """One simulated volume with its labels, all three on one grid.

    Arrays are (W, H, D) in RAS voxel order: x grows to the patient's right, y to the front, z to
    the top. ``image`` is int16, ``label`` and ``roi`` (where evaluation may be restricted to) are
    uint8, ``spacing`` is the voxel size in mm along x, y, z.
    """

    image: np.ndarray
    label: np.ndarray
    roi: np.ndarray
    spacing: tuple[float, float, float]
