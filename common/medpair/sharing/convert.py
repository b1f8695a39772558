"""What all conversions share: one source, one folder, every fault, files written once.

What makes it go on where it was is in ``convert_record.py``.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from medpair.data.check import check_dataset
from medpair.data.dataset import SPLITS, DatasetFolder, entry, write_dataset_json
from medpair.data.faults import errors_of, one_line
from medpair.data.files import DataError, Volume, read_json, write_json
from medpair.data.labels import LabelMap
from medpair.data.spellings import licence_of
from medpair.sharing.convert_record import CaseFiles
from medpair.sharing.convert_volumes import (
    on_grid,
    read_image,
    read_label,
    read_mask,
    write_volumes,
)

logger = logging.getLogger(__name__)

# Entries of a dataset.json that go through unchanged, besides the licence
KEPT = ("description", "reference", "release", "origin")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
T = TypeVar("T")


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


def kept(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a ``dataset.json`` that go through a conversion."""
    licence = licence_of(content)
    entries = {key: content[key] for key in KEPT if key in content}
    return {**entries, "licence": licence} if licence else entries


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


def files_of(pair: Pair) -> dict[str, list[Path]]:
    """Return the files of a case by role."""
    paths = {"image": pair.image, "label": pair.label, "roi": pair.roi}
    return {role: [path] for role, path in paths.items() if path is not None}


def folder_files(
    root: Path, pairs: Iterable[Pair], read: Callable[[Pair], Mapping[str, Sequence[Path]]]
) -> dict[str, CaseFiles]:
    """Return, by case, what ``read`` says it is read from, and where a dataset folder has it."""
    files = {}
    for pair in pairs:
        paths = entry(pair.name, pair.split, roi=True)
        written = [root / paths[role] for role in ("image", "label", "roi")]
        files[pair.name] = CaseFiles(read(pair), [*written, sidecar_path(root, pair.name)])
    return files


def read_sidecar(root: Path, name: str) -> Any:
    """Return the provenance of a case, or None."""
    path = sidecar_path(root, name)
    return read_json(path) if path.exists() else None


def sidecar_path(root: Path, name: str) -> Path:
    """Return where the provenance of a case lies."""
    return root / "provenance" / f"{name}.json"


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
            write_json(sidecar_path(root, pair.name), pair.provenance)

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
