"""Volumes of other tools, read as they are, and the volumes of a case, written whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medpair.data.check_header import AFFINE_TOLERANCE
from medpair.data.faults import numbers
from medpair.data.files import DataError, Volume, read_volume, write_volume
from medpair.data.labels import WHOLE_TOLERANCE, LabelMap, short_list, whole_values
from medpair.data.nifti_stream import VOLUME_ENDINGS
from medpair.data.orientation import axis_codes, to_ras

# Read through SimpleITK, where it is installed
ITK_ENDINGS = (".nrrd", ".mha", ".gipl")


def read_image(path: Path) -> Volume:
    """Read a volume with the type that its file has; scaled integers become float32.

    Raises:
        DataError: if it cannot be read, is not 3D, or is of a kind that no reader here knows.
    """
    if not path.name.endswith(VOLUME_ENDINGS):
        return _read_itk(path)
    volume = read_volume(path, np.float64)
    stored = nib.load(path).dataobj
    scaled = (stored.slope, stored.inter) != (1.0, 0.0)
    dtype = np.dtype(np.float32) if scaled else stored.dtype.newbyteorder("=")
    return Volume(volume.array.astype(dtype), volume.affine, volume.orientation)


def _read_itk(path: Path) -> Volume:
    """Read what SimpleITK reads; its world is LPS."""
    if not path.name.endswith(ITK_ENDINGS):
        known = ", ".join((*VOLUME_ENDINGS, *ITK_ENDINGS))
        raise DataError(f"{path}: expected a name that ends in {known}, found {path.name}")
    try:
        import SimpleITK as sitk  # noqa: N813  the name it is known by
    except ImportError:
        raise DataError(
            f"{path}: expected SimpleITK to read {path.suffix} files, found it missing "
            "(pip install simpleitk)"
        ) from None
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataError(f"{path}: expected a readable volume, found {reason}") from None
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        found = f"{image.GetSize()} with {image.GetNumberOfComponentsPerPixel()} components"
        raise DataError(f"{path}: expected a 3D volume of one channel, found {found}")
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return from_lps(sitk.GetArrayFromImage(image).transpose(2, 1, 0), affine)


def from_lps(array: np.ndarray, affine: np.ndarray) -> Volume:
    """Return a volume in RAS order from voxels with an affine (4, 4) to LPS, as DICOM's is."""
    ras = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    return Volume(*to_ras(array, ras), axis_codes(ras))


def read_label(path: Path, labels: LabelMap, values: Sequence[int]) -> Volume:
    """Read a label map; class ``k`` of ``labels`` is returned as ``values[k]``, uint8 or uint16.

    Values stored as floats are rounded, as in training.

    Raises:
        DataError: if a value is a fraction or no class.
    """
    volume = read_image(path)
    classes = labels.encode(whole_values(volume.array, str(path)), str(path))
    table = np.asarray(values, dtype=label_dtype(values))
    return Volume(table[classes], volume.affine, volume.orientation)


def read_mask(path: Path) -> Volume:
    """Read a mask: uint8, 1 where it is not 0; whole numbers stored as floats are rounded.

    Raises:
        DataError: if it cannot be read, or has values besides 0 and one other.
    """
    volume = read_image(path)
    array = volume.array
    if array.dtype.kind == "f" and np.allclose(array, np.rint(array), 0, WHOLE_TOLERANCE):
        array = np.rint(array)
    values = np.unique(array)
    if len(values[values != 0]) > 1:
        found = short_list(values.tolist())
        raise DataError(f"{path}: expected 0 and one other value, found {found}")
    return Volume((array != 0).astype(np.uint8), volume.affine, volume.orientation)


def label_dtype(values: Sequence[int]) -> Any:
    """Return the type of label maps with these values.

    Raises:
        DataError: if there is none.
    """
    smallest, largest = min(values), max(values)
    if smallest < 0 or largest > np.iinfo(np.uint16).max:
        found = smallest if smallest < 0 else largest
        raise DataError(f"labels: expected values from 0 to 65535, found {found}")
    return np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16


def on_grid(volume: Volume, image: Volume, names: tuple[Any, Any]) -> Volume:
    """Return a label map or mask with exactly the affine of its image.

    Args:
        volume: the label map.
        image: its image.
        names: of the two, for the error.

    Raises:
        DataError: if shape, axes or affine differ by more than rounding.
    """
    if volume.array.shape != image.array.shape:
        expected = f"{image.array.shape}, the shape of {names[1]}"
        raise DataError(f"{names[0]}: expected {expected}, found {volume.array.shape}")
    off = float(np.abs(volume.affine - image.affine).max())
    if off > AFFINE_TOLERANCE * min(image.spacing):
        expected = f"{numbers(image.affine[:3].ravel())}, the affine of {names[1]}"
        found = f"{numbers(volume.affine[:3].ravel())}, which differs by up to {off:.4g}"
        raise DataError(f"{names[0]}: expected {expected}, found {found}")
    return Volume(volume.array, image.affine, image.orientation)


def write_volumes(volumes: Mapping[str, Volume], targets: Mapping[str, Path]) -> None:
    """Write the volumes of a case, the image last: where it is, the case is whole."""
    for role in ("roi", "label", "image"):
        if role in volumes:
            write_volume(targets[role], volumes[role])
