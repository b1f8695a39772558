"""What a BIDS folder holds: volumes with their entities, and tables."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from medpair.data.files import DataError
from medpair.data.nifti_stream import VOLUME_ENDINGS

# Entities that a label map may have beyond its image's, besides space and resolution
OWN = ("desc", "label", "seg", "atlas", "space", "res", "den")
# The image's own space by other names
NATIVE = ("orig", "native")


@dataclass(frozen=True)
class File:
    """A volume in a BIDS folder: its entities, its suffix, and the derivative it belongs to."""

    path: Path
    entities: dict[str, str]
    suffix: str
    pipeline: str

    def key(self, suffix: str) -> tuple[tuple[str, str], ...]:
        """Return what an image with this suffix and its label map have in common."""
        own = {key: value for key, value in self.entities.items() if key not in OWN}
        space, resolution = self.entities.get("space"), self.entities.get("res")
        if space is not None and space not in NATIVE and space != suffix:
            own["space"] = space
        if resolution is not None:
            own["res"] = resolution
        return tuple(sorted(own.items()))


def index_volumes(root: Path) -> list[File]:
    """Return the volumes of a BIDS folder and of its derivatives.

    Raises:
        DataError: if there is no folder, or no volume in it.
    """
    if not root.is_dir():
        raise DataError(f"{root}: expected a BIDS folder, found no folder there")
    files = []
    for path in sorted(root.rglob("sub-*.nii*")):
        parts = path.relative_to(root).parts
        if parts[0] in ("sourcedata", "code") or not path.name.endswith(VOLUME_ENDINGS):
            continue
        file = _parse(path, parts)
        if file is not None:
            files.append(file)
    if not files:
        raise DataError(f"{root}: expected files such as sub-01_T1w.nii.gz, found none")
    return files


def _parse(path: Path, parts: Sequence[str]) -> File | None:
    """Return the entities of a file name; None where it is no BIDS name."""
    *pairs, suffix = path.name.removesuffix(".gz").removesuffix(".nii").split("_")
    entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
    if len(entities) != len(pairs) or "sub" not in entities:
        return None
    pipeline = parts[1] if parts[0] == "derivatives" and len(parts) > 2 else ""
    return File(path, entities, suffix, pipeline)


def read_tsv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a table.

    Raises:
        DataError: if it is none.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as handle:
            # rows that are cut short have None
            reader = csv.DictReader(handle, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
            return [dict(row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: expected a table in UTF-8, found {error}") from None


def label_table(label: File, root: Path) -> dict[str, int] | None:
    """Return {name: value} of the nearest ``_dseg.tsv`` that applies; None for masks.

    A table applies if it has no entity that the label map has not, in its folder or above.

    Raises:
        DataError: if it is no table of names and values.
    """
    if label.suffix == "mask":
        return None
    folder = label.path.parent
    while True:
        found = []
        for path in sorted(folder.glob("*dseg.tsv")):
            *pairs, _ = path.name.removesuffix(".tsv").split("_")
            entities = dict(pair.split("-", 1) for pair in pairs if "-" in pair)
            if entities.items() <= label.entities.items() and len(entities) == len(pairs):
                found.append((len(pairs), path))
        if found:
            return _read_table(max(found)[1])
        if folder.resolve() == root.resolve() or folder == folder.parent:
            return None
        folder = folder.parent


def _read_table(path: Path) -> dict[str, int]:
    """Return {name: value} of a ``_dseg.tsv``."""
    table: dict[str, int] = {}
    for row in read_tsv(path):
        index, name = row.get("index") or "", row.get("name") or ""
        if not re.fullmatch(r"\d+", index) or not name or name in table:
            expected = "columns index (a whole number) and name, each name once"
            raise DataError(f"{path}: expected {expected}, found {dict(row)}")
        table[name] = int(index)
    return table
