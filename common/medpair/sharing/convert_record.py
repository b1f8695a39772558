"""The record that a conversion leaves in the folder it fills, so that it can go on.

``conversion.json`` says what made the folder, with which options, and has hashes of what the
source was: one of all that is common to the cases, and for each case one of its image, its label
map and so on. The same command goes on where it was, and writes the cases whose source has changed
anew; any other is refused. The record holds no path and no name of a file: those may be a
patient's.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medpair import __version__
from medpair.data.atomic import remove_partials
from medpair.data.files import DataError, file_sha256, read_json, write_json

logger = logging.getLogger(__name__)

# Whose content counts, not their time
LISTS = (".json", ".tsv")


@dataclass(frozen=True)
class CaseFiles:
    """Which files a case is read from, by role, and where it may be written.

    The case is whole where the first of ``written`` is.
    """

    read: Mapping[str, Sequence[Path]]
    written: Sequence[Path]


def claim(
    root: Path,
    verb: str,
    source: Path,
    lists: Iterable[Path],
    cases: Mapping[str, CaseFiles],
    options: Mapping[str, Any],
    record: str = "conversion.json",
    last: str = "dataset.json",
) -> None:
    """Take a folder for one conversion, or go on with it.

    Of files names and sizes go into a hash, of lists (JSON, TSV) what they say, of others their
    times. Cases whose files have changed since they were written are removed from a folder that is
    not finished; a finished one stays as it is. Files outside the source are read, with a warning.

    Args:
        root: the folder to fill.
        verb: such as ``export nnunet``.
        source: the folder that is converted.
        lists: what is read of it for all cases.
        cases: what is read and written for each.
        options: all that changes what is written.
        record: where the record goes, relative to ``root``.
        last: the file that says that the folder is finished, relative to ``root``.

    Raises:
        DataError: if the folder holds anything else, or lies in the source.
    """
    inside = root.resolve()
    if inside == source.resolve() or source.resolve() in inside.parents:
        raise DataError(f"{root}: expected an output folder outside {source}, found one inside it")
    places = [f"{name}\0{f.written[0].relative_to(root)}" for name, f in sorted(cases.items())]
    now = {
        "made_by": f"medpair {verb}",
        "medpair_version": __version__,
        "source_sha256": _digest(lists, source, places),
        "options": dict(options),
        "case_sha256": {
            name: {role: _digest(paths, source) for role, paths in files.read.items()}
            for name, files in sorted(cases.items())
        },
    }
    _warn_of_outside(source, cases.values())
    path = root / record
    remove_partials(path.parent, "")  # of a run that was killed while it wrote the record
    if path.exists() and any(_written(root, path)):
        _go_on(path, read_json(path), now, cases, finished=(root / last).exists())
        remove_partials(root, "**/")  # of a run that was killed
    elif not path.exists() and root.exists() and _taken(root, path):
        raise DataError(f"{root}: expected an empty folder or none, found other files in it")
    else:  # also what a refused conversion left: its record alone
        write_json(path, now)


def _warn_of_outside(source: Path, cases: Iterable[CaseFiles]) -> None:
    """Say which files lie elsewhere: nnU-Net's lists may name any, and links lead anywhere."""
    base = source.resolve()
    paths = [path for files in cases for listed in files.read.values() for path in listed]
    outside = [path for path in paths if not path.resolve().is_relative_to(base)]
    if outside:
        logger.warning(
            "%s: %d files that are read lie outside this folder, the first %s",
            *(source, len(outside), outside[0].resolve()),
        )


def _taken(root: Path, record: Path) -> bool:
    """Return whether there is anything but an empty folder, or the empty one of its record."""
    if not root.is_dir():
        return True
    left = record.parent
    return any(path != left or not left.is_dir() or any(left.iterdir()) for path in root.iterdir())


def _written(root: Path, record: Path) -> Iterator[Path]:
    """Yield the files of a folder besides its record."""
    for path in root.rglob("*"):
        if path.is_file() and path != record:
            yield path


def _digest(paths: Iterable[Path], source: Path, more: Sequence[str] = ()) -> str:
    """Return the hash of files as they are now, and of further lines.

    Raises:
        DataError: if a file is missing.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path}: expected a file, found {error.strerror}") from None
        try:
            name = path.relative_to(source)
        except ValueError:
            name = path
        # lists are written again when an export is repeated, with the same content
        stamp = file_sha256(path) if path.suffix in LISTS else status.st_mtime_ns
        digest.update(os.fsencode(f"{name}\0{status.st_size}\0{stamp}\n"))
    for line in more:
        digest.update(os.fsencode(f"{line}\n"))
    return digest.hexdigest()


def _go_on(
    path: Path,
    there: Any,
    now: Mapping[str, Any],
    cases: Mapping[str, CaseFiles],
    finished: bool,
) -> None:
    """Make way for the cases whose files have changed; refuse another conversion.

    Raises:
        DataError: names what differs.
    """
    there = there if isinstance(there, Mapping) else {}
    differing = [key for key in now if key != "case_sha256" and there.get(key) != now[key]]
    before, after = there.get("case_sha256"), now["case_sha256"]
    if not differing and (not isinstance(before, Mapping) or before.keys() != after.keys()):
        differing = ["source_sha256"]
    if not differing and before != after:
        whole = any(files.written[0].exists() for files in cases.values())
        same = any(before[name].get(role) == k for name in after for role, k in after[name].items())
        # where no file is as it was, it is another dataset with the same names
        if finished or (whole and not same):
            differing = ["source_sha256"]
    if differing:
        found = f"another {' and another '.join(differing)} (choose another folder)"
        raise DataError(f"{path}: expected the record of the same conversion, found {found}")
    if before != after:
        for name, files in cases.items():
            if before[name] != after[name]:
                for written in files.written:
                    written.unlink(missing_ok=True)
        # only now: killed before, the next run makes way again
        write_json(path, now)
