"""JSON, checkpoints and volumes as files; each is complete or absent (``medpair.data.atomic``)."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medpair.data.atomic import DataError, atomic_path, not_written
from medpair.data.check_header import Header, RefusedError, matrix
from medpair.data.faults import one_line
from medpair.data.nifti_bytes import gzipped, nifti_pieces
from medpair.data.nifti_stream import verify_voxels, whole_header, whole_voxels
from medpair.data.orientation import axis_codes, ras_axes, to_ras

VOLUME_ENDINGS = (".nii.gz", ".nii")
# What PyTorch says of an object that it refuses to load
FOREIGN = re.compile(r"GLOBAL ([\w.]+)")
# Weights deflate to nine tenths; zeros, to a thousandth. What inflates to more is no training's.
INFLATION = 100


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
        DataError: if the file is missing, is not JSON (the message has the line and column), or
            an object has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            twice = next(key for key, count in Counter(k for k, _ in pairs).items() if count > 1)
            # a JSON reader keeps the last and drops the others without a word
            raise DataError(
                one_line(f"{path}: {twice}: expected each key once in an object, found it again")
            )
        return content

    try:
        # some editors of Windows begin a file with a byte order mark; not utf-8-sig, a codec that
        # Python loads when first asked, which a process without access to its files cannot
        text = Path(path).read_text(encoding="utf-8").removeprefix("\ufeff")
        return json.loads(text, object_pairs_hook=unique)
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: expected a JSON file, found nothing there") from None
    except OSError as error:
        raise DataError(f"{path}: expected a JSON file, found {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected valid JSON, found {error}") from None


def save_torch(path: str | Path, content: Any, compress: bool = False) -> None:
    """Save a checkpoint atomically, after proving that ``weights_only`` loading accepts it.

    Args:
        path: the file.
        content: plain data and tensors.
        compress: deflate the archive's members, which ``torch.load`` inflates by itself (not with
            ``mmap=True``): weights in half precision take a twelfth less.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    if compress:
        buffer = _deflated(buffer)
    buffer.seek(0)
    torch.load(buffer, map_location="cpu", weights_only=True)
    with atomic_path(path, buffer.getbuffer().nbytes) as partial:
        partial.write_bytes(buffer.getbuffer())


def _deflated(archive: io.BytesIO) -> io.BytesIO:
    """Return a ZIP archive whose members are compressed."""
    result = io.BytesIO()
    with (
        zipfile.ZipFile(archive) as source,
        zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as target,
    ):
        for name in source.namelist():
            # a date of its own: the same weights are the same bytes
            member = zipfile.ZipInfo(name)
            member.compress_type = zipfile.ZIP_DEFLATED
            target.writestr(member, source.read(name), compresslevel=9)
    return result


def _refuse_inflation(path: str | Path) -> None:
    """Refuse an archive that says it holds far more than it can: a small file would fill memory.

    Raises:
        ValueError: if it does.
    """
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        declared = sum(member.file_size for member in archive.infolist())
    if declared > INFLATION * Path(path).stat().st_size + 2**20:
        raise ValueError(f"{declared} bytes when they are inflated")


def load_torch(path: str | Path, map_location: str | torch.device = "cpu") -> Any:
    """Load a checkpoint with ``weights_only=True``.

    Raises:
        DataError: if it is missing, truncated, or holds anything but plain data and tensors.
    """
    try:
        _refuse_inflation(path)
        return torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise DataError(f"{path}: expected a checkpoint, found nothing there") from None
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        foreign = FOREIGN.search(str(error))
        if isinstance(error, pickle.UnpicklingError):
            # PyTorch's own words advise to load it all the same
            reason = "an object that is no tensor" + (f", {foreign[1]}" if foreign else "")
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        raise DataError(
            one_line(
                f"{path}: expected a checkpoint of plain tensors, found one that does not load "
                f"({size} bytes): {reason}"
            )
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

    The file is read to its end, so that its checksum is verified.

    Args:
        path: the file.
        dtype: of the array; None keeps the stored type (floats where voxels are scaled).

    Raises:
        DataError: if the file is missing, truncated, damaged, larger than the limits of
            ``medpair.data.check_header``, not NIfTI, or not three-dimensional.
    """
    path = Path(path)
    with _refusals(path):
        header, stored = whole_voxels(path)
    affine, _ = _towards_ras(path, header)
    array, canonical = to_ras(stored, affine)
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found as infinite
        array = array if dtype is None else array.astype(dtype, copy=False)
    return Volume(array, canonical, axis_codes(affine))


def verify_file(path: str | Path) -> None:
    """Read a NIfTI volume to its end, keeping nothing.

    Raises:
        DataError: as ``read_volume``.
    """
    path = Path(path)
    with _refusals(path):
        verify_voxels(path)


def read_grid(path: str | Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return a volume's size and spacing (mm) in RAS order, from its header.

    Raises:
        DataError: if it is not a readable 3D volume.
    """
    path = Path(path)
    with _refusals(path):
        header = whole_header(path)
    affine, turns = _towards_ras(path, header)
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    size, spacing = [0, 0, 0], np.zeros(3)
    for axis, length, step in zip(turns[:, 0].astype(int), header.shape, lengths, strict=True):
        size[axis], spacing[axis] = int(length), step
    return (size[0], size[1], size[2]), spacing


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Turn what can go wrong with a file into a ``DataError`` of one line."""
    try:
        yield
    except RefusedError as refusal:
        key, expected, found = refusal.args
        message = f"{path}: {key}: expected {expected}, found {found}"
        raise DataError(one_line(message)) from None
    except (OSError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        message = f"{path}: expected a readable file, found {reason}"
        raise DataError(one_line(message)) from None


def _towards_ras(path: Path, header: Header) -> tuple[np.ndarray, np.ndarray]:
    """Return a header's affine, and the turns and flips of its axes that make them RAS."""
    assert header.affine is not None  # a faulty one has been refused
    turns = ras_axes(header.affine)
    if np.isnan(turns).any():
        expected, found = "three axes that can be told apart", matrix(header.affine)
        raise DataError(f"{path}: affine: expected {expected}, found {found}")
    return header.affine, turns


def write_volume(path: str | Path, volume: Volume, dtype: Any = None) -> None:
    """Write a volume atomically as NIfTI in the orientation it came from.

    sform equals qform; a sheared grid, which a qform cannot tell, has an sform alone. Units are
    millimetres. Floats stored as integers get the scale that nibabel derives unless they are whole
    numbers in range.

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
    pieces = nifti_pieces(array, volume.affine, dtype, volume.orientation)
    if Path(path).name.endswith(".gz"):
        pieces = gzipped(pieces)
    with atomic_path(path, sum(map(len, pieces))) as partial, open(partial, "wb") as file:
        file.writelines(pieces)


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
