"""Files that are complete or absent.

A file is written beside its final name, flushed to the disk, and renamed: under its final name it
is whole, whenever the process is killed. What cannot be written is refused in one sentence.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows, where what a killed process leaves is never cleared away
    fcntl = None  # type: ignore[assignment]

PARTIAL = ".partial-"
# No room left: on the disk, in the user's quota, under the limit on a file's size
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class DataError(ValueError):
    """A file or dataset that cannot be used; the message names file, expected and found."""


@contextmanager
def atomic_path(path: str | Path, size: int | None = None) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success flush it and rename it to ``path``.

    The temporary name keeps the ending (NIfTI readers look at it) and starts with a dot. It is
    removed when the block raises; what a killed process leaves, ``remove_partials`` removes.

    Args:
        path: final name.
        size: bytes to be written, where they are known, for the message about a full disk.

    Raises:
        DataError: if the folder cannot be written, or the disk is full; the old file is kept.
    """
    final = Path(path)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = _new_partial(final)
    except OSError as error:
        raise not_written(final, error, size) from error
    try:
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, final)
    except BaseException as error:
        # counted before it is removed
        refusal = not_written(final, error, size) if is_full(error) else None
        partial.unlink(missing_ok=True)
        if refusal is not None:
            raise refusal from error
        raise
    finally:
        if handle is not None:
            os.close(handle)


def _new_partial(final: Path) -> tuple[int | None, Path]:
    """Return a temporary file, open and locked: the lock says that its writer lives."""
    while True:
        partial = final.parent / f"{PARTIAL}{secrets.token_hex(4)}-{final.name}"
        try:
            # not mkstemp, whose files are private: a umask, known only by changing it, would have
            # to be applied afterwards, and belongs to all threads
            handle = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            continue
        if fcntl is None:
            os.close(handle)
            return None, partial
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # found by one who removes what is left, before it was locked
            os.close(handle)
            continue
        except OSError:  # a disk without locks
            pass
        if os.fstat(handle).st_nlink:  # not removed before it was locked
            return handle, partial
        os.close(handle)


def remove_partials(folder: str | Path, *depths: str) -> int:
    """Remove what killed writers left in a folder and its subfolders; return how many files.

    Files that a living process is writing stay. Nothing is removed on a disk without locks.

    Args:
        folder: where they are.
        depths: how far down, as patterns that end in a slash; one level by default.
    """
    removed = 0
    if fcntl is None:
        return removed
    for path in [
        path for depth in depths or ("", "*/") for path in Path(folder).glob(f"{depth}{PARTIAL}*")
    ]:
        with suppress(OSError), open(path, "r+b") as left:
            fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            removed += 1
    return removed


def is_full(error: BaseException) -> bool:
    """Return whether an error says that there is no room for a file."""
    return isinstance(error, OSError) and error.errno in FULL


def not_written(path: Path, error: BaseException, size: int | None = None) -> DataError:
    """Return the refusal for a file that could not be written."""
    reason = getattr(error, "strerror", None) or str(error)
    if not is_full(error):
        return DataError(f"{path}: expected a folder that can be written, found: {reason}")
    there = next(folder for folder in path.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    needed = "room on the disk" if size is None else f"room for {size} bytes"
    return DataError(
        f"{path}: expected {needed}, found {free} bytes free ({reason}; make room, then the same "
        "command goes on)"
    )
