"""Ways to damage a dataset folder that tests share."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

# where fields lie in a NIfTI-1 header
DIM, DATATYPE, PIXDIM, VOX_OFFSET, SLOPE, UNITS = 40, 70, 76, 108, 112, 123
QFORM_CODE, SFORM_CODE, QUATERN, SROW, MAGIC = 252, 254, 256, 280, 344


def edit_bytes(path: Path, offset: int, form: str, *values: Any) -> None:
    """Overwrite bytes of the decompressed file."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    struct.pack_into("<" + form, content, offset, *values)
    path.write_bytes(gzip.compress(bytes(content), mtime=0))


def edit_voxels(path: Path, edit: Callable[[np.ndarray], Any], dtype: Any = None) -> None:
    """Change voxels in place, or return others; the geometry stays."""
    old = nib.load(path)
    array = np.array(old.dataobj).astype(dtype or old.get_data_dtype())
    edited = edit(array)
    array = array if edited is None else edited
    nib.save(nib.Nifti1Image(array, old.affine, dtype=array.dtype), path)


def edit_json(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((folder / "dataset.json").read_text())
    edit(content)
    (folder / "dataset.json").write_text(json.dumps(content))


def flip_bit(path: Path, part: float = 0.7) -> None:
    """Flip one bit of a file, in the middle of its compressed voxels."""
    content = bytearray(path.read_bytes())
    content[int(part * len(content))] ^= 4
    path.write_bytes(content)
