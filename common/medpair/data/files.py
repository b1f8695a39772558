"""JSON, checkpoints and volumes as files; each is complete or absent (``medpair.data.atomic``)."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from medpair.data.atomic import DataError, atomic_path, not_written

VOLUME_ENDINGS = (".nii.gz", ".nii")


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` atomically as UTF-8."""
    content = text.encode()
    with atomic_path(path, len(content)) as partial:
        partial.write_bytes(content)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` atomically as indented JSON; NaN and infinity are refused."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: if the file is missing or is not JSON; the message has the line and column.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: expected a JSON file, found nothing there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected valid JSON, found {error}") from None


def save_torch(path: str | Path, content: Any) -> None:
    """Save a checkpoint atomically, after proving that ``weights_only`` loading accepts it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    buffer.seek(0)
    torch.load(buffer, map_location="cpu", weights_only=True)
    with atomic_path(path, buffer.getbuffer().nbytes) as partial:
        partial.write_bytes(buffer.getbuffer())


def load_torch(path: str | Path, map_location: str | torch.device = "cpu") -> Any:
    """Load a checkpoint with ``weights_only=True``.

    Raises:
        DataError: if it is missing, truncated, or holds anything but plain data and tensors.
    """
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: expected a checkpoint, found nothing there") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{path}: expected a checkpoint of plain tensors, found one that does not load "
            f"({Path(path).stat().st_size} bytes): {reason}"
        ) from error


@dataclass(frozen=True)
class Volume:
    """A 3D volume in RAS order (x to the right, y to the front, z up) with its geometry.

    Attributes:
        array: (W, H, D) voxels.
        affine: (4, 4) voxel to world, millimetres.
        orientation: axis codes of the file it came from, such as ``PSR``; writing restores them.
    """

    array: np.ndarray
    affine: np.ndarray
    orientation: str = field(default="RAS")

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size per axis in millimetres."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


def read_volume(path: str | Path, dtype: Any = np.float32) -> Volume:
    """Read a NIfTI volume and bring it to RAS; oblique grids keep their obliqueness.

    Raises:
        DataError: if the file is missing, truncated, not NIfTI, or not three-dimensional.
    """
    try:
        image = nib.load(path)
        if len(image.shape) == 4 and image.shape[3] == 1:
            image = image.slicer[..., 0]
        if len(image.shape) != 3:
            raise DataError(f"{path}: expected a 3D volume, found shape {tuple(image.shape)}")
        orientation = "".join(nib.aff2axcodes(image.affine))
        canonical = nib.as_closest_canonical(image)
        array = np.asarray(canonical.dataobj).astype(dtype, copy=False)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: expected a NIfTI volume, found nothing there") from None
    except Exception as error:  # nibabel raises a dozen kinds for damaged files
        raise DataError(f"{path}: expected a readable NIfTI volume, found {error}") from error
    return Volume(array, np.asarray(canonical.affine, dtype=np.float64), orientation)


def write_volume(path: str | Path, volume: Volume, dtype: Any = None) -> None:
    """Write a volume atomically as NIfTI in the orientation it came from.

    sform equals qform where the grid can be expressed by both, units are millimetres. Floats
    stored as integers get the scale that nibabel derives unless they are whole numbers in range.

    Args:
        path: final name, ending in ``.nii`` or ``.nii.gz``.
        volume: array and geometry.
        dtype: type on disk; default the array's own.
    """
    dtype = np.dtype(volume.array.dtype if dtype is None else dtype)
    array = volume.array
    if dtype.kind in "iu" and array.dtype.kind == "f" and _holds(dtype, array):
        # nibabel scales any float to the full integer range: 1 would come back as 1.004
        array = array.astype(dtype)
    image = nib.Nifti1Image(array, volume.affine, dtype=dtype)
    target = nib.orientations.axcodes2ornt(tuple(volume.orientation))
    start = nib.orientations.io_orientation(volume.affine)
    image = image.as_reoriented(nib.orientations.ornt_transform(start, target))
    image.header.set_data_dtype(dtype)
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    with atomic_path(path) as partial:
        nib.save(image, partial)


def _holds(dtype: np.dtype, array: np.ndarray) -> bool:
    """Return whether all values of a float array are whole numbers in the range of ``dtype``."""
    limits = np.iinfo(dtype)
    low, high = array.min(initial=0), array.max(initial=0)
    # half open: the largest int64 is no float
    inside = limits.min <= low and high < float(limits.max) + 1
    return bool(inside) and np.array_equal(array, np.rint(array))


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one line of JSON; a line is written by one call, so that readers never see half.

    Raises:
        DataError: if the disk is full or the folder cannot be written; the file is as before.
    """
    path = Path(path)
    line = (json.dumps(dict(record), allow_nan=False) + "\n").encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab", buffering=0) as handle:
            before = handle.seek(0, os.SEEK_END)
            try:
                rest = line
                while rest:  # a disk that fills up takes a part
                    rest = rest[handle.write(rest) :]
            except OSError:
                handle.truncate(before)
                raise
    except OSError as error:
        raise not_written(path, error, len(line)) from error


def file_sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file in hexadecimal.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        digest = hashlib.sha256()
        with open(path, "rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, found {error.strerror}") from None
    return digest.hexdigest()
