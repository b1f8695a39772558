"""One NIfTI file read once, from the header to the gzip checksum, in bounded memory.

nibabel stops reading where the voxels end, which is before the checksum: most flipped bits load
as wrong voxels. Here the file is read to its end, in pieces.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np

from medpair.data.check_header import Header, RefusedError, read_header
from medpair.data.faults import Fault, Level
from medpair.data.labels import WHOLE_TOLERANCE
from medpair.data.nifti_stream import (
    MAX_EXTRA_BYTES,
    after_voxels,
    check_file,
    drain,
    length_agrees,
    open_volume,
    voxel_pieces,
)

# A label map with more distinct values than this is no label map: stop collecting them.
MAX_DISTINCT = 10_000


@dataclass
class Contents:
    """What the voxels of a file hold, in values (stored voxels scaled).

    Attributes:
        low: the smallest finite value, of images only.
        high: the largest finite value, of images only.
        nan: number of NaN voxels.
        infinite: number of infinite voxels.
        whole: {value: voxels} of the whole numbers, of label maps and masks only.
        fractions: number of voxels further than ``WHOLE_TOLERANCE`` from a whole number.
        examples: a few of those.
        deviation: largest distance from a whole number within the tolerance.
        digest: hash of shape, type and stored voxels.
    """

    low: float = math.inf
    high: float = -math.inf
    nan: int = 0
    infinite: int = 0
    whole: dict[int, int] = field(default_factory=dict)
    fractions: int = 0
    examples: tuple[float, ...] = ()
    deviation: float = 0.0
    digest: bytes = b""

    def add_image(self, stored: np.ndarray, header: Header) -> None:
        """Take in stored voxels of an image."""
        low, high = stored.min(), stored.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            self.nan += int(np.isnan(stored).sum())
            self.infinite += int(np.isinf(stored).sum())
            stored = stored[np.isfinite(stored)]
            if not stored.size:
                return
            low, high = stored.min(), stored.max()
        for value in (low, high):
            scaled = float(value) * header.slope + header.inter
            self.low, self.high = min(self.low, scaled), max(self.high, scaled)

    def add_classes(self, stored: np.ndarray, header: Header) -> None:
        """Take in stored voxels of a label map or a mask."""
        values, counts = distinct(stored)
        if header.scaled:
            values = values.astype(np.float64) * header.slope + header.inter
        if values.dtype.kind == "f":
            self.nan += int(counts[np.isnan(values)].sum())
            self.infinite += int(counts[np.isinf(values)].sum())
            finite = np.isfinite(values)
            values, counts = values[finite].astype(np.float64), counts[finite]
            off = np.abs(values - np.rint(values))
            far = off > WHOLE_TOLERANCE
            self.fractions += int(counts[far].sum())
            self.examples = (*self.examples, *values[far][:6].tolist())[:6]
            self.deviation = max(self.deviation, float(off[~far].max(initial=0.0)))
            values, counts = np.rint(values[~far]), counts[~far]
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            key = int(value)
            if key in self.whole or len(self.whole) < MAX_DISTINCT:
                self.whole[key] = self.whole.get(key, 0) + count


def distinct(stored: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct values of an array and how often each occurs."""
    if stored.dtype.kind == "f":
        with np.errstate(invalid="ignore"):  # NaN and what overflows differ from their casts
            whole = stored.astype(np.int32)
        if not np.array_equal(whole, stored):
            return np.unique(stored, return_counts=True)
        stored = whole
    low, high = int(stored.min()), int(stored.max())
    if high - low > 2**16 or high >= 2**62:
        return np.unique(stored, return_counts=True)
    # counting is ten times faster than sorting
    counts = np.bincount(stored.astype(np.int64).ravel() - low)
    values = np.flatnonzero(counts)
    return values + low, counts[values]


@dataclass
class Examined:
    """The outcome of reading one file: what it holds and what is wrong with it.

    Attributes:
        path: the file.
        header: None where it cannot be used.
        contents: None where the file was not read to its end.
        faults: what is wrong.
    """

    path: Path
    header: Header | None = None
    contents: Contents | None = None
    faults: list[Fault] = field(default_factory=list)

    def add(self, key: str, expected: str, found: str, level: Level = "error") -> None:
        """Add a fault of this file."""
        self.faults.append(Fault(str(self.path), key, expected, found, level))


def examine(path: Path, where: str, classes: bool, full: bool) -> Examined:
    """Read the header of a file, and all of it when ``full``.

    Without ``full`` its length is compared with what the header announces (a gzip file's last four
    bytes say its length); where they differ, the file is read to its end to say what is wrong.

    Args:
        path: the file.
        where: its entry in ``dataset.json``, the key of faults of the file as a whole.
        classes: whether it is a label map or a mask, so that its values are counted.
        full: read to the end.
    """
    result = Examined(path)
    try:
        check_file(path, where)
        with open_volume(path) as stream:
            try:
                result.header, size = read_header(stream, result.add)
            except RefusedError as refusal:
                result.add(*refusal.args)
                if full:
                    # damage may be why the header makes no sense: then the checksum says so
                    drain(stream, MAX_EXTRA_BYTES)
            else:
                if full or not length_agrees(path, result.header):
                    result.contents = _read_voxels(stream, size, result, classes)
    except RefusedError as refusal:
        result.add(*refusal.args)
    except OSError as error:
        result.add(where, "a readable file", f"{error.strerror or error}")
    return result


def _read_voxels(stream: IO[bytes], position: int, result: Examined, classes: bool) -> Contents:
    """Read from ``position`` (behind the header) to the end of the file."""
    header = result.header
    assert header is not None
    contents = Contents()
    add = contents.add_classes if classes else contents.add_image
    digest = hashlib.blake2b(f"{header.shape} {header.dtype.str}".encode(), digest_size=16)
    for piece in voxel_pieces(stream, position, header):
        digest.update(piece)
        add(np.frombuffer(piece, dtype=header.dtype), header)
    contents.digest = digest.digest()
    for fault in after_voxels(stream, header):
        result.add(*fault)
    return contents
