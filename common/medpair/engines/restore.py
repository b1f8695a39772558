"""Two checkpoints of a run: the newest, and the one before, should the newest be damaged."""

from __future__ import annotations

import logging
import os
import zipfile
from pathlib import Path
from typing import Any

from medpair.data.files import DataError, load_torch

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"
ENTRIES = {"iteration", "epoch_length", "settings", "rng", "objects"}


def keep_previous(folder: Path, ours: bool = True) -> None:
    """Let ``checkpoint.previous.pt`` be what ``checkpoint.pt`` is, before that is replaced.

    A second name for the same file, where the file system has such: ``checkpoint.pt`` is never
    missing, and while the next one is written the disk holds two, as without this.

    Args:
        folder: of the run.
        ours: whether the checkpoint that is there belongs to this run; what another run left must
            not be fallen back to.
    """
    newest, previous = folder / CHECKPOINT, folder / PREVIOUS
    if not ours:
        previous.unlink(missing_ok=True)
        (folder / DAMAGED).unlink(missing_ok=True)
        return
    if not newest.exists():  # found damaged, and moved away
        return
    link = folder / f".{PREVIOUS}"
    try:
        link.unlink(missing_ok=True)
        os.link(newest, link)
        os.replace(link, previous)
    except OSError:
        os.replace(newest, previous)


def newest_good(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest checkpoint that can be read, and its content; None if there is none at all.

    A damaged ``checkpoint.pt`` is moved to ``checkpoint.damaged.pt``, so that it cannot take the
    place of the good one.

    Raises:
        DataError: if there are checkpoints, but none can be read.
    """
    newest, previous = folder / CHECKPOINT, folder / PREVIOUS
    if not newest.exists() and not previous.exists():
        return None
    try:
        return newest, read_checkpoint(newest)
    except DataError as error:
        if not previous.exists():
            raise DataError(
                f"{error}; there is no {PREVIOUS} to fall back to (--resume False starts anew)"
            ) from error
        try:
            state = read_checkpoint(previous)
        except DataError as second:
            raise DataError(f"{error}; and {second} (--resume False starts anew)") from second
        logger.warning("%s: falling back to %s, iteration %d", error, previous, state["iteration"])
        if newest.exists():
            os.replace(newest, folder / DAMAGED)
        return previous, state


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Load a run's checkpoint and check every byte of it.

    Raises:
        DataError: if it is missing, damaged (PyTorch does not look at the checksums that it
            writes), or no run's checkpoint.
    """
    state = load_torch(path)
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, OSError) as error:
        damaged = str(error)
    if damaged is not None:
        raise DataError(f"{path}: expected a whole checkpoint, found a wrong checksum: {damaged}")
    if not isinstance(state, dict) or not state.keys() >= ENTRIES:
        raise DataError(
            f"{path}: expected the checkpoint of a run with {sorted(ENTRIES)}, found "
            f"{sorted(state)[:5] if isinstance(state, dict) else type(state).__name__}"
        )
    return state
