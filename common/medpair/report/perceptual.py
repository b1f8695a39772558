"""Perceptual distance of two volumes: shift-tolerant LPIPS on slices in three views."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from medpair.data.files import DataError, load_torch
from medpair.networks.stlpips import ShiftTolerantAlexNet
from medpair.report.package_weights import PackageWeights
from medpair.report.view_slices import VIEWS, as_picture, slice_indices, spread, take_slice

WEIGHTS = PackageWeights(
    package="stlpips_pytorch",
    distribution="stlpips-pytorch",
    path="weights/vST0.0/alex_shift_tolerant.pth",
    sha256="b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee",
)
# The weights were trained on pictures of 64 x 64; below 24 pixels the last level has none left.
LEAST_SIDE = 64


def missing() -> str | None:
    """Return why this distance cannot be had, or None if it can."""
    return WEIGHTS.missing()


class ShiftTolerantLpips:
    """Shift-tolerant LPIPS with AlexNet (Ghildyal and Liu 2022) between two volumes.

    It is not the LPIPS of Zhang et al. 2018: network and weights are others, so its numbers cannot
    be set beside those of MedGen3D (Han et al. 2023) or other papers. It was trained on what
    people see in photographs.

    Args:
        slices: per view, evenly spread; 1 is the middle slice.
        device: where the network runs.

    Raises:
        DataError: if the weights are missing or are not the expected file.
        ValueError: if ``slices`` is not positive.
    """

    name = "st_lpips_alex"

    def __init__(self, slices: int = 1, device: str | torch.device = "cpu") -> None:
        if slices < 1:
            raise ValueError(f"slices: expected 1 or more, found {slices}")
        self.positions = spread(slices)
        self.device = torch.device(device)
        path = WEIGHTS.checked()
        self.network = ShiftTolerantAlexNet()
        try:
            self.network.load_state_dict(load_torch(path))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path}: expected weights of ST-LPIPS, found {reason}") from None
        self.network.to(self.device)

    def describe(self) -> dict[str, Any]:
        """Return weights' file, SHA-256, package and preprocessing as plain data for JSON."""
        return {
            "name": self.name,
            "backbone": "AlexNet, shift-tolerant",
            **WEIGHTS.describe(),
            "views": list(VIEWS),
            "positions": [round(position, 6) for position in self.positions],
            "preprocessing": "slices at these positions of the volume in each view, in -1..1, "
            f"three equal channels; enlarged to at least {LEAST_SIDE} pixels a side",
        }

    @torch.inference_mode()
    def distance(self, first: np.ndarray, second: np.ndarray) -> float:
        """Return the mean distance over the slices: 0 for equal volumes, symmetric.

        Args:
            first: (W, H, D) in -1..1, as ``Pair.unit`` gives.
            second: the same; where its size differs, slices at the same relative position are
                compared, both brought to the larger of each side.

        Raises:
            ValueError: if a volume is not three-dimensional.
        """
        for name, volume in (("first", first), ("second", second)):
            if np.ndim(volume) != 3:
                raise ValueError(f"{name}: expected (W, H, D), found shape {np.shape(volume)}")
        found = []
        for view in VIEWS:
            planes = [self._planes(volume, view) for volume in (first, second)]
            for one, two in zip(*planes, strict=True):
                size = _common_size(one.shape, two.shape)
                pictures = [as_picture(plane, size)[None].to(self.device) for plane in (one, two)]
                found.append(float(self.network(*pictures)))
        return float(np.mean(found))

    def _planes(self, volume: np.ndarray, view: str) -> list[np.ndarray]:
        """Return a volume's slices of a view, as many as there are positions."""
        return [
            take_slice(volume, view, slice_indices(None, volume.shape, view, [position])[0])
            for position in self.positions
        ]


def _common_size(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, int]:
    """Return the larger of each side, enlarged in proportion where the shorter is too short."""
    rows, columns = (max(a, b) for a, b in zip(first, second, strict=True))
    factor = max(1.0, LEAST_SIDE / min(rows, columns))
    return round(rows * factor), round(columns * factor)
