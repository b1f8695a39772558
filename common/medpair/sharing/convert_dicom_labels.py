"""Segments of DICOM SEG objects and contours of RTSTRUCT objects as masks on a series' grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from skimage.measure import grid_points_in_poly

from medpair.data.faults import numbers
from medpair.data.files import DataError
from medpair.sharing.convert_dicom_series import unreadable

# How far a segment's voxel, or a contour's plane, may lie from a voxel's centre, in voxels
OFF_GRID = 0.1
# Contours are compared with voxel centres to this part of a voxel: files carry rounded numbers
DIGITS = 3


def referenced_series(dataset: Any, series_of: Mapping[str, str]) -> str | None:
    """Return the UID of the series that a SEG or RTSTRUCT object belongs to.

    Args:
        dataset: the object.
        series_of: series by UID of their images.
    """
    if dataset.Modality == "SEG":
        for item in dataset.get("ReferencedSeriesSequence") or ():
            return str(item.get("SeriesInstanceUID", ""))
        return None
    for frame in dataset.get("ReferencedFrameOfReferenceSequence") or ():
        for study in frame.get("RTReferencedStudySequence") or ():
            for item in study.get("RTReferencedSeriesSequence") or ():
                return str(item.get("SeriesInstanceUID", ""))
    for roi in dataset.get("ROIContourSequence") or ():
        for contour in roi.get("ContourSequence") or ():
            for image in contour.get("ContourImageSequence") or ():
                return series_of.get(str(image.get("ReferencedSOPInstanceUID", "")))
    return None


def frames_of_reference(dataset: Any) -> set[str]:
    """Return the frames of reference that an object's positions are in."""
    if dataset.Modality == "SEG":
        return {str(dataset.get("FrameOfReferenceUID", "none"))}
    return {
        str(roi.get("ReferencedFrameOfReferenceUID", "none"))
        for roi in dataset.get("StructureSetROISequence") or ()
    }


def label_names(dataset: Any) -> list[str]:
    """Return the names of an object's segments or regions, each once; "" for one without."""
    if dataset.Modality == "SEG":
        segments = dataset.get("SegmentSequence") or ()
        # number 0 is the background of a label map
        names = [_name(item, "SegmentLabel") for item in segments if int(item.SegmentNumber)]
    else:
        names = [_name(item, "ROIName") for item in dataset.get("StructureSetROISequence") or ()]
    return list(dict.fromkeys(names))


def _name(item: Any, key: str) -> str:
    """Return the name of a segment or region; some tools write none."""
    return str(item.get(key) or "").strip()


def masks(
    dataset: Any, names: Sequence[str], affine: np.ndarray, shape: Sequence[int], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield name and mask (columns, rows, slices) of the named segments or regions.

    Args:
        dataset: the object, with its pixels.
        names: which; a name that occurs twice is yielded twice.
        affine: (4, 4) of the series, to LPS.
        shape: of the series.
        where: names the object in errors.

    Raises:
        DataError: if positions do not lie on the grid, or values are fractions.
    """
    if dataset.Modality == "SEG":
        yield from _segments(dataset, names, affine, shape, where)
    else:
        yield from _regions(dataset, names, affine, shape, where)


def _segments(
    dataset: Any, names: Sequence[str], affine: np.ndarray, shape: Sequence[int], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    from highdicom.seg import Segmentation

    kind = str(dataset.get("SegmentationType"))
    if kind not in ("BINARY", "LABELMAP"):
        raise DataError(f"{where}: SegmentationType: expected BINARY or LABELMAP, found {kind}")
    try:
        segmentation = Segmentation.from_dataset(dataset)
        for item in dataset.get("SegmentSequence") or ():
            name = _name(item, "SegmentLabel")
            if name not in names or not int(item.SegmentNumber):
                continue
            number = [int(item.SegmentNumber)]
            volume = segmentation.get_volume(segment_numbers=number, dtype=np.uint8)
            voxels = np.argwhere(volume.array[..., 0] > 0)
            mask = np.zeros(shape, bool)
            mask[_onto(voxels, volume.affine, affine, shape, f"{where}: {name}")] = True
            yield name, mask
    except DataError:
        raise
    except Exception as error:  # highdicom raises a dozen kinds for what it cannot read
        raise unreadable(where, "a readable segmentation", error) from error


def _onto(
    voxels: np.ndarray, from_affine: np.ndarray, to_affine: np.ndarray, shape: Any, where: str
) -> tuple[np.ndarray, ...]:
    """Return voxel indices (N, 3) of one grid as indices of another with the same voxels."""
    matrix = np.linalg.inv(to_affine) @ from_affine
    turned = np.rint(matrix[:3, :3])
    same = np.array_equal(np.abs(turned).sum(axis=0), np.ones(3)) and np.array_equal(
        np.abs(turned).sum(axis=1), np.ones(3)
    )
    placed = voxels @ matrix[:3, :3].T + matrix[:3, 3]
    index = np.rint(placed).astype(np.int64)
    off = float(np.abs(placed - index).max(initial=0.0))
    if not same or off > OFF_GRID:
        spacing = np.linalg.norm(from_affine[:3, :3], axis=0)
        found = f"voxels of {numbers(spacing)} mm, {off:.2g} voxels off (resample it first)"
        raise DataError(f"{where}: expected the voxels of the series, found {found}")
    outside = int(((index < 0) | (index >= shape)).any(axis=1).sum())
    if outside:
        raise DataError(f"{where}: expected voxels inside the series, found {outside} outside")
    return index[:, 0], index[:, 1], index[:, 2]


def _regions(
    dataset: Any, names: Sequence[str], affine: np.ndarray, shape: Sequence[int], where: str
) -> Iterator[tuple[str, np.ndarray]]:
    contours = {
        int(item.ReferencedROINumber): item.get("ContourSequence") or ()
        for item in dataset.get("ROIContourSequence") or ()
    }
    for item in dataset.get("StructureSetROISequence") or ():
        name = _name(item, "ROIName")
        if name in names:
            drawn = contours.get(int(item.ROINumber), ())
            yield name, _filled(drawn, affine, shape, f"{where}: {name}")


def _filled(
    contours: Sequence[Any], affine: np.ndarray, shape: Sequence[int], where: str
) -> np.ndarray:
    """Fill contours: voxels whose centre is inside an odd number of them, or on one of them.

    Contours traced through the centres of border voxels, as many tools do, so give these voxels
    back, also around holes.
    """
    inside, border = np.zeros(shape, bool), np.zeros(shape, bool)
    to_voxels = np.linalg.inv(affine)
    for contour in contours:
        points = _points(contour, where)
        if not len(points):  # a region that was begun and never drawn
            continue
        kind = str(contour.get("ContourGeometricType"))
        if not kind.startswith("CLOSED"):
            raise DataError(f"{where}: expected closed planar contours, found {kind}")
        voxels = points @ to_voxels[:3, :3].T + to_voxels[:3, 3]
        plane = round(float(voxels[:, 2].mean()))
        off = float(np.abs(voxels[:, 2] - plane).max())
        if off > OFF_GRID or not 0 <= plane < shape[2]:
            expected = "contours in the planes of the slices"
            found = f"one {off:.2g} slices off plane {plane} of {shape[2]}"
            raise DataError(f"{where}: expected {expected}, found {found}")
        polygon = np.round(voxels[:, :2], DIGITS)
        low = np.clip(np.floor(polygon.min(axis=0)), 0, shape[:2]).astype(int)
        high = np.clip(np.ceil(polygon.max(axis=0)) + 1, 0, shape[:2]).astype(int)
        if (high <= low).any():
            continue
        relation = grid_points_in_poly(tuple(high - low), polygon - low, binarize=False)
        # 1 is inside; of thin contours, which go there and back, it leaves points on edges out
        inside[low[0] : high[0], low[1] : high[1], plane] ^= relation == 1
        x, y = _on_edges(polygon)
        there = (x >= 0) & (y >= 0) & (x < shape[0]) & (y < shape[1])
        border[x[there], y[there], plane] = True
    return inside | border


def _points(contour: Any, where: str) -> np.ndarray:
    """Return the points (N, 3) of a contour, in LPS; N may be 0."""
    data = contour.get("ContourData")
    values = np.atleast_1d(np.asarray(() if data in (None, "") else data, dtype=float))
    if values.size % 3:
        expected = "three coordinates for each point of a contour"
        raise DataError(f"{where}: ContourData: expected {expected}, found {values.size} numbers")
    return values.reshape(-1, 3)


def _on_edges(polygon: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the whole-numbered points on the edges of a polygon (N, 2)."""
    start, end = polygon, np.roll(polygon, -1, axis=0)
    edges = np.arange(len(polygon))
    # walk along the axis in which an edge is longer
    axis = np.abs(end - start).argmax(axis=1)
    a, b = start[edges, axis], end[edges, axis]
    first = np.ceil(np.minimum(a, b)).astype(int)
    counts = np.maximum(np.floor(np.maximum(a, b)).astype(int) - first + 1, 0)
    edge = np.repeat(edges, counts)
    along = first[edge] + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    length = np.where(a == b, 1.0, b - a)[edge]
    share = (along - a[edge]) / length
    across = start[edge, 1 - axis[edge]] + share * (end - start)[edge, 1 - axis[edge]]
    points = np.empty((len(edge), 2), dtype=int)
    points[np.arange(len(edge)), axis[edge]] = along
    points[np.arange(len(edge)), 1 - axis[edge]] = np.rint(across)
    points = points[np.abs(across - np.rint(across)) < 2 * 10.0**-DIGITS]
    return points[:, 0], points[:, 1]
