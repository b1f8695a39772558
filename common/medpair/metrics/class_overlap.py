"""All classes of a pair of label maps at once, in one pass over the volume and not one a class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

Box = tuple[slice, ...]


def class_dice(
    prediction: NDArray[np.integer], truth: NDArray[np.integer], num_labels: int
) -> NDArray[np.float64]:
    """Return the Dice coefficient of each foreground class; NaN where neither map has it.

    Args:
        prediction: (W, H, D) class indices, 0 or more; classes above ``num_labels`` do not count.
        truth: of the same shape, likewise.
        num_labels: number of foreground classes, K.

    Returns:
        (K,) numbers in [0, 1], those of `distance.dice` to the bit.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction: expected shape {truth.shape}, found {prediction.shape}")

    def voxels(classes: NDArray[np.integer]) -> NDArray[np.intp]:
        return np.bincount(classes.ravel(), minlength=num_labels + 1)[1 : num_labels + 1]

    either = voxels(prediction) + voxels(truth)
    common = voxels(truth[prediction == truth])
    return np.divide(2 * common, either, out=np.full(num_labels, np.nan), where=either > 0)


def class_masks(
    maps: tuple[NDArray[np.integer], NDArray[np.integer]],
    num_labels: int,
    region: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Yield the two masks of each foreground class, cut to a box that holds both.

    They are not cut where one of the two is empty: its distance is the diagonal of the volume
    (`distance`).

    Args:
        maps: two (W, H, D) maps of class indices.
        num_labels: number of foreground classes.
        region: (W, H, D), what counts; None is everything.
    """
    boxes = [find_objects(np.ascontiguousarray(one), max_label=num_labels) for one in maps]

    def masks(value: int, box: Box) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        first, second = (one[box] == value for one in maps)
        return (first, second) if region is None else (first & region[box], second & region[box])

    whole = (slice(None),) * maps[0].ndim
    for value in range(1, num_labels + 1):
        pair = masks(value, _around([each[value - 1] for each in boxes], maps[0].ndim))
        yield pair if pair[0].any() == pair[1].any() else masks(value, whole)


def _around(boxes: Sequence[Box | None], axes: int) -> Box:
    """Return the smallest box that holds the given ones; an empty one where there is none."""
    there = [box for box in boxes if box is not None]
    return tuple(
        slice(
            min((box[axis].start for box in there), default=0),
            max((box[axis].stop for box in there), default=0),
        )
        for axis in range(axes)
    )
