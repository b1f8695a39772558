"""Check a dataset folder: every fault, each with file, key, what was expected and what was found.

The quick part opens headers only; every bundle runs it before anything else. The full part reads
each file once, to the gzip checksum, in bounded memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medpair.data.check_header import AFFINE_TOLERANCE, Header, matrix
from medpair.data.check_json import ROLES, ListedCase, Listing, read_listing
from medpair.data.check_spacing import ras_spacing, spacing_faults
from medpair.data.check_volume import MAX_DISTINCT, Contents, Examined, examine
from medpair.data.dataset import SPLITS, as_folders
from medpair.data.faults import Fault, errors_of, format_report
from medpair.data.files import DataError
from medpair.data.labels import WHOLE_TOLERANCE, LabelMap, short_list
from medpair.data.orientation import axis_codes

__all__ = ["Fault", "check_dataset", "format_report", "require_valid"]

# Networks compute in float32; what is larger becomes infinite when read.
LARGEST = float(np.finfo(np.float32).max)

logger = logging.getLogger(__name__)


def check_dataset(
    folder: str | Path,
    label_group: str | None = None,
    quick: bool = False,
    splits: Sequence[str] | None = None,
    progress: bool = False,
) -> list[Fault]:
    """Return every fault of a dataset folder; an empty list means that it is valid.

    Args:
        folder: the dataset folder.
        label_group: name of a merge of labels that must exist, or None.
        quick: only ``dataset.json``, headers and file lengths; voxels are not read.
        splits: the splits whose files are checked and which must have cases; default all of them,
            of which only training must have cases.
        progress: show a bar.

    Raises:
        DataError: if ``splits`` names an unknown split. Faults of the data never raise.
    """
    splits = [splits] if isinstance(splits, str) else splits
    unknown = sorted(set(splits or ()) - set(SPLITS))
    if unknown:
        raise DataError(f"splits: expected some of {list(SPLITS)}, found {unknown}")
    listing = read_listing(folder, label_group, splits)
    survey = _Survey(listing.labels)
    cases = [case for case in listing.cases if case.split in (splits or SPLITS)]
    for case in tqdm(cases, desc=f"check {folder}", disable=not progress):
        survey.add(case, full=not quick)
    faults = [*listing.faults, *_duplicates(listing), *survey.faults]
    faults += spacing_faults(listing.json_path, survey.spacings)
    if not quick:
        faults += _absent(listing, cases, survey)
    return faults


def require_valid(
    dataset_dir: str | Path | Sequence[str | Path],
    label_group: str | None = None,
    splits: Sequence[str] | None = None,
) -> None:
    """Run the quick check on one folder or several; log warnings.

    Raises:
        DataError: if a folder has errors; lists all of them, one per line, and their number first.
    """
    folders = as_folders(dataset_dir)
    if not folders:
        raise DataError("dataset_dir: expected a dataset folder, found none")
    faults = [
        fault
        for folder in folders
        for fault in check_dataset(folder, label_group, quick=True, splits=splits)
    ]
    errors = errors_of(faults)
    for fault in faults:
        if fault.level == "warning":
            logger.warning("%s", fault)
    if errors:
        names = ", ".join(str(folder) for folder in folders)
        lines = "\n".join(str(fault) for fault in errors)
        count = f"{len(errors)} error{'' if len(errors) == 1 else 's'}"
        raise DataError(f"{names}: expected a valid dataset, found {count}:\n{lines}")


@dataclass
class _Survey:
    """The files of a folder, examined one after the other; a file listed twice is read once."""

    labels: LabelMap | None
    faults: list[Fault] = field(default_factory=list)
    examined: dict[tuple[Path, bool], Examined] = field(default_factory=dict)
    checked: set[tuple[Path, str]] = field(default_factory=set)
    images: dict[bytes, tuple[str, str]] = field(default_factory=dict)
    spacings: dict[Path, np.ndarray] = field(default_factory=dict)

    def add(self, case: ListedCase, full: bool) -> None:
        """Examine the files of a case, compare their grids and, when ``full``, their voxels."""
        headers: dict[str, Header] = {}
        for role in ROLES:
            path = case.paths.get(role)
            if path is None:
                continue
            key = (path.resolve(), role != "image")
            if key not in self.examined:
                self.examined[key] = examine(path, case.where(role), role != "image", full)
                self.faults += self.examined[key].faults
            result = self.examined[key]
            if result.header is not None:
                headers[role] = result.header
                if role == "image" and result.header.affine is not None:
                    self.spacings[path] = ras_spacing(result.header.affine)
            if full and result.contents is not None and (key[0], role) not in self.checked:
                self.checked.add((key[0], role))
                self._check_contents(case, role, result.contents, path)
        image = case.paths.get("image")
        for role in ("label", "roi"):
            if image is not None and "image" in headers and role in headers:
                self.faults += _compare(case.paths[role], headers[role], image, headers["image"])

    def _check_contents(self, case: ListedCase, role: str, contents: Contents, path: Path) -> None:
        """Check the voxels of a file according to its role."""
        if role == "image":
            self.faults += _image_faults(path, contents)
            where, split = self.images.setdefault(contents.digest, (str(path), case.split))
            if where != str(path):
                expected = "a volume of its own"
                if split != case.split:
                    expected = "a volume that no other split has"
                found = f"those of {where} ({split})"
                self.faults.append(Fault(str(path), "voxels", expected, found))
            return
        self.faults += _class_faults(path, contents)
        if role == "roi":
            self.faults += _mask_faults(path, contents)
        elif self.labels is not None:
            self.faults += _label_faults(path, contents, self.labels)

    def label_contents(self, case: ListedCase) -> Contents | None:
        """Return what the label map of a case holds; None where it could not be read."""
        path = case.paths.get("label")
        examined = None if path is None else self.examined.get((path.resolve(), True))
        return None if examined is None else examined.contents


def _compare(path: Path, header: Header, image: Path, reference: Header) -> list[Fault]:
    """Compare the grid of a label or mask with the image's."""
    file, faults = str(path), []
    if header.shape != reference.shape:
        expected = f"{reference.shape}, the shape of {image}"
        faults.append(Fault(file, "shape", expected, f"{header.shape}"))
    if header.affine is None or reference.affine is None:
        return faults
    spacing = np.linalg.norm(reference.affine[:3, :3], axis=0).min()
    off = float(np.abs(header.affine - reference.affine).max())
    if off > AFFINE_TOLERANCE * spacing:
        expected = f"{matrix(reference.affine)}, the affine of {image}"
        found = f"{matrix(header.affine)}, which differs by up to {off:.4g}"
        stored, wanted = axis_codes(header.affine), axis_codes(reference.affine)
        if stored != wanted:
            found += f" (stored in another orientation: {stored}, the image {wanted})"
        faults.append(Fault(file, "affine", expected, found))
    return faults


def _image_faults(path: Path, contents: Contents) -> list[Fault]:
    """Check the intensities of an image."""
    file, low, high = str(path), contents.low, contents.high
    faults = _finite_faults(path, contents)
    if low == high:  # training takes it, as the darkest intensity: see robust_range
        found = f"{low:g} in every finite voxel"
        faults.append(Fault(file, "voxels", "an image that varies", found, "warning"))
    if low < -LARGEST or high > LARGEST:
        found = f"{low:g} to {high:g}"
        faults.append(Fault(file, "voxels", "values that float32 can hold", found))
    return faults


def _finite_faults(path: Path, contents: Contents) -> list[Fault]:
    """Check for NaN and infinity."""
    if not contents.nan + contents.infinite:
        return []
    found = f"{contents.nan} NaN and {contents.infinite} infinite voxels"
    return [Fault(str(path), "voxels", "finite values", found)]


def _class_faults(path: Path, contents: Contents) -> list[Fault]:
    """Check that the values of a label map or a mask are whole numbers."""
    faults = _finite_faults(path, contents)
    if contents.fractions:
        examples = ", ".join(f"{value:g}" for value in sorted(set(contents.examples)))
        found = f"{contents.fractions} voxels with fractions, such as [{examples}]"
        expected = f"whole numbers (within {WHOLE_TOLERANCE:g})"
        faults.append(Fault(str(path), "values", expected, found))
    elif contents.deviation:
        found = f"deviations up to {contents.deviation:.2g}, which are rounded"
        faults.append(Fault(str(path), "values", "whole numbers", found, "warning"))
    return faults


def _label_faults(path: Path, contents: Contents, labels: LabelMap) -> list[Fault]:
    """Check label values against the label set."""
    known = labels.known()
    faults = []
    unknown = sorted(contents.whole.keys() - known)
    if unknown:
        found = f"{_some(unknown, contents)}; map them, or add them to `labels`"
        expected = f"values in {short_list(sorted(known))}"
        faults.append(Fault(str(path), "values", expected, found))
    background = {0, *labels.ignored}
    if contents.whole and not contents.fractions and contents.whole.keys() <= background:
        faults.append(Fault(str(path), "values", "a foreground", "background only", "warning"))
    return faults


def _mask_faults(path: Path, contents: Contents) -> list[Fault]:
    """Check that a region of interest is 0 and 1, and not empty."""
    others = sorted(contents.whole.keys() - {0, 1})
    if others:
        found = _some(others, contents)
        return [Fault(str(path), "values", "0 and 1 in a region of interest", found)]
    if contents.whole.keys() == {0}:
        return [Fault(str(path), "values", "a region of interest", "0 everywhere", "warning")]
    return []


def _some(values: Sequence[int], contents: Contents) -> str:
    """Return values and in how many voxels they occur, for messages."""
    count = sum(contents.whole[value] for value in values)
    more = "at least " if len(contents.whole) >= MAX_DISTINCT else ""
    return f"{short_list(values)} in {more}{count} voxels"


def _duplicates(listing: Listing) -> list[Fault]:
    """Find files listed twice, and different files whose cases have the same name."""
    faults: list[Fault] = []
    files: dict[Path, tuple[str, str]] = {}
    names: dict[str, tuple[str, str]] = {}
    for case in listing.cases:
        known = {role: (case.split, case.where(role)) for role in ("image", "label")}
        named = "image" if "image" in case.paths else "label"
        for role, here in known.items():
            path = case.paths.get(role)
            if path is None:
                continue
            split, where = files.setdefault(path.resolve(), here)
            if (split, where) != here:
                expected = "a file in one split" if split != case.split else "a file listed once"
                faults.append(Fault(str(path), here[1], expected, f"it in {where} too"))
            elif role == named and case.name is not None:
                split, where = names.setdefault(case.name, here)
                if (split, where) != here:
                    expected = "a case that no other split has"
                    if split == case.split:
                        expected = "a file name of its own, after which the case is named"
                    found = f"the name {case.name!r} of {where}"
                    faults.append(Fault(str(path), here[1], expected, found))
    return faults


def _absent(listing: Listing, cases: Sequence[ListedCase], survey: _Survey) -> list[Fault]:
    """Warn of classes that no label map has; only where every label map could be read."""
    labels = listing.labels
    read = [survey.label_contents(case) for case in cases if case.split != "test"]
    if labels is None or not read or None in read:
        return []
    present = {value for contents in read if contents for value in contents.whole}
    absent = [
        name
        for name, values in zip(labels.names[1:], labels.values[1:], strict=True)
        if not present.intersection(values)
    ]
    if not absent:
        return []
    found = f"no voxel of {short_list(absent, limit=50)}"
    expected = "each class in some case"
    return [Fault(listing.json_path, "labels", expected, found, "warning")]
