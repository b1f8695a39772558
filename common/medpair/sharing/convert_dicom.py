"""DICOM series with SEG or RTSTRUCT objects as a dataset folder, without who the patients are."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from medpair.data.faults import one_line
from medpair.data.files import DataError, Volume, write_text
from medpair.sharing.convert import Pair, folder_files, refuse, write_dataset_folder
from medpair.sharing.convert_dicom_labels import (
    frames_of_reference,
    label_names,
    masks,
    referenced_series,
)
from medpair.sharing.convert_dicom_series import read_dicom, series_volume, unreadable
from medpair.sharing.convert_record import claim
from medpair.sharing.convert_volumes import from_lps, label_dtype

logger = logging.getLogger(__name__)

IMAGES = ("CT", "MR")
LABELS = ("SEG", "RTSTRUCT")
COLUMNS = ("case", "PatientID", "StudyInstanceUID", "SeriesInstanceUID", "label_SOPInstanceUID")


@dataclass
class Found:
    """A series or a label object as its headers say.

    ``identity`` holds what the mapping of cases to patients needs, and goes nowhere else.
    """

    files: list[Path]
    modality: str
    frame: str
    identity: tuple[str, str, str]
    series: str | None = None
    uid: str = ""
    frames: set[str] = field(default_factory=set)
    names: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Source:
    """An image series and the object with its labels."""

    image: Found
    label: Found


def import_dicom(
    source: str | Path,
    output_dir: str | Path,
    labels: Sequence[str] | str | None = None,
    priority: Sequence[str] | str | None = None,
    segmentation: str | None = None,
    name: str = "dicom",
    mapping: str | Path | None = None,
) -> Path:
    """Write CT or MR series with their SEG or RTSTRUCT objects as a dataset folder.

    A case for each label object; series that none refers to are left out. Nothing that names a
    patient is written into the folder: cases are numbered in an order that says nothing.

    Args:
        source: a folder with DICOM files, in any order.
        output_dir: the dataset folder to write.
        labels: names of the segments to take; default all.
        priority: names of segments, the first wins where they overlap; default overlaps are
            refused.
        segmentation: where a series has several label objects: the one with this word in its
            SeriesDescription or StructureSetLabel.
        name: of the dataset.
        mapping: a CSV file to write outside the folder: which case is which patient.

    Returns:
        The path of the ``dataset.json``.

    Raises:
        DataError: if the source has faults or cannot be represented; lists them.
    """
    try:
        import highdicom  # noqa: F401  a missing extra is said first
    except ImportError:
        raise DataError(
            f"{source}: expected the extra dicom to read it, found it missing "
            "(pip install 'medpair[dicom]')"
        ) from None
    root, target = Path(source), Path(output_dir)
    if mapping is not None and target.resolve() in Path(mapping).resolve().parents:
        raise DataError(f"{mapping}: expected a file outside {target}, which is to be shared")
    images, objects, faults = _survey(root, segmentation)
    sources = _together(images, objects, root, faults)
    names = _names(sources, _words(labels), root)
    first = _words(priority) or []
    unknown = [word for word in first if word not in names]
    refuse([f"{root}: priority: expected one of {names}, found {w!r}" for w in unknown], root)
    pairs = [
        Pair(f"case_{number:04d}", "training", source=one)
        for number, one in enumerate(sources, start=1)
    ]
    options = {"labels": names, "priority": first, "segmentation": segmentation, "name": name}
    claim(target, "import dicom", root, (), folder_files(target, pairs, _read), options)
    if mapping is not None:
        _write_mapping(Path(mapping), pairs)
    modality = sources[0].image.modality
    values = {"background": 0, **{word: value for value, word in enumerate(names, start=1)}}
    return write_dataset_folder(
        target, pairs, lambda pair: _load(pair, values, first), name, values, modality
    )


def _words(value: Sequence[str] | str | None) -> list[str] | None:
    """Return ``a,b`` or a list as a list."""
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts]


def _survey(
    root: Path, segmentation: str | None
) -> tuple[dict[str, Found], list[Found], list[str]]:
    """Return the image series by UID, the label objects, and the faults of files."""
    if not root.is_dir():
        raise DataError(f"{root}: expected a folder of DICOM files, found no folder there")
    images: dict[str, Found] = {}
    series_of: dict[str, str] = {}
    labelled: list[tuple[Path, Any]] = []
    faults: list[str] = []
    others = 0
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != "DICOMDIR"):
        try:
            header = read_dicom(path, pixels=False)
        except DataError:
            others += 1
            continue
        with _collected(path, faults):
            modality = str(header.get("Modality", ""))
            if modality in IMAGES and "Rows" in header:
                found = _found(path, header)
                series = images.setdefault(found.identity[2], found)
                series.frames.add(found.frame)
                series_of[found.uid] = found.identity[2]
                if series is not found:
                    series.files.append(path)
            elif modality in LABELS:
                labelled.append((path, header))
    if others:
        logger.info("%s: %d files that are no DICOM; left out", root, others)
    objects = []
    for path, header in labelled:
        with _collected(path, faults):
            label = _label_object(path, header, series_of, segmentation)
            objects += [] if label is None else [label]
    if not objects and not faults:
        raise DataError(f"{root}: expected SEG or RTSTRUCT files with segments, found none")
    return images, objects, faults


@contextmanager
def _collected(path: Path, faults: list[str]) -> Iterator[None]:
    """Add what is raised to the faults.

    pydicom looks at a value when it is asked for: any may turn out to be damaged, or not there.
    """
    try:
        yield
    except DataError as error:
        faults.append(str(error))
    except Exception as error:
        faults.append(str(unreadable(path, "a whole DICOM object", error)))


def _found(path: Path, header: Any) -> Found:
    """Return what an object's header says."""
    patient, study, series = (
        str(header.get(key, "")) for key in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID")
    )
    frame = str(header.get("FrameOfReferenceUID", "none"))
    uid = str(header.get("SOPInstanceUID", ""))
    return Found([path], str(header.Modality), frame, (patient, study, series), uid=uid)


def _label_object(
    path: Path, header: Any, series_of: Mapping[str, str], segmentation: str | None
) -> Found | None:
    """Return what a SEG or RTSTRUCT says; None if it is not wanted, or has nothing in it."""
    words = (header.get("SeriesDescription", ""), header.get("StructureSetLabel", ""))
    if segmentation is not None and not any(segmentation in str(word) for word in words):
        return None
    names = label_names(header)
    if not names:
        logger.info("%s: %s without segments; left out", path, header.Modality)
        return None
    found = _found(path, header)
    found.series = referenced_series(header, series_of)
    found.frames, found.names = frames_of_reference(header), names
    return found


def _together(
    images: dict[str, Found], objects: Sequence[Found], root: Path, faults: Sequence[str] = ()
) -> list[Source]:
    """Put label objects and their series together; lists all that do not fit, after ``faults``."""
    faults = list(faults)
    sources: dict[str, Source] = {}
    for label in objects:
        path = label.files[0]
        image = images.get(label.series or "")
        if image is None:
            expected = f"the CT or MR series that this {label.modality} refers to"
            faults.append(f"{path}: expected {expected} in {root}, found none")
            continue
        if len(image.frames) > 1 or label.frames != image.frames or "none" in image.frames:
            expected = f"the series' frame of reference {', '.join(sorted(image.frames))}"
            faults.append(f"{path}: expected {expected}, found {', '.join(sorted(label.frames))}")
        other = sources.setdefault(image.identity[2], Source(image, label))
        if other.label is not label:
            expected = "one label object per series (choose by --segmentation)"
            faults.append(f"{path}: expected {expected}, found {other.label.files[0]} too")
    modalities = sorted({source.image.modality for source in sources.values()})
    if len(modalities) > 1:
        faults.append(f"{root}: expected series of one modality, found {', '.join(modalities)}")
    refuse(faults, root)
    left = len(images) - len(sources)
    if left:
        logger.info("%s: %d series without labels; left out", root, left)

    # UIDs often hold dates: the order of the cases must not tell them
    def place(source: Source) -> str:
        return hashlib.sha256(source.image.identity[2].encode()).hexdigest()

    return sorted(sources.values(), key=place)


def _names(sources: Sequence[Source], wanted: Sequence[str] | None, root: Path) -> list[str]:
    """Return the names of the classes; warn of cases that lack some."""
    there = sorted({name for source in sources for name in source.label.names})
    names = there if wanted is None else list(wanted)
    faults = [
        f"{root}: labels: expected some of {there}, found {n!r}" for n in names if n not in there
    ]
    faults += [
        f"{root}: labels: expected printable names of segments, found {name!r}"
        for name in names
        if one_line(name) != name or name.lower() == "background"
    ]
    faults += [
        f"{source.label.files[0]}: expected a name for each segment, found one without (--labels "
        "takes those that have one)"
        for source in sources
        if "" in names and "" in source.label.names
    ]
    refuse(faults, root)
    for number, source in enumerate(sources, start=1):
        lacking = [name for name in names if name not in source.label.names]
        if lacking:
            logger.warning("case_%04d: no segment %s: background there", number, lacking)
    return names


def _read(pair: Pair) -> dict[str, list[Path]]:
    """Return the files of a case by role."""
    return {"image": pair.source.image.files, "label": pair.source.label.files}


def _load(pair: Pair, values: dict[str, int], priority: Sequence[str]) -> dict[str, Volume]:
    """Read image and labels of a case.

    Raises:
        DataError: whatever is wrong with its files: the other cases are still converted.
    """
    try:
        return _volumes(pair, values, priority)
    except DataError:
        raise
    except Exception as error:
        raise unreadable(pair.source.label.files[0], "a whole DICOM object", error) from error


def _volumes(pair: Pair, values: dict[str, int], priority: Sequence[str]) -> dict[str, Volume]:
    """Read image and labels of a case."""
    image, label = pair.source.image, pair.source.label
    array, affine = series_volume(image.files, str(image.files[0].parent))
    dataset = read_dicom(label.files[0])
    where = str(label.files[0])
    merged = np.zeros(array.shape, label_dtype([len(values)]))
    rank = {values[word]: place for place, word in enumerate(priority)}
    overlaps: dict[tuple[str, str], int] = {}
    by_value = {value: word for word, value in values.items()}
    for word, mask in masks(dataset, list(values), affine, array.shape, where):
        value = values[word]
        for other in np.unique(merged[mask]):
            if other in (0, value):
                continue
            both = mask & (merged == other)
            if value not in rank and int(other) not in rank:
                overlaps[(by_value[int(other)], word)] = int(both.sum())
            elif rank.get(int(other), len(rank)) < rank.get(value, len(rank)):
                mask &= ~both
        merged[mask] = value
    if overlaps:
        found = ", ".join(f"{a} and {b} in {n} voxels" for (a, b), n in overlaps.items())
        expected = "segments that do not overlap (or --priority, or fewer --labels)"
        raise DataError(f"{where}: expected {expected}, found {found}")
    return {"image": from_lps(array, affine), "label": from_lps(merged, affine)}


def _write_mapping(path: Path, pairs: Sequence[Pair]) -> None:
    """Write which case is which patient."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for pair in pairs:
        writer.writerow([pair.name, *pair.source.image.identity, pair.source.label.uid])
    write_text(path, text.getvalue())
