"""What all conversions share: one source, one folder, every fault, files written once.

A conversion leaves ``conversion.json`` in the folder that it fills: what made it, with which
options, and a hash of what the source was. The same command goes on where it was; any other is
refused. The record holds no path and no name of the source: those may be a patient's.
"""

from __future__ import annotations

import hashlib
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from medpair import __version__
from medpair.data.check import check_dataset
from medpair.data.dataset import SPLITS, DatasetFolder, entry, write_dataset_json
from medpair.data.faults import errors_of, one_line
from medpair.data.files import DataError, Volume, file_sha256, read_json, write_json
from medpair.data.labels import LabelMap
from medpair.sharing.convert_volumes import (
    on_grid,
    read_image,
    read_label,
    read_mask,
    write_volumes,
)

logger = logging.getLogger(__name__)

# Entries of a dataset.json that go through unchanged
KEPT = ("description", "licence", "reference", "release", "origin")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
T = TypeVar("T")
# Whose content counts, not their time
LISTS = (".json", ".tsv")


@dataclass(frozen=True)
class Pair:
    """A case to be written: its name, its split, and where its volumes are.

    ``source`` says what else the reader of the case needs to know.
    """

    name: str
    split: str
    image: Path | None = None
    label: Path | None = None
    roi: Path | None = None
    provenance: Any = None
    source: Any = None


def claim(
    root: Path,
    verb: str,
    source: Path,
    files: Iterable[Path],
    options: Mapping[str, Any],
    record: str = "conversion.json",
) -> None:
    """Take a folder for one conversion, or go on with it.

    Args:
        root: the folder to fill.
        verb: such as ``export nnunet``.
        source: the folder that is converted.
        files: what is read of it: names and sizes go into the hash, of lists (JSON, TSV) what they
            say, of other files their times.
        options: all that changes what is written.
        record: where the record goes, relative to ``root``.

    Raises:
        DataError: if the folder holds anything else, or lies in the source.
    """
    inside = root.resolve()
    if inside == source.resolve() or source.resolve() in inside.parents:
        raise DataError(f"{root}: expected an output folder outside {source}, found one inside it")
    digest = hashlib.sha256()
    for path in sorted(files):
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
        digest.update(f"{name}\0{status.st_size}\0{stamp}\n".encode())
    now = {
        "made_by": f"medpair {verb}",
        "medpair_version": __version__,
        "source_sha256": digest.hexdigest(),
        "options": dict(options),
    }
    path = root / record
    if path.exists():
        there = read_json(path)
        differing = [key for key in now if there.get(key) != now[key]]
        if differing:
            found = f"another {' and another '.join(differing)} (choose another folder)"
            raise DataError(f"{path}: expected the record of the same conversion, found {found}")
        for leftover in root.rglob(".partial-*"):  # of a run that was killed
            leftover.unlink(missing_ok=True)
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: expected an empty folder or none, found other files in it")
    else:
        write_json(path, now)


def for_each(items: Sequence[T], act: Callable[[T], None], where: str) -> None:
    """Do every item; the faults of all of them are raised together.

    Raises:
        DataError: one line per fault, after their number if there are several.
    """
    faults: list[str] = []
    for item in tqdm(items, desc=where, unit="case", disable=not sys.stderr.isatty()):
        try:
            act(item)
        except DataError as error:
            faults.append(str(error))
    refuse(faults, where)


def refuse(faults: Sequence[str], where: str | Path) -> None:
    """Raise the faults, if there are any.

    Raises:
        DataError: one line per fault, after their number if there are several.
    """
    lines = [one_line(fault) for fault in faults]
    if len(lines) == 1:
        raise DataError(lines[0])
    if lines:
        text = "\n".join(lines)
        raise DataError(f"{where}: expected no fault, found {len(lines)}:\n{text}")


def require_sound(dataset: Path, label_group: str | None = None) -> None:
    """Check a dataset folder whole before it is exported; log warnings.

    Raises:
        DataError: lists every error.
    """
    faults = check_dataset(dataset, label_group, progress=sys.stderr.isatty())
    for fault in faults:
        if fault.level == "warning":
            logger.warning("%s", fault)
    refuse([str(fault) for fault in errors_of(faults)], dataset)


def bad_names(names: Iterable[str], where: str | Path) -> list[str]:
    """Return a fault for every name that is no plain file name, or is there twice."""
    seen: dict[str, str] = {}
    faults = []
    for name in names:
        if not NAME.fullmatch(name):
            expected = "letters, digits, _ . + - in the name of a case"
            faults.append(f"{where}: expected {expected}, found {name!r}")
        # file systems that ignore case would keep one of the two
        if name.lower() in seen:
            found = f"{seen[name.lower()]!r} and {name!r}"
            faults.append(f"{where}: expected cases of different names, found {found}")
        seen[name.lower()] = name
    return faults


def load_pair(pair: Pair, labels: LabelMap, values: Sequence[int]) -> dict[str, Volume]:
    """Read the volumes of a case; their grids must agree.

    Args:
        pair: the case.
        labels: its classes.
        values: what the label map holds afterwards, for each class.

    Raises:
        DataError: if they do not, or a file is unfit.
    """
    assert pair.image is not None
    image = read_image(pair.image)
    volumes = {"image": image}
    if pair.label is not None:
        label = read_label(pair.label, labels, values)
        volumes["label"] = on_grid(label, image, (pair.label, pair.image))
    if pair.roi is not None:
        volumes["roi"] = on_grid(read_mask(pair.roi), image, (pair.roi, pair.image))
    return volumes


def dataset_pairs(folder: DatasetFolder) -> list[Pair]:
    """Return the cases of a dataset folder, with what a generator wrote beside them."""
    return [
        Pair(
            case.name,
            split,
            case.image,
            case.label,
            case.roi,
            read_sidecar(folder.root, case.name),
        )
        for split in SPLITS
        for case in folder.cases[split]
    ]


def files_of(pairs: Iterable[Pair]) -> list[Path]:
    """Return the files of the cases."""
    return [
        path for pair in pairs for path in (pair.image, pair.label, pair.roi) if path is not None
    ]


def read_sidecar(root: Path, name: str) -> Any:
    """Return the provenance of a case, or None."""
    path = root / "provenance" / f"{name}.json"
    return read_json(path) if path.exists() else None


def write_dataset_folder(
    root: Path,
    pairs: Sequence[Pair],
    load: Callable[[Pair], Mapping[str, Volume]],
    name: str,
    labels: Mapping[str, int],
    channel: str,
    **more: Any,
) -> Path:
    """Write a dataset folder; cases that are there are kept.

    Args:
        root: the folder, which ``claim`` has taken.
        pairs: the cases.
        load: gives the volumes of a case, by role.
        name: the dataset's.
        labels: {name: value}.
        channel: name of the images' channel.
        more: further entries of the ``dataset.json``.

    Raises:
        DataError: lists the faults of all cases; the ``dataset.json`` is then not written.
    """
    splits: dict[str, list[dict[str, str]]] = {split: [] for split in SPLITS}

    def write(pair: Pair) -> None:
        targets = {role: root / path for role, path in splits_entry(pair).items()}
        if not targets["image"].exists():
            write_volumes(load(pair), targets)
        if pair.provenance is not None:
            write_json(root / "provenance" / f"{pair.name}.json", pair.provenance)

    for pair in pairs:
        splits[pair.split].append(splits_entry(pair))
    for_each(pairs, write, str(root))
    path = write_dataset_json(root, name, labels, splits, {"0": channel}, **more)
    faults = errors_of(check_dataset(root, quick=True, splits=[s for s in SPLITS if splits[s]]))
    if faults:
        path.unlink()
        refuse([str(fault) for fault in faults], root)
    return path


def splits_entry(pair: Pair) -> dict[str, str]:
    """Return a case's entry in ``dataset.json``; cases of a test list may have no label."""
    paths = entry(pair.name, pair.split, roi=pair.roi is not None)
    if pair.label is None and pair.source is None:
        del paths["label"]
    return paths
