"""One writer at a time: locks that die with the process that holds them.

The locks are the kernel's (``flock``, by the library filelock) on a hidden file in the folder. A
killed process leaves no lock behind, and the file itself means nothing. On a network disk they
hold as far as the file system passes them on (NFS since version 3 with its lock service, SMB,
Lustre mounted with ``flock``); where it has no locks at all, a warning says so and nothing is
locked.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from medpair.data.atomic import DataError, not_written

logger = logging.getLogger(__name__)

# One run has the folder to itself; one step of several runs that share it
RUN, STEP = ".run.lock", ".step.lock"
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def folder_lock(folder: str | Path, name: str = RUN) -> FileLock:
    """Return the lock of a folder, which is made if need be; one for the whole process."""
    # nothing is inherited by data loader workers: they may outlive the run for seconds
    return FileLock(Path(folder).resolve() / name, is_singleton=True, fallback_to_soft=False)


def hold(folder: str | Path) -> FileLock | None:
    """Take a folder for this process alone, until ``release`` or its end.

    Returns:
        The lock, or None on a disk without locks.

    Raises:
        DataError: if another process holds it, or the folder cannot be written.
    """
    lock = folder_lock(folder)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        raise DataError(
            f"{folder}: expected no other run at work in this folder, found one that holds "
            f"{lock.lock_file} (wait for it, stop it, or choose another output_dir)"
        ) from None
    except OSError as error:
        _warn_without(folder, error)
        return None
    return lock


@contextmanager
def one_at_a_time(folder: str | Path) -> Iterator[None]:
    """Do a short step while no other process does one in the same folder; waits for it."""
    lock = folder_lock(folder, STEP)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        _warn_without(folder, error)
    try:
        yield
    finally:
        lock.release()


def _warn_without(folder: str | Path, error: OSError) -> None:
    """Warn of a disk without locks; refuse one that cannot be written at all."""
    if error.errno not in NO_LOCKS:
        raise not_written(Path(folder) / RUN, error) from error
    logger.warning("%s: no file locks here: start no second run in this folder", folder)
