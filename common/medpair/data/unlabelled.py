"""Classes for what has no label, so that generators know where there is tissue.

Label maps name what somebody needed: four tissues of the brain, seven organs of a trunk. What lies
around them, all background, is most of the image, and a generator that draws images to label maps
knows nothing of it: it draws a blur, and a segmenter trained on that finds organs in it. So the
background of each training volume can be divided by intensity into air and a few tissues, by
thresholds that all volumes of the cohort share. These classes are generated with or around label
maps, images drawn to them, and the classes left out when pairs are written. (Dividing the
unlabelled surroundings into intensity clusters is also how SynthSeg paints them: Billot et al.
2023, doi:10.1016/j.media.2023.102789.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

# Voxels (standard deviation): noise must not decide what a voxel is
SMOOTHING = 0.8
# Of the histogram of -1..1 that thresholds are found in; with more of them five classes take long
BINS = 128
# Five classes with the background: the search for more thresholds takes minutes
MOST = 4
PREFIX = "unlabelled_"


def require_count(count: int) -> None:
    """Refuse what is no number of classes.

    Raises:
        ValueError: if it is none.
    """
    whole = isinstance(count, int) and not isinstance(count, bool)
    if not whole or not 0 <= count <= MOST:
        raise ValueError(
            f"unlabelled_classes: expected a whole number from 0 to {MOST}, found {count!r}"
        )


def class_names(count: int) -> tuple[str, ...]:
    """Return the names of so many classes, the darkest first."""
    return tuple(f"{PREFIX}{number + 1}" for number in range(count))


def find_thresholds(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], count: int
) -> tuple[float, ...]:
    """Return the intensities that divide a cohort's background into air and ``count`` classes.

    They are Otsu's, for several classes, over the background voxels of all volumes together.

    Args:
        pairs: image (W, H, D) in -1..1 and class indices of each volume.
        count: at least 1.

    Raises:
        ValueError: if the background has fewer intensities than that takes.
    """
    # here alone: whoever reads a cohort would else need the package, and wait for it
    from skimage.filters import threshold_multiotsu

    edges = np.linspace(-1.0, 1.0, BINS + 1)
    counts = np.zeros(BINS, np.int64)
    for image, label in pairs:
        counts += np.histogram(_smooth(image, label)[label == 0], edges)[0]
    if np.count_nonzero(counts) <= count:
        raise ValueError(
            f"unlabelled_classes: expected a background of more than {count} intensities to be "
            f"divided, found {np.count_nonzero(counts)}"
        )
    found = threshold_multiotsu(
        classes=count + 1, hist=(counts.astype(np.float64), (edges[:-1] + edges[1:]) / 2)
    )
    return tuple(round(float(value), 6) for value in found)


def divided(
    image: np.ndarray, label: np.ndarray, thresholds: Sequence[float], first: int
) -> np.ndarray:
    """Return class indices (W, H, D) in which unlabelled tissue has classes of its own.

    Args:
        image: (W, H, D) in -1..1.
        label: class indices, 0 what has no label.
        thresholds: from ``find_thresholds``; none leave the label map as it is.
        first: index of the darkest of the new classes; what is darker still stays background.
    """
    if not thresholds:
        return label
    number = np.digitize(_smooth(image, label), thresholds)
    dtype = np.uint8 if first + len(thresholds) <= 256 else np.uint16
    tissue = np.where(number > 0, first + number - 1, 0).astype(dtype)
    return np.where(label > 0, label.astype(dtype), tissue)


def joined(label: np.ndarray, num_labels: int) -> np.ndarray:
    """Return class indices in which whatever is beyond ``num_labels`` is background again."""
    return np.where(label > num_labels, 0, label).astype(label.dtype)


def _smooth(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Return what has no label (W, H, D) smoothed; labelled tissue is no part of its means.

    A brain would else shine into the bone around it, and a brain without its skull have a rim.
    """
    share = gaussian_filter((label == 0).astype(np.float32), SMOOTHING, mode="nearest")
    kept = np.where(label == 0, image, 0).astype(np.float32)
    total = gaussian_filter(kept, SMOOTHING, mode="nearest")
    return np.divide(total, share, out=kept, where=(label == 0) & (share > 0))
