"""The manifest of a packed bundle: every file's SHA-256, and the check of a copy against it.

It shows that a copy is whole and unchanged, not who made it: compare the hash of the zip, or of
``manifest.json`` itself, with the one that the bundle's author gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from medpair.data.files import DataError
from medpair.sharing.own_code import MANIFEST, PACKAGE

# Python can import these from a bundle's folder, which is on its path
IMPORTABLE = (".py", ".pyc", ".pyd", ".so")
# Where Python keeps what it has compiled
CACHE = "__pycache__"
# Opens a file of a bundle
Open = Callable[[], IO[bytes]]
# What reading a damaged zip raises
DAMAGED = (OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error)
# A manifest has a hundred bytes a file
LONGEST = 1 << 24


def manifest_of(bundle: str, version: str, medpair_version: str, files: Mapping[str, bytes]) -> str:
    """Return the manifest's text for the files of a bundle, by their path in it."""
    content = {
        "bundle": bundle,
        "version": version,
        "medpair_version": medpair_version,
        "files": {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in sorted(files.items())
        },
    }
    return json.dumps(content, indent=2) + "\n"


def verify_bundle(path: str | Path) -> list[str]:
    """Compare a packed bundle, zip or unpacked folder, with its manifest; return all faults.

    Files beside the manifest's are a fault in a zip. In a folder, which gathers results and caches
    in use, they are one where they would be run: in ``configs`` and ``medpair``, and what Python
    could import; its caches of compiled code among them, which it runs in place of the sources and
    compares with their time and size at most. A zip is not unpacked, and each file is read to its
    stated size at most.

    Raises:
        DataError: if it is no bundle, has no manifest, or a zip's names would leave its folder.
    """
    with _opened(Path(path)) as files:
        if MANIFEST not in files:
            raise DataError(f"{path}: expected a packed bundle with a {MANIFEST}, found none")
        with files[MANIFEST]() as handle:
            listed = _listed(handle.read(LONGEST), path)
        faults = []
        for name, entry in listed.items():
            if name not in files:
                faults.append(f"{name}: expected a file, found none")
            elif (found := _sha256(files[name], entry["bytes"])) != entry["sha256"]:
                faults.append(f"{name}: expected SHA-256 {entry['sha256']}, found {found}")
        compiled: Counter[str] = Counter()
        for name in sorted(set(files) - set(listed) - {MANIFEST}):
            cache, inside, _ = name.partition(f"{CACHE}/")
            if Path(path).is_file() or (_would_run(name) and not inside):
                faults.append(f"{name}: expected no file that {MANIFEST} does not list, found one")
            elif inside:
                compiled[cache + CACHE] += 1
    return faults + [
        f"{name}: expected no compiled code, which {MANIFEST} does not list, found {count} files "
        "(remove the folder: Python makes it anew)"
        for name, count in compiled.items()
    ]


def _listed(text: bytes, path: str | Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's files.

    Raises:
        DataError: if it is not a manifest.
    """
    try:
        files = json.loads(text)["files"]
        return {
            str(name): {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
            for name, entry in files.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        raise DataError(
            f"{path}: {MANIFEST}: expected files with bytes and sha256, found something else"
        ) from None


def _would_run(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[0] in ("configs", PACKAGE) or name.endswith(IMPORTABLE)


def _sha256(open_file: Open, limit: int) -> str:
    """Return the hash of a file's first ``limit`` bytes and one more, or why it is not readable."""
    digest, left = hashlib.sha256(), limit + 1
    try:
        with open_file() as handle:
            while left > 0 and (block := handle.read(min(left, 1 << 20))):
                digest.update(block)
                left -= len(block)
    except DAMAGED as error:
        return f"nothing readable ({error})"
    return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Iterator[dict[str, Open]]:
    """Yield what opens each file, by its path in the bundle."""
    if path.is_dir():
        yield _of_folder(path)
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: expected a bundle's zip or folder, found {error}") from None
    with archive:
        yield _of_zip(archive, path)


def _of_folder(path: Path) -> dict[str, Open]:
    found: dict[str, Open] = {}
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if file.is_symlink():
            raise DataError(f"{file}: expected a file, found a link")
        if file.is_file():
            found[name] = partial(io.FileIO, file)
    return found


def _of_zip(archive: zipfile.ZipFile, path: Path) -> dict[str, Open]:
    """Return the files below the one top folder.

    Raises:
        DataError: on names that are absolute or lead elsewhere, links, doubles, several tops.
    """
    found: dict[str, Open] = {}
    tops = set()
    for entry in archive.infolist():
        name, kind = entry.orig_filename, stat.S_IFMT(entry.external_attr >> 16)
        pure = PurePosixPath(name)
        outside = not pure.parts or pure.is_absolute() or ".." in pure.parts
        if outside or any(mark in name for mark in "\\:\0"):
            raise DataError(f"{path}: {name!r}: expected a path inside the bundle, found another")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{path}: {name!r}: expected a file, found a link or device")
        tops.add(pure.parts[0])
        if entry.is_dir():
            continue
        inside = "/".join(pure.parts[1:])
        if inside in found:
            raise DataError(f"{path}: {name!r}: expected a name once, found it twice")
        found[inside] = partial(archive.open, entry)
    if len(tops) != 1:
        raise DataError(f"{path}: expected one top folder, found {sorted(tops)}")
    return found
