"""Overlap and distance between two masks: Dice and the balanced average Hausdorff distance.

Empty masks have no distance, so one convention holds for every caller:

=================  ======  ==============================================================
prediction, truth  dice    balanced_average_hausdorff
=================  ======  ==============================================================
both empty         1       0
exactly one empty  0       diagonal of the volume, ``|shape * spacing|``
neither            DSC     Aydin et al. 2021
=================  ======  ==============================================================

The diagonal is longer than the distance between any two voxels, and finite, so a mean over cases
stays finite. It does not bound the measure: a prediction far larger than the truth can pass it,
since its sum is divided by the size of the truth. To count empty masks apart, ask ``mask.any()``.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt
from scipy.spatial import cKDTree

Mask = NDArray[np.bool_]
Spacing = NDArray[np.float64]

# A distance transform costs about the same whatever the masks hold. The tree is some twenty times
# faster on masks that nearly agree, but a query among many equally far voxels visits them all and
# can be a hundred times slower. These keep the tree for near voxels and for a few far ones; they
# choose the cheaper way, never the answer.
_NEAR = 8.0  # in voxels of the coarsest axis
_VOXELS_PER_QUERY = 8  # more differing voxels than one in so many: transform
_VOXELS_PER_FAR_QUERY = 256  # more far voxels than one in so many: transform


def dice(prediction: ArrayLike, truth: ArrayLike) -> float:
    """Return the Dice similarity coefficient ``2 TP / (2 TP + FP + FN)`` of two masks.

    Args:
        prediction: boolean array of any shape.
        truth: boolean array of the same shape.

    Returns:
        A number in [0, 1], no unit; 1 when both masks are empty, 0 when exactly one is.

    Raises:
        ValueError: a mask is not boolean, or the shapes differ.
    """
    prediction, truth = _checked_masks(prediction, truth)
    voxels = int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
    if voxels == 0:
        return 1.0
    return 2 * int(np.count_nonzero(prediction & truth)) / voxels


def balanced_average_hausdorff(
    prediction: ArrayLike, truth: ArrayLike, spacing: Sequence[float] | None = None
) -> float:
    """Return the balanced average Hausdorff distance (bAHD, also bAVD) from truth to prediction.

    With G the voxels of the truth, S those of the prediction and d the distance from a voxel's
    centre to the nearest voxel of a mask (0 inside it), all foreground voxels counted::

        bAHD = (sum_{g in G} d(g, S) + sum_{s in S} d(s, G)) / (2 |G|)

    Both sums are divided by |G|, so swapping the masks changes the value.
    Reference: Aydin et al. 2021, Eur Radiol Exp 5:4.

    Args:
        prediction: boolean array, (H, W, D) or any other number of axes.
        truth: boolean array of the same shape.
        spacing: distance between voxel centres in mm, one per axis; None counts in voxels.

    Returns:
        The distance in mm, or in voxels without `spacing`; the module says what for empty masks.

    Raises:
        ValueError: a mask is not boolean, the shapes differ, or `spacing` is not one positive,
            finite number per axis.
    """
    prediction, truth = _checked_masks(prediction, truth)
    steps = _checked_spacing(spacing, truth.ndim)
    if not (prediction.any() and truth.any()):
        if prediction.any() or truth.any():
            return float(np.linalg.norm(np.multiply(truth.shape, steps)))
        return 0.0
    prediction, truth = _cropped(prediction, truth)
    total = _distance_sum(truth & ~prediction, prediction, steps)
    total += _distance_sum(prediction & ~truth, truth, steps)
    return total / (2 * int(np.count_nonzero(truth)))


def _distance_sum(sources: Mask, target: Mask, spacing: Spacing) -> float:
    """Sum, over the voxels of `sources` (all outside `target`), the distance to `target`."""
    queries = int(np.count_nonzero(sources))
    if queries == 0:
        return 0.0
    if queries * _VOXELS_PER_QUERY > sources.size:
        return _distance_sum_by_transform(sources, target, spacing)

    # The two switches build the tree faster and leave every answer as it is.
    boundary = _coordinates(_boundary(target), spacing)
    tree = cKDTree(boundary, balanced_tree=False, compact_nodes=False)
    points = _coordinates(sources, spacing)
    distance, _ = tree.query(points, distance_upper_bound=_NEAR * spacing.max())
    far = np.isinf(distance)
    if np.count_nonzero(far) * _VOXELS_PER_FAR_QUERY > sources.size:
        return _distance_sum_by_transform(sources, target, spacing)
    distance[far], _ = tree.query(points[far])
    return float(distance.sum())


def _distance_sum_by_transform(sources: Mask, target: Mask, spacing: Spacing) -> float:
    return float(distance_transform_edt(~target, sampling=spacing)[sources].sum())


def _boundary(mask: Mask) -> Mask:
    """Return the voxels of `mask` that have a face neighbour in the array but outside `mask`.

    These are enough to measure from. Let q lie outside the mask and s be a voxel of the mask
    nearest to q. They differ along some axis; move s one voxel along it towards q. That face
    neighbour is in the array, since the box spanned by q and s is, and it is nearer to q whatever
    the spacings, since one term of the squared distance shrank and the others stayed. So it is
    not in the mask, and s is kept here. Voxels that meet the outside only along an edge, at a
    corner or beyond the array are never nearest, so they are left out. A crop that holds both
    masks is a box holding q and s, so all this is true inside it too.
    """
    interior = np.ones_like(mask)
    for axis in range(mask.ndim):
        # Views with `axis` first: writing to them writes to `interior`.
        inner, occupied = np.moveaxis(interior, axis, 0), np.moveaxis(mask, axis, 0)
        inner[:-1] &= occupied[1:]
        inner[1:] &= occupied[:-1]
    return mask & ~interior


def _coordinates(mask: Mask, spacing: Spacing) -> NDArray[np.float64]:
    """Return the centres of the voxels of `mask`, (N, axes)."""
    # Several times as fast as np.argwhere.
    return np.column_stack(np.unravel_index(np.flatnonzero(mask), mask.shape)) * spacing


def _cropped(prediction: Mask, truth: Mask) -> tuple[Mask, Mask]:
    """Cut both masks, not both empty, to the smallest box that holds the two of them."""
    either = prediction | truth
    box = []
    for axis in range(either.ndim):
        others = tuple(other for other in range(either.ndim) if other != axis)
        occupied = np.flatnonzero(either.any(axis=others))
        box.append(slice(occupied[0], occupied[-1] + 1))
    # NIfTI readers return Fortran order, in which every flat scan is several times slower.
    return np.ascontiguousarray(prediction[tuple(box)]), np.ascontiguousarray(truth[tuple(box)])


def _checked_masks(prediction: ArrayLike, truth: ArrayLike) -> tuple[Mask, Mask]:
    masks = np.asarray(prediction), np.asarray(truth)
    for name, mask in zip(("prediction", "truth"), masks, strict=True):
        # `~` on an integer mask would count every voxel as outside.
        if mask.dtype != np.bool_:
            raise ValueError(f"{name}: expected a boolean mask, found dtype {mask.dtype}")
    if masks[0].shape != masks[1].shape:
        raise ValueError(
            f"prediction: expected the shape of truth {masks[1].shape}, found {masks[0].shape}"
        )
    return masks


def _checked_spacing(spacing: Sequence[float] | None, axes: int) -> Spacing:
    steps = np.asarray(np.ones(axes) if spacing is None else spacing, dtype=np.float64)
    if steps.shape != (axes,) or not (np.isfinite(steps).all() and (steps > 0).all()):
        found = steps.tolist()
        raise ValueError(f"spacing: expected {axes} positive numbers, one per axis, found {found}")
    return steps
