"""A volume as the bytes of a NIfTI file, with as little Python as can be.

Generators write hundreds of volumes in a second from threads that share one interpreter, and
nibabel takes longer to derive a header than to copy the voxels. Volumes of a cohort have few
different headers: each is derived by nibabel once and kept. What needs a scale is nibabel's whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import nibabel as nib
import numpy as np

from medpair.data.orientation import ras_axes, sheared

# Of a NIfTI-1 file without extensions: where its voxels begin
HEADER_BYTES = 352
# As nibabel: four times as fast as gzip's own default, files a tenth larger
GZIP_LEVEL = 1
GZIP_WINDOW = 31  # zlib's way to ask for a gzip stream: without a name or a time
Pieces = Sequence[Any]


def nifti_pieces(
    array: np.ndarray, affine: np.ndarray, dtype: np.dtype, orientation: str = "RAS"
) -> Pieces:
    """Return the file's content: bytes-like pieces, header and voxels.

    Voxels that run along the first axis fastest (Fortran order) are not copied.

    Args:
        array: (W, H, D) voxels.
        affine: (4, 4) voxel to world, millimetres.
        dtype: type on disk; nibabel derives a scale where it is not the array's own.
        orientation: axis codes that the voxels are turned to.
    """
    dtype = np.dtype(dtype).newbyteorder("=")  # as the header is written
    if array.dtype != dtype:
        return [_image(array, affine, dtype, orientation)[0].to_bytes()]
    key = np.asarray(affine, np.float64).tobytes()
    header, turns = _header(array.shape, dtype.str, key, orientation)
    turned = nib.orientations.apply_orientation(array, np.array(turns))
    return [header, np.ascontiguousarray(turned.T).reshape(-1).view(np.uint8)]


def gzipped(pieces: Pieces) -> Pieces:
    """Return a gzip stream, in pieces, equal for equal content.

    Each piece is compressed by one call, which leaves the interpreter to other threads.
    """
    stream = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, GZIP_WINDOW)
    return [*map(stream.compress, pieces), stream.flush()]


@lru_cache(maxsize=64)
def _header(
    shape: tuple[int, ...], dtype: str, affine: bytes, orientation: str
) -> tuple[bytes, tuple[tuple[float, ...], ...]]:
    """Return a header, and the turns of the axes that lead to ``orientation``."""
    blank = np.broadcast_to(np.zeros((), dtype), shape)
    grid = np.frombuffer(affine).reshape(4, 4)
    image, turns = _image(blank, grid, np.dtype(dtype), orientation)
    return image.to_bytes()[:HEADER_BYTES], tuple(map(tuple, turns.tolist()))


def _image(
    array: np.ndarray, affine: np.ndarray, dtype: np.dtype, orientation: str
) -> tuple[nib.Nifti1Image, np.ndarray]:
    image = nib.Nifti1Image(array, affine, dtype=dtype)
    target = nib.orientations.axcodes2ornt(tuple(orientation))
    turns = nib.orientations.ornt_transform(ras_axes(affine), target)
    image = image.as_reoriented(turns)
    image.header.set_data_dtype(dtype)
    image.set_sform(image.affine, code=1)
    # a qform is a rotation: of axes that are not at right angles it would tell another grid
    image.set_qform(image.affine, code=0 if sheared(affine) else 1)
    image.header.set_xyzt_units("mm", "sec")
    return image, turns
