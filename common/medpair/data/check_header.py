"""The header of a NIfTI file as it lies in the file: nibabel repairs headers as it loads them."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from medpair.data.faults import numbers
from medpair.data.orientation import sheared

# A header that announces more is taken for damaged; 1024^3 float32 voxels are 4 GiB.
MAX_VOXEL_BYTES = 4 * 2**30
# Small types become float32 when read.
MAX_VOXELS = 2**30
# Two affines are the same if no entry differs by more than this part of the smallest spacing.
AFFINE_TOLERANCE = 1e-3
# pixdim repeats the affine's voxel sizes; headers carry rounding.
PIXDIM_TOLERANCE = 0.01
# The header sizes that begin a NIfTI-1 and a NIfTI-2 file, in both byte orders.
_KINDS = {
    struct.pack(f"{order}i", size): (kind, size, order)
    for kind, size in ((nib.Nifti1Header, 348), (nib.Nifti2Header, 540))
    for order in "<>"
}
_MAGIC = {348: b"n+1", 540: b"n+2"}
# Called with (key, expected, found[, level]) for each fault that does not end the reading.
AddFault = Callable[..., None]


class RefusedError(Exception):
    """A file that cannot be read further; its arguments are ``key, expected, found``."""


@dataclass(frozen=True)
class Header:
    """What the header of a 3D volume says.

    Attributes:
        shape: voxels per axis, in the order of the file.
        affine: (4, 4) voxel to world as readers take it; None where it is faulty.
        dtype: type of a stored voxel, with its byte order.
        offset: bytes before the voxels.
        slope: stored voxels are multiplied by this ...
        inter: ... and this is added.
    """

    shape: tuple[int, ...]
    affine: np.ndarray | None
    dtype: np.dtype
    offset: int
    slope: float = 1.0
    inter: float = 0.0

    @property
    def voxel_bytes(self) -> int:
        """Size of the voxels in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        """Length of the (decompressed) file in bytes."""
        return self.offset + self.voxel_bytes

    @property
    def scaled(self) -> bool:
        """Whether stored voxels are not the values themselves."""
        return (self.slope, self.inter) != (1.0, 0.0)


def read_header(stream: IO[bytes], add: AddFault) -> tuple[Header, int]:
    """Read the header at the start of ``stream``; return it and its size in bytes.

    Raises:
        RefusedError: if it is not that of a 3D volume of numbers.
    """
    first = stream.read(4)
    if first not in _KINDS:
        raise RefusedError("sizeof_hdr", "a NIfTI header (348 or 540)", f"the bytes {first!r}")
    kind, size, order = _KINDS[first]
    block = first + stream.read(size - 4)
    if len(block) < size:
        raise RefusedError("header", f"{size} bytes", f"{len(block)}: truncated")
    raw = kind(block, order, check=False)
    magic = raw["magic"].item()
    if magic != _MAGIC[size]:
        # "ni1" is a header whose voxels are in another file
        raise RefusedError("magic", f"{_MAGIC[size]!r}", f"{magic!r}")
    affine = _affine(raw, add)
    slope, inter = _scaling(raw)
    offset = float(raw["vox_offset"])
    if not size + 4 <= offset <= MAX_VOXEL_BYTES:
        raise RefusedError("vox_offset", f"at least {size + 4}", f"{offset:g}")
    header = Header(_shape(raw), affine, _dtype(raw), int(offset), slope, inter)
    if header.voxel_bytes > MAX_VOXEL_BYTES:
        expected = f"at most {MAX_VOXEL_BYTES / 2**30:g} GiB of voxels"
        found = f"{header.shape} of {header.dtype}, {header.voxel_bytes / 2**30:.1f} GiB"
        raise RefusedError("dim", expected, found)
    if math.prod(header.shape) > MAX_VOXELS:
        found = f"{header.shape}, {math.prod(header.shape)}"
        raise RefusedError("dim", f"at most {MAX_VOXELS} voxels", found)
    return header, size


def _shape(raw: Any) -> tuple[int, ...]:
    """Return the shape; a fourth axis of length 1 is dropped, as ``read_volume`` does."""
    dim = [int(value) for value in raw["dim"]]
    if not 1 <= dim[0] <= 7:
        raise RefusedError("dim", "a number of axes from 1 to 7", f"{dim[0]}")
    shape = tuple(dim[1 : dim[0] + 1])
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3:
        raise RefusedError("shape", "a 3D volume", f"{len(shape)} axes {shape}")
    if min(shape) < 1:
        raise RefusedError("shape", "at least one voxel per axis", f"{shape}")
    return shape


def _dtype(raw: Any) -> np.dtype:
    """Return the type of a voxel; refuse colours, complex numbers and unknown codes."""
    try:
        dtype = np.dtype(raw.get_data_dtype())
    except KeyError:
        found = f"the unknown code {int(raw['datatype'])}"
        raise RefusedError("datatype", "integers or floats", found) from None
    if dtype.kind not in "iuf":
        raise RefusedError("datatype", "integers or floats", f"{dtype}")
    return dtype


def _scaling(raw: Any) -> tuple[float, float]:
    """Return slope and intercept as nibabel applies them: a slope of 0 or NaN means none."""
    slope, inter = float(raw["scl_slope"]), float(raw["scl_inter"])
    if slope == 0 or not math.isfinite(slope):
        return 1.0, 0.0
    if not math.isfinite(inter):
        raise RefusedError("scl_inter", "a finite intercept", f"{inter}")
    return slope, inter


def _affine(raw: Any, add: AddFault) -> np.ndarray | None:
    """Return the affine that readers take; None where it is faulty, with the fault added."""
    pixdim = np.array(raw["pixdim"][1:4], dtype=np.float64)
    sound = bool(np.isfinite(pixdim).all() and (pixdim > 0).all())
    if not sound:
        add("pixdim", "three positive, finite voxel sizes", numbers(pixdim))
    codes = {key: int(raw[key]) for key in ("sform_code", "qform_code")}
    for key, code in codes.items():
        if not 0 <= code <= 5:
            # nibabel takes it for 0 and falls back on another geometry
            add(key, "0 to 5", f"{code}")
            sound = False
    if not any(codes.values()):
        found = "sform_code 0 and qform_code 0: orientation is a guess"
        add("affine", "an sform or a qform", found, "warning")
    unit = int(raw["xyzt_units"]) & 7
    if unit not in (0, 2):
        # no reader here converts them
        found = {1: "metres", 3: "micrometres"}.get(unit, f"the unknown code {unit}")
        add("xyzt_units", "millimetres", found, "warning")
    return _readable_affine(raw, pixdim, add) if sound else None


def _readable_affine(raw: Any, pixdim: np.ndarray, add: AddFault) -> np.ndarray | None:
    """Return the affine of a header with sound voxel sizes and codes; None where it is singular."""
    if abs(float(raw["pixdim"][0])) != 1.0:
        raw["pixdim"][0] = 1.0  # the standard reads 0 as 1
    try:
        affine = np.asarray(raw.get_best_affine(), dtype=np.float64)
    except (ValueError, HeaderDataError) as error:  # quaternions of no rotation
        add("affine", "a readable qform", f"{error}")
        return None
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    volume = abs(np.linalg.det(affine[:3, :3])) if np.isfinite(affine).all() else 0.0
    if not volume > 1e-6 * spacing.prod():
        add("affine", "three independent axes of positive, finite spacing", matrix(affine))
        return None
    if not np.allclose(spacing, pixdim, rtol=PIXDIM_TOLERANCE):
        found = f"{numbers(pixdim)}: readers differ in which they take"
        add("pixdim", f"the affine's voxel sizes {numbers(spacing)}", found, "warning")
    if sheared(affine):
        found = f"{matrix(affine)}: sheared (a tilted gantry?), which other tools refuse: resample"
        add("affine", "axes at right angles", found, "warning")
    return affine


def matrix(affine: np.ndarray) -> str:
    """Return an affine in one line for a message: three rows, the fourth is always the same."""
    return "[" + ", ".join(numbers(row) for row in affine[:3]) + "]"
