"""Cohorts on a common coarse grid, where their volumes can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from medpair.metrics.nearest import Grid
from medpair.report.pairs import Pair, PairFolder

# Voxels of the common grid; its extent is that of a large label (90th percentile) and a margin.
VOXELS = 20_000
MARGIN, EXTENT_PERCENTILE = 0.15, 90
# Standard deviation of the blur before sampling, in coarse voxels: noise and a slight warp must
# not hide a copy.
BLUR = 0.8
# More classes share channels: what is compared is the layout, not the names.
MOST_CHANNELS = 8


@dataclass(frozen=True)
class Frame:
    """The common grid: cubic voxels, centred on the label of each volume.

    Attributes:
        shape: voxels per axis (RAS).
        spacing: millimetres.
    """

    shape: tuple[int, int, int]
    spacing: float


@dataclass(frozen=True)
class GridCohort:
    """A cohort in a frame: ``images`` standardised inside the volume, ``labels`` soft."""

    names: tuple[str, ...]
    images: Grid
    labels: Grid


def frame_of(real: Iterable[Pair], voxels: int = VOXELS) -> Frame:
    """Return the frame that holds the labels of a cohort, with some surroundings."""
    extents, steps = [], []
    for pair in real:
        extents.append(label_box(pair.label)[1] * np.asarray(pair.spacing))
        steps.append(min(pair.spacing))
    size = np.percentile(extents, EXTENT_PERCENTILE, axis=0) * (1 + 2 * MARGIN)
    # finer than the volumes are would be work for nothing
    spacing = max(float((np.prod(size) / voxels) ** (1 / 3)), float(np.median(steps)))
    shape = np.maximum(np.ceil(size / spacing), 4).astype(int)
    return Frame((int(shape[0]), int(shape[1]), int(shape[2])), spacing)


def label_box(label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return first voxel and size of the label's box; of the volume's where it is empty."""
    if not label.any():
        return np.zeros(3, int), np.asarray(label.shape)
    found = [np.flatnonzero(label.any(axis=other)) for other in ((1, 2), (0, 2), (0, 1))]
    low = np.array([axis[0] for axis in found])
    return low, np.array([axis[-1] + 1 for axis in found]) - low


def label_centre(label: np.ndarray) -> np.ndarray:
    """Return the centre of mass of the foreground, in voxels; the volume's where there is none."""
    counts = [(label > 0).sum(axis=other) for other in ((1, 2), (0, 2), (0, 1))]
    if counts[0].sum() == 0:
        return (np.asarray(label.shape) - 1) / 2
    return np.array([np.average(np.arange(len(count)), weights=count) for count in counts])


def grid_cohort(
    pairs: PairFolder | Sequence[Pair],
    num_labels: int,
    frame: Frame,
    progress: Callable[[int], object] | None = None,
) -> GridCohort:
    """Bring a cohort into a frame, one pair at a time."""
    names, images, masks, labels = [], [], [], []
    for pair in pairs:
        image, mask, label = on_grid(pair, num_labels, frame)
        names.append(pair.name)
        images.append(image)
        masks.append(mask)
        labels.append(label)
        if progress is not None:
            progress(1)
    inside = torch.from_numpy(np.stack(masks))[:, None]
    soft = torch.from_numpy(np.stack(labels))
    return GridCohort(
        tuple(names),
        Grid(torch.from_numpy(np.stack(images))[:, None], inside),
        # outside the volume there is no label: that is known
        Grid(soft, torch.ones_like(inside)),
    )


def on_grid(pair: Pair, num_labels: int, frame: Frame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image (H, W, D), mask (H, W, D) and soft labels (C, H, W, D) of a pair in a frame."""
    spacing = np.asarray(pair.spacing)
    steps = [(np.arange(n) - (n - 1) / 2) * frame.spacing for n in frame.shape]
    places = np.stack(np.meshgrid(*steps, indexing="ij")) / spacing[:, None, None, None]
    places += label_centre(pair.label)[:, None, None, None]
    size = np.asarray(pair.image.shape)[:, None, None, None]
    mask = ((places > -0.5) & (places < size - 0.5)).all(axis=0)
    sigma = BLUR * frame.spacing / spacing

    def sampled(volume: np.ndarray) -> np.ndarray:
        smooth = gaussian_filter(volume.astype(np.float32), sigma, mode="nearest", truncate=3)
        return map_coordinates(smooth, places, order=1, mode="nearest").astype(np.float32)

    image = sampled(pair.unit())
    inside = image[mask]
    image = np.where(mask, (image - inside.mean()) / max(float(inside.std()), 1e-6), 0)
    channels = min(num_labels, MOST_CHANNELS)
    code = np.where(pair.label > 0, (pair.label.astype(int) - 1) % channels + 1, 0)
    soft = [sampled(code == channel) * mask for channel in range(1, channels + 1)]
    return image.astype(np.float32), mask.astype(np.float32), np.stack(soft)
