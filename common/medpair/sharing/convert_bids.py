"""Dataset folders as BIDS derivatives: images, ``_dseg`` label maps and what their values mean.

Source: the Brain Imaging Data Structure specification 1.10, chapters "Imaging derivatives" and
"Modality-specific files".
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medpair import __version__
from medpair.data.dataset import DatasetFolder, load_dataset
from medpair.data.faults import one_line
from medpair.data.files import DataError, write_json, write_text
from medpair.data.labels import LabelMap
from medpair.data.spellings import channels_of, licence_of
from medpair.sharing.convert import (
    Pair,
    bad_names,
    dataset_pairs,
    files_of,
    for_each,
    load_pair,
    refuse,
    require_sound,
    write_volumes,
)
from medpair.sharing.convert_record import CaseFiles, claim

logger = logging.getLogger(__name__)

BIDS_VERSION = "1.10.0"
RECORD = "code/conversion.json"
LAST = "dataset_description.json"
# Anatomical suffixes of the specification; it has none for CT yet (extension proposal 24)
SUFFIXES = ("T1w", "T2w", "PDw", "T2starw", "FLAIR", "inplaneT1", "inplaneT2", "angio")
CT = "ct"
# How a channel's name begins, and the suffix that it means
BEGINNINGS = {
    "tof": "angio",
    "mra": "angio",
    "angio": "angio",
    "flair": "FLAIR",
    "t1": "T1w",
    "t2": "T2w",
    "pd": "PDw",
    "ct": CT,
}
ROI = "roi"


def export_bids(
    dataset: str | Path,
    output_dir: str | Path,
    suffix: str | None = None,
    label_group: str | None = None,
    authors: Sequence[str] | str | None = None,
    skull_stripped: bool = False,
) -> Path:
    """Write a dataset folder as a BIDS derivative dataset, a subject for each case.

    Label values stay as they are. Image and label map of a subject lie in its ``anat`` folder.

    Args:
        dataset: the dataset folder.
        output_dir: the BIDS folder, such as ``derivatives/medpair``.
        suffix: of the images: one of ``SUFFIXES`` or ``ct``; default by the channel's name.
        label_group: merge of labels.
        authors: whom a ``CITATION.cff`` names; without them none is written.
        skull_stripped: whether voxels outside the brain are 0, which BIDS wants said.

    Returns:
        The path of its ``dataset_description.json``.

    Raises:
        DataError: if the dataset has faults or cannot be represented; lists them all.
        ValueError: if an argument is wrong.
    """
    source, root = Path(dataset), Path(output_dir)
    require_sound(source, label_group)
    folder = load_dataset(source)
    suffix = _suffix(folder, suffix)
    labels = folder.labels(label_group)
    # merged labels are numbered; others keep their values
    merged = any(len(values) > 1 for values in labels.values) or bool(labels.ignored)
    values = [k if merged else group[0] for k, group in enumerate(labels.values)]
    pairs = dataset_pairs(folder)
    subjects = _subjects(folder, labels, pairs)
    writers = [authors] if isinstance(authors, str) else list(authors or ())
    options = {
        "suffix": suffix,
        "label_group": label_group,
        "authors": writers,
        "skull_stripped": skull_stripped,
    }
    cases = {
        pair.name: CaseFiles(
            files_of(pair), list(_targets(root, subjects[pair.name], suffix).values())
        )
        for pair in pairs
    }
    claim(root, "export bids", source, [source / "dataset.json"], cases, options, RECORD, LAST)
    extra: dict[str, Any] = {} if suffix == CT else {"SkullStripped": skull_stripped}

    def write(pair: Pair) -> None:
        _write(root, subjects[pair.name], pair, suffix, labels, values, extra)

    for_each(pairs, write, str(root))
    _write_participants(root, pairs, subjects)
    return _write_description(root, folder, suffix, writers)


def _suffix(folder: DatasetFolder, suffix: str | None) -> str:
    """Return the suffix that is asked for, or what the channel's name means."""
    known = (*SUFFIXES, CT)
    if suffix is not None:
        if suffix not in known:
            raise ValueError(f"suffix: expected one of {', '.join(known)}, found {suffix!r}")
        return suffix
    where = folder.root / "dataset.json"
    channels = channels_of(folder.content) or {}
    if len(channels) > 1:
        raise DataError(f"{where}: channel_names: expected one channel, found {len(channels)}")
    name = str(next(iter(channels.values()), ""))
    for beginning, meant in BEGINNINGS.items():
        if re.match(rf"{beginning}(?![a-z])|{beginning}w", name.lower()):
            return meant
    expected = f"a name that begins with one of {', '.join(BEGINNINGS)}"
    raise DataError(
        f"{where}: channel_names: expected {expected}, found {name!r}; say --suffix, one of "
        f"{', '.join(known)}"
    )


def _subjects(folder: DatasetFolder, labels: LabelMap, pairs: Sequence[Pair]) -> dict[str, str]:
    """Return {case: subject}: BIDS has letters and digits alone in the names of subjects."""
    where = folder.root / "dataset.json"
    faults = bad_names([pair.name for pair in pairs], where)
    subjects: dict[str, str] = {}
    taken: dict[str, str] = {}
    for pair in pairs:
        label = re.sub(r"[^A-Za-z0-9]", "", pair.name)
        other = taken.setdefault(label.lower(), pair.name)
        if other != pair.name and other.lower() != pair.name.lower():
            found = f"{other!r} and {pair.name!r}, both sub-{label}"
            faults.append(f"{where}: expected cases with names of their own, found {found}")
        subjects[pair.name] = f"sub-{label}"
    for name in labels.names:
        if not name.strip() or not name.isprintable():
            faults.append(f"{where}: labels: expected printable names, found {name!r}")
    refuse(faults, folder.root)
    return subjects


def _targets(root: Path, subject: str, suffix: str) -> dict[str, Path]:
    """Return where the volumes of a subject go, the image first."""
    folder = root / subject / "anat"
    return {
        "image": folder / f"{subject}_{suffix}.nii.gz",
        "label": folder / f"{subject}_dseg.nii.gz",
        "roi": folder / f"{subject}_desc-{ROI}_mask.nii.gz",
    }


def _write(
    root: Path,
    subject: str,
    pair: Pair,
    suffix: str,
    labels: LabelMap,
    values: Sequence[int],
    extra: Mapping[str, Any],
) -> None:
    """Write the files of a subject, the image last."""
    targets = _targets(root, subject, suffix)
    image = f"bids::{targets['image'].relative_to(root)}"
    origin = {"Sources": [image], "SpatialReference": image}
    what = "a synthetic image" if pair.provenance is not None else "an image"
    sidecar = {"Description": f"{what} of a MedPair dataset", **extra}
    if pair.provenance is not None:
        sidecar["MedPair"] = pair.provenance
    write_json(_beside(targets["image"], ".json"), sidecar)
    if pair.label is not None:
        about = {"Description": "label map of the image; see the _dseg.tsv", **origin}
        write_json(_beside(targets["label"], ".json"), about)
        rows = [f"{value}\t{name}" for value, name in zip(values, labels.names, strict=True)]
        write_text(_beside(targets["label"], ".tsv"), "\n".join(["index\tname", *rows]) + "\n")
    if pair.roi is not None:
        about = {"Description": "where scores are taken", "Type": "ROI", **origin}
        write_json(_beside(targets["roi"], ".json"), about)
    if not targets["image"].exists():
        write_volumes(load_pair(pair, labels, values), targets)


def _beside(volume: Path, ending: str) -> Path:
    return volume.with_name(volume.name.removesuffix(".nii.gz") + ending)


def _write_participants(root: Path, pairs: Sequence[Pair], subjects: Mapping[str, str]) -> None:
    """Write which subject was which case, and which list it belongs to."""
    rows = [f"{subjects[pair.name]}\t{pair.split}\t{pair.name}" for pair in pairs]
    text = "\n".join(["participant_id\tsplit\tmedpair_case", *sorted(rows)]) + "\n"
    write_text(root / "participants.tsv", text)
    levels = {
        "training": "to train on",
        "validation": "to choose models by",
        "test": "to be seen once, at the end",
    }
    columns = {
        "split": {"Description": "list of the dataset that it is in", "Levels": levels},
        "medpair_case": {"Description": "name of the case before the conversion"},
    }
    write_json(root / "participants.json", columns)


def _write_description(
    root: Path, folder: DatasetFolder, suffix: str, authors: Sequence[str]
) -> Path:
    """Write what describes the dataset as a whole; ``dataset_description.json`` last."""
    content = folder.content
    if suffix == CT:
        write_text(root / ".bidsignore", f"*_{CT}.nii.gz\n*_{CT}.json\n")
    if authors:
        # JSON's strings are YAML's
        people = "\n".join(f"  - name: {json.dumps(name)}" for name in authors)
        title = json.dumps(folder.name)
        head = "cff-version: 1.2.0\nmessage: Please cite this dataset by its authors.\n"
        write_text(
            root / "CITATION.cff", f"{head}type: dataset\ntitle: {title}\nauthors:\n{people}\n"
        )
    description = one_line(str(content.get("description", "no description was given")))
    licence = licence_of(content)
    synthetic = "origin" in content
    lines = [
        f"# {one_line(folder.name)}",
        f"Volumes with label maps, converted by MedPair {__version__}: {description}.",
        "The volumes are synthetic: a network drew them. The key MedPair of each image's sidecar "
        "says which weights, seed and index made it."
        if synthetic
        else "Nothing in the source says that the volumes are synthetic.",
        "Each subject has an image, a label map `_dseg.nii.gz` on the same grid, and a "
        "`_dseg.tsv` with the names of its values. `participants.tsv` says which list (training, "
        "validation, test) a subject is in.",
        f"Licence: {one_line(licence or 'none was given')}",
    ]
    write_text(root / "README.md", "\n\n".join(lines) + "\n")
    tool = {"Name": "MedPair", "Version": __version__, "Description": "medpair export bids"}
    path = root / LAST
    about = {
        "Name": folder.name,
        "BIDSVersion": BIDS_VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [tool],
        **({"License": licence} if licence else {}),
    }
    write_json(path, about)
    return path
