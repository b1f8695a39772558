"""Pictures of cohorts that show no face."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from scipy.ndimage import binary_fill_holes, distance_transform_edt

from medpair.data.intensity import robust_range
from medpair.data.resampling import resample
from medpair.report.pairs import Pair, PairFolder
from medpair.report.preview import picture_of

# A field of view of this extent along every axis can hold a face; crops of an organ are smaller
FACE_MM = 100.0
# What is left around the labels where the rest is hidden
MARGIN_MM = 6.0
WIDTH = 1500
# Voxels along the longest axis of what is drawn: whole volumes are brought to cubic ones, which of
# thick slices are many
MOST_SHOWN = 320


def shown(pair: Pair, whole: bool = False) -> np.ndarray:
    """Return the image (W, H, D) as a report may show it.

    Where the field of view could hold a face, what is further than 6 mm from any label, and not
    enclosed by what is nearer, is set to the darkest value: brains are shown without the head.
    ``whole`` leaves everything.
    """
    extent = np.multiply(pair.image.shape, pair.spacing)
    if whole or (extent < FACE_MM).any():
        return pair.image
    low, _ = robust_range(pair.image)
    near = binary_fill_holes(near_labels(pair, MARGIN_MM))
    return np.where(near, pair.image, low).astype(np.float32)


def near_labels(pair: Pair, margin: float) -> np.ndarray:
    """Return (W, H, D) where it is at most ``margin`` mm from the centre of a labelled voxel."""
    if not pair.label.any():
        return np.zeros(pair.label.shape, bool)
    return distance_transform_edt(pair.label == 0, sampling=pair.spacing) <= margin


def cohort_picture(
    cohorts: Sequence[tuple[str, PairFolder]], count: int = 3, whole: bool = False
) -> bytes:
    """Return pairs of several cohorts side by side as PNG: planes plain, then with labels.

    Args:
        cohorts: (title, pairs) of each column.
        count: pairs of each cohort, evenly spread over it.
        whole: show what could be a face, too.
    """
    count = min(count, *(len(pairs) for _, pairs in cohorts))
    columns = []
    for title, pairs in cohorts:
        picks = np.linspace(0, len(pairs) - 1, count).round().astype(int)
        column = []
        for index in picks:
            pair = pairs[int(index)]
            column.append((*_cubic(shown(pair, whole), pair), f"{title}: {pair.name}"))
        columns.append(column)
    rows = [pair for line in zip(*columns, strict=True) for pair in line]
    largest = max(max(image.shape) for image, _, _ in rows)
    picture = picture_of(rows, columns=len(columns), scale=max(1, 220 // largest))
    return as_png(picture)


def _cubic(image: np.ndarray, pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label with voxels as long as they are wide: thick slices look squashed."""
    longest = max(n * step for n, step in zip(image.shape, pair.spacing, strict=True))
    spacing = [max(min(pair.spacing), longest / MOST_SHOWN)] * 3
    return (
        resample(image, pair.spacing, spacing, order=1),
        resample(pair.label, pair.spacing, spacing, order=0),
    )


def as_png(picture: np.ndarray, width: int = WIDTH) -> bytes:
    """Return (H, W, 3) uint8 as PNG, no wider than ``width``."""
    image = Image.fromarray(picture)
    if image.width > width:
        size = (width, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    buffer = BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
