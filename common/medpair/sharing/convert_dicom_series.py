"""Volumes from DICOM series, with the positions of all slices checked.

Geometry: DICOM PS3.3 C.7.6.2.1.1. ``ImagePositionPatient`` is the centre of the first pixel in
millimetres, ``ImageOrientationPatient`` the directions of growing column and row index; the world
is LPS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medpair.data.faults import numbers
from medpair.data.files import DataError

# Distances between slices may differ by this part of their median
SPACING_TOLERANCE = 0.01
# No slice may lie further from where the affine puts it than this part of the smallest spacing
POSITION_TOLERANCE = 0.05
# Direction cosines are rounded to six digits in many files
COSINE_TOLERANCE = 1e-3
SHOWN = 5


@dataclass(frozen=True)
class Plane:
    """Where a slice lies: position, directions of column and row index, spacing along them."""

    position: np.ndarray
    columns: np.ndarray
    rows: np.ndarray
    spacing: tuple[float, float]
    shape: tuple[int, int]


def series_volume(files: Sequence[Path], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a series: voxels (columns, rows, slices) and their affine (4, 4) to LPS.

    Rescale slope and intercept are applied; whole numbers in its range become int16, others
    float32.

    Args:
        files: of the series: one per slice, or one with many frames.
        name: of the series in errors.

    Raises:
        DataError: if slices are missing, doubled, tilted or uneven, or pixels cannot be decoded.
    """
    import highdicom

    datasets = [read_dicom(path) for path in files]
    multi = [d for d in datasets if "PerFrameFunctionalGroupsSequence" in d]
    if multi and len(datasets) > 1:
        raise DataError(f"{name}: expected one multi-frame file, found {len(datasets)} files")
    planes = [_frame_plane(multi[0], frame, name) for frame in _frames(multi)] or [
        _plane(dataset, dataset, name) for dataset in datasets
    ]
    affine = series_affine(planes, name)
    options: dict[str, Any] = {
        "apply_real_world_transform": False,
        "apply_presentation_lut": False,
        "perpendicular_tol": 1e-2,  # what is stricter has been checked above
    }
    try:
        if multi:
            volume = highdicom.Image.from_dataset(multi[0]).get_volume(**options)
        else:
            volume = highdicom.get_volume_from_series(
                datasets, orientation_tol=COSINE_TOLERANCE, **options
            )
    # highdicom and the decoders raise a dozen kinds for what they cannot read
    except Exception as error:
        raise unreadable(name, "a readable volume", error) from error
    if volume.array.ndim != 3:
        raise DataError(f"{name}: expected one value per voxel, found {volume.array.shape}")
    return _stored(_along(volume.array.transpose(2, 1, 0), volume.affine, affine, name)), affine


def _along(array: np.ndarray, read: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    """Return the voxels in the order of ``affine``; ``read`` is highdicom's, slices first."""
    there = read[:, [2, 1, 0, 3]].copy()
    if there[:3, 2] @ affine[:3, 2] < 0:
        array = array[:, :, ::-1]
        there[:3, 3] += there[:3, 2] * (array.shape[2] - 1)
        there[:3, 2] *= -1
    ends = np.array([[0, 0, 0, 1], [*(n - 1 for n in array.shape), 1]]).T
    off = float(np.abs((there - affine) @ ends).max())
    if off > np.linalg.norm(affine[:3, :3], axis=0).min() / 2:
        raise DataError(f"{name}: expected two readings of its positions to agree, found {off:.3g}")
    return array


def read_dicom(path: Path, pixels: bool = True) -> Any:
    """Read a DICOM file.

    Raises:
        DataError: if it is none.
    """
    import pydicom

    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except Exception as error:  # a damaged file raises what its bytes happen to lead to
        raise unreadable(path, "a DICOM file", error) from None


def unreadable(where: str | Path, expected: str, error: Exception) -> DataError:
    """Return what pydicom or highdicom raised as a fault of the file, in one line."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DataError(f"{where}: expected {expected}, found {reason}")


def series_affine(planes: Sequence[Plane], name: str) -> np.ndarray:
    """Return the affine (4, 4) from (column, row, slice) to LPS, in millimetres.

    Slices are numbered along the cross product of the directions of column and row index.

    Raises:
        DataError: if the slices are no grid.
    """
    first = planes[0]
    for plane in planes:
        same = plane.shape == first.shape and np.allclose(plane.spacing, first.spacing, rtol=1e-4)
        if not same:
            expected = f"slices of {first.shape} pixels of {numbers(first.spacing)} mm"
            found = f"{plane.shape} of {numbers(plane.spacing)}"
            raise DataError(f"{name}: expected {expected}, found {found}")
        off = max(
            float(np.abs(plane.columns - first.columns).max()),
            float(np.abs(plane.rows - first.rows).max()),
        )
        if off > COSINE_TOLERANCE:
            found = f"{numbers(first.columns)} and {numbers(plane.columns)}"
            raise DataError(f"{name}: expected slices of one orientation, found {found}")
    normal = np.cross(first.columns, first.rows)
    positions = np.array([plane.position for plane in planes])
    distances = positions @ normal
    order = np.argsort(distances)
    positions, distances = positions[order], distances[order]
    step = _even_step(distances, name)
    affine = np.eye(4)
    affine[:3, 0] = first.columns * first.spacing[0]
    affine[:3, 1] = first.rows * first.spacing[1]
    affine[:3, 2] = normal * step
    affine[:3, 3] = positions[0]
    _refuse_shift(positions, affine, name)
    return affine


def _even_step(distances: np.ndarray, name: str) -> float:
    """Return the distance between slices, which must be the same for all neighbours."""
    if len(distances) < 2:
        raise DataError(f"{name}: expected at least two slices, found {len(distances)}")
    gaps = np.diff(distances)
    step = float(np.median(gaps))
    twice = np.flatnonzero(gaps < 1e-3)
    if twice.size:
        found = f"{len(twice)} positions more than once, at {numbers(distances[twice[:SHOWN]])} mm"
        raise DataError(f"{name}: expected one slice at each position, found {found}")
    uneven = np.flatnonzero(np.abs(gaps - step) > SPACING_TOLERANCE * step)
    if uneven.size:
        places = ", ".join(
            f"{gaps[k]:.4g} mm between {distances[k]:.6g} and {distances[k + 1]:.6g}"
            for k in uneven[:SHOWN]
        )
        more = f" and {uneven.size - SHOWN} more" if uneven.size > SHOWN else ""
        raise DataError(f"{name}: expected slices {step:.4g} mm apart, found {places}{more}")
    return float((distances[-1] - distances[0]) / (len(distances) - 1))


def _refuse_shift(positions: np.ndarray, affine: np.ndarray, name: str) -> None:
    """Refuse slices that do not lie where the affine puts them: a tilted gantry."""
    expected = affine[:3, 3] + np.arange(len(positions))[:, None] * affine[:3, 2]
    off = np.linalg.norm(positions - expected, axis=1)
    worst = int(off.argmax())
    if off[worst] > POSITION_TOLERANCE * np.linalg.norm(affine[:3, :3], axis=0).min():
        wanted = f"a stack at right angles to its slices, slice {worst} at "
        raise DataError(
            f"{name}: expected {wanted}{numbers(expected[worst])}, found it at "
            f"{numbers(positions[worst])} (a tilted gantry? resample the series first)"
        )


def _plane(dataset: Any, whole: Any, name: str) -> Plane:
    """Return where a slice lies."""
    try:
        cosines = np.array(dataset.ImageOrientationPatient, dtype=float)
        position = np.array(dataset.ImagePositionPatient, dtype=float)
        down, right = (float(value) for value in dataset.PixelSpacing)
    except (AttributeError, TypeError, ValueError):
        expected = "ImagePositionPatient, ImageOrientationPatient and PixelSpacing in each slice"
        raise DataError(f"{name}: expected {expected}, found one without") from None
    shape = (int(whole.Columns), int(whole.Rows))
    columns, rows = cosines[:3], cosines[3:]
    if abs(float(columns @ rows)) > COSINE_TOLERANCE or position.shape != (3,):
        found = f"{numbers(columns)} and {numbers(rows)}"
        raise DataError(f"{name}: expected directions at right angles, found {found}")
    columns = columns / np.linalg.norm(columns)
    rows = rows - columns * (columns @ rows)
    # spacing between rows comes first, and is along the row index
    return Plane(position, columns, rows / np.linalg.norm(rows), (right, down), shape)


def _frames(multi: Sequence[Any]) -> list[Any]:
    return list(multi[0].PerFrameFunctionalGroupsSequence) if multi else []


def _frame_plane(dataset: Any, frame: Any, name: str) -> Plane:
    """Return where a frame of a multi-frame file lies."""
    import pydicom

    shared = (dataset.get("SharedFunctionalGroupsSequence") or [pydicom.Dataset()])[0]
    merged = pydicom.Dataset()
    for group in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
        for holder in (shared, frame):
            for item in holder.get(group) or ():
                merged.update(item)
    return _plane(merged, dataset, name)


def _stored(array: np.ndarray) -> np.ndarray:
    """Return int16 where that says the same, else float32."""
    info = np.iinfo(np.int16)
    whole = np.array_equal(array, np.rint(array))
    if whole and info.min <= array.min() and array.max() <= info.max:
        return np.ascontiguousarray(array, dtype=np.int16)
    return np.ascontiguousarray(array, dtype=np.float32)
