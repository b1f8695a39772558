"""A NIfTI file as a stream that is read to its very end, so that damage and bombs are found.

nibabel stops where the voxels end, which is before the gzip checksum: most flipped bits load as
wrong voxels. It also believes what a header announces: a file of a kilobyte may ask for
terabytes. Here nothing is allocated or inflated beyond what the file can hold and the limits of
``medpair.data.check_header`` allow.
"""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from nibabel.volumeutils import apply_read_scaling

from medpair.data.check_header import Header, RefusedError, read_header

VOLUME_ENDINGS = (".nii.gz", ".nii")
# Read in pieces of this size: a multiple of every voxel size, and memory stays within a few.
PIECE_BYTES = 2**22
# How much of what follows the voxels is read: it is a fault anyhow, and may be a bomb.
MAX_EXTRA_BYTES = 16 * PIECE_BYTES
# Deflate turns no byte into more than 1032 (two bits for 258 bytes).
MAX_INFLATION = 1032


def check_file(path: Path, where: str) -> None:
    """Refuse what is not a regular, non-empty file with a NIfTI ending.

    Args:
        path: the file.
        where: what a refusal calls it, its entry in ``dataset.json``.

    Raises:
        RefusedError: with key, expected and found.
    """
    expected = "a NIfTI volume"
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise RefusedError(where, expected, "nothing there") from None
    if stat.S_ISDIR(status.st_mode):
        # a DICOM series is a folder of slices
        raise RefusedError(
            where, expected, "a folder (of DICOM slices? convert them to one NIfTI file)"
        )
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(where, expected, "something that is no regular file")
    if not path.name.endswith(VOLUME_ENDINGS):
        raise RefusedError(where, f"a name that ends in {' or '.join(VOLUME_ENDINGS)}", path.name)
    if status.st_size == 0:
        raise RefusedError(where, expected, "an empty file (0 bytes)")


@contextmanager
def open_volume(path: Path) -> Iterator[IO[bytes]]:
    """Open a volume, decompressing where its name says so.

    Raises:
        RefusedError: for damage of the gzip stream that the block comes upon.
    """
    size = path.stat().st_size
    opener: Any = gzip.open if path.name.endswith(".gz") else open
    try:
        with opener(path, "rb") as stream:
            yield cast("IO[bytes]", stream)
    except EOFError:
        found = f"a truncated one ({size} bytes, no end marker)"
        raise RefusedError("gzip", "a complete gzip stream", found) from None
    except gzip.BadGzipFile as error:
        checksum = "CRC" in str(error) or "length" in str(error)
        expected = "a matching checksum" if checksum else "a valid gzip stream"
        raise RefusedError("gzip", expected, f"damage: {error}") from None
    except zlib.error as error:
        raise RefusedError("gzip", "a valid gzip stream", f"damage: {error}") from None


def length_agrees(path: Path, header: Header) -> bool:
    """Return whether the file is as long as its header announces, without reading it."""
    if not path.name.endswith(".gz"):
        return path.stat().st_size == header.end
    with open(path, "rb") as stream:
        stream.seek(-min(4, path.stat().st_size), os.SEEK_END)
        # RFC 1952: the length of the (last) member modulo 2^32
        return int.from_bytes(stream.read(4), "little") == header.end % 2**32


def voxel_pieces(stream: IO[bytes], position: int, header: Header) -> Iterator[bytes]:
    """Yield the voxels' bytes in pieces, from ``position`` (behind the header) to their end.

    Raises:
        RefusedError: if the file ends before.
    """
    while position < header.end:
        edge = header.offset if position < header.offset else header.end
        wanted = min(PIECE_BYTES, edge - position)
        piece = stream.read(wanted)
        position += len(piece)
        if len(piece) < wanted:
            expected = f"{header.end} bytes ({header.shape} of {header.dtype})"
            raise RefusedError("voxels", expected, f"{position}: truncated")
        if position > header.offset:
            yield piece


def after_voxels(stream: IO[bytes], header: Header) -> Iterator[tuple[str, str, str]]:
    """Read what follows the voxels, and so the checksum; yield (key, expected, found) of faults."""
    try:
        extra = drain(stream, MAX_EXTRA_BYTES)
    except gzip.BadGzipFile as error:
        # gzip verifies the checksum before it looks for another stream behind this one
        if "Not a gzipped file" not in str(error):
            raise
        yield "gzip", "the end of the file behind the gzip stream", "trailing bytes"
    else:
        if extra:
            found = f"{extra} bytes more" + (" at least" if extra >= MAX_EXTRA_BYTES else "")
            yield "voxels", f"the end of the file after {header.end} bytes", found


def drain(stream: IO[bytes], limit: int) -> int:
    """Read to the end, at most about ``limit`` bytes; return how many there were."""
    total = 0
    while total < limit and (piece := stream.read(PIECE_BYTES)):
        total += len(piece)
    return total


def whole_header(path: Path) -> Header:
    """Return the header of a file whose geometry can be used; voxels are not read.

    Raises:
        RefusedError: with key, expected and found.
    """
    check_file(path, "file")
    with open_volume(path) as stream:
        return _sound_header(stream)[0]


def whole_voxels(path: Path) -> tuple[Header, np.ndarray]:
    """Return the header and the voxels (in the file's order, scaled), read to the file's end.

    Raises:
        RefusedError: with key, expected and found.
    """
    if not length_agrees(path, whole_header(path)):
        verify_voxels(path)  # it may be damaged: nothing is kept before that is known
    buffer = bytearray()
    header = _consume(path, buffer.extend)
    stored = np.frombuffer(buffer, header.dtype).reshape(header.shape, order="F")
    if header.scaled:
        with np.errstate(over="ignore"):  # what overflows is found as infinite
            return header, apply_read_scaling(
                stored, np.asarray(header.slope), np.asarray(header.inter)
            )
    return header, stored


def verify_voxels(path: Path) -> None:
    """Read a file to its end, keeping nothing.

    Raises:
        RefusedError: with key, expected and found.
    """
    _consume(path, len)


def _consume(path: Path, take: Callable[[bytes], Any]) -> Header:
    """Read a file to its end, the pieces of its voxels going to ``take``; return its header."""
    check_file(path, "file")
    with open_volume(path) as stream:
        header, position = _sound_header(stream)
        size = path.stat().st_size
        most = size * MAX_INFLATION if path.name.endswith(".gz") else size
        if header.end > most:
            expected = f"{header.end} bytes ({header.shape} of {header.dtype})"
            raise RefusedError("voxels", expected, f"a file of {size} bytes: truncated")
        for piece in voxel_pieces(stream, position, header):
            take(piece)
        for fault in after_voxels(stream, header):
            raise RefusedError(*fault)
    return header


def _sound_header(stream: IO[bytes]) -> tuple[Header, int]:
    """Read a header; raise its first error, warnings are for the check of the dataset."""

    def refuse(key: str, expected: str, found: str, level: str = "error") -> None:
        if level == "error":
            raise RefusedError(key, expected, found)

    return read_header(stream, refuse)
