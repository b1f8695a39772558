"""BIDS folders as dataset folders: an image, and the label map that belongs to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from medpair.data.dataset import SPLITS
from medpair.data.files import DataError, Volume, read_json
from medpair.data.labels import LabelMap, is_whole
from medpair.sharing.convert import (
    Pair,
    bad_names,
    files_of,
    folder_files,
    load_pair,
    refuse,
    write_dataset_folder,
)
from medpair.sharing.convert_bids import CT, ROI
from medpair.sharing.convert_bids_files import File, index_volumes, label_table, read_tsv
from medpair.sharing.convert_record import claim
from medpair.sharing.convert_volumes import label_dtype, on_grid, read_mask

NO_IMAGE = ("dseg", "mask", "probseg", "defacemask", "xfm")


def import_bids(
    source: str | Path,
    output_dir: str | Path,
    suffix: str | None = None,
    desc: str | None = None,
    segmentation: str | None = None,
    labels: Mapping[str, int] | None = None,
    matched_only: bool = False,
) -> Path:
    """Write a BIDS folder, raw or derivative, as a dataset folder; a case for each image.

    An image and a ``_dseg`` (or ``_label-NAME_mask`` files) belong together if they agree in
    subject, session, run, space, resolution and every other entity but ``desc``, ``seg`` and
    ``label``. Both are sought in ``source`` and in all of its ``derivatives``. Columns ``split``
    and ``medpair_case`` of ``participants.tsv`` are used where they are.

    Args:
        source: the BIDS folder.
        output_dir: the dataset folder to write.
        suffix: of the images; default the only one there is in ``anat`` folders.
        desc: ``desc`` entity of the images; default those without.
        segmentation: where an image has several label maps: ``desc``, ``seg`` or derivative of
            the one to take.
        labels: {name: value}, instead of the ``_dseg.tsv`` files.
        matched_only: leave out images without label map, and label maps without image; else they
            are refused.

    Returns:
        The path of the ``dataset.json``.

    Raises:
        DataError: if the source has faults or cannot be represented; lists them.
    """
    root = Path(source)
    files = index_volumes(root)
    suffix = _suffix(files, suffix, root)
    images = _images(files, suffix, desc, root)
    found = _label_files(files, segmentation)
    rows = _participants(root)
    pairs = _pairs(images, found, _rois(files, suffix), rows, suffix, matched_only, root)
    refuse(bad_names([pair.name for pair in pairs], root), root)
    tables = [label_table(file, root) for pair in pairs for file in pair.source or ()]
    classes = _classes([f for p in pairs for f in p.source or ()], tables, labels, root)
    options = {
        "suffix": suffix,
        "desc": desc,
        "segmentation": segmentation,
        "labels": None if labels is None else dict(labels),
        "matched_only": matched_only,
    }
    tables_there = [path for path in root.rglob("*.tsv") if path.is_file()]
    cases = folder_files(Path(output_dir), pairs, _read)
    claim(Path(output_dir), "import bids", root, tables_there, cases, options)
    about = root / "dataset_description.json"
    content = read_json(about) if about.exists() else {}
    more = {"licence": content["License"]} if content.get("License") else {}
    return write_dataset_folder(
        Path(output_dir),
        pairs,
        lambda pair: _load(pair, classes),
        str(content.get("Name") or root.resolve().name),
        classes,
        "CT" if suffix == CT else suffix,
        **more,
    )


def _suffix(files: Sequence[File], suffix: str | None, root: Path) -> str:
    """Return the suffix of the images."""
    there = sorted(
        {f.suffix for f in files if f.path.parent.name in ("anat", "ct")} - set(NO_IMAGE)
    )
    if suffix is None:
        if len(there) != 1:
            expected = "images of one suffix (choose one with --suffix)"
            raise DataError(f"{root}: expected {expected}, found {', '.join(there) or 'none'}")
        return there[0]
    return suffix


def _images(files: Sequence[File], suffix: str, desc: str | None, root: Path) -> list[File]:
    """Return the images to take."""
    images = [file for file in files if file.suffix == suffix]
    chosen = [file for file in images if file.entities.get("desc") == desc]
    if not chosen:
        others = sorted({str(file.entities.get("desc")) for file in images})
        expected = f"images with the suffix {suffix} and desc {desc}"
        found = f"desc {', '.join(others)}" if others else "no such suffix"
        raise DataError(f"{root}: expected {expected}, found {found}")
    return chosen


def _label_files(files: Sequence[File], segmentation: str | None) -> list[File]:
    """Return the label maps, and the masks that have the name of a label."""
    return [
        file
        for file in files
        if (file.suffix == "dseg" or (file.suffix == "mask" and "label" in file.entities))
        and (
            segmentation is None
            or segmentation in (file.entities.get("desc"), file.entities.get("seg"), file.pipeline)
        )
    ]


def _rois(files: Sequence[File], suffix: str) -> dict[Any, Path]:
    """Return the regions of interest that MedPair's export writes."""
    return {
        file.key(suffix): file.path
        for file in files
        if file.suffix == "mask" and file.entities.get("desc") == ROI
    }


def _participants(root: Path) -> dict[str, dict[str, str]]:
    """Return the rows of ``participants.tsv`` by subject."""
    path = root / "participants.tsv"
    rows = {row.get("participant_id", ""): row for row in read_tsv(path)} if path.exists() else {}
    wrong = {row["split"] for row in rows.values() if row.get("split")} - {*SPLITS, "n/a"}
    if wrong:
        raise DataError(f"{path}: split: expected some of {list(SPLITS)}, found {sorted(wrong)}")
    return rows


def _pairs(
    images: Sequence[File],
    labels: Sequence[File],
    rois: Mapping[Any, Path],
    rows: Mapping[str, Mapping[str, str]],
    suffix: str,
    matched_only: bool,
    root: Path,
) -> list[Pair]:
    """Put images and their label maps together; lists all that stays alone or is there twice."""
    faults: list[str] = []
    by_key: dict[tuple[tuple[str, str], ...], list[File]] = {}
    for label in labels:
        by_key.setdefault(label.key(suffix), []).append(label)
    subjects = [image.entities["sub"] for image in images]
    pairs: list[Pair] = []
    seen: dict[tuple[tuple[str, str], ...], File] = {}
    for image in images:
        key = image.key(suffix)
        if key in seen:
            expected = "one image with these entities (choose one with --desc)"
            faults.append(f"{image.path}: expected {expected}, found {seen[key].path} too")
            continue
        seen[key] = image
        found = by_key.pop(key, [])
        faults += _ambiguous(image, found)
        row = rows.get(f"sub-{image.entities['sub']}", {})
        split = _said(row, "split") or "training"
        if not found and split != "test":
            if not matched_only:
                expected = "a _dseg or _label-NAME_mask (--matched_only leaves it out)"
                faults.append(f"{image.path}: expected {expected}, found none")
            continue
        alone = subjects.count(image.entities["sub"]) == 1
        entities = [f"{key}-{value}" for key, value in image.entities.items() if key != "desc"]
        name = (_said(row, "medpair_case") if alone else None) or "_".join(entities)
        pair = Pair(name, split, image.path, None, rois.get(key), _provenance(image))
        pairs.append(replace(pair, source=found or None))
    for label in (file for group in by_key.values() for file in group if not matched_only):
        expected = "an image with the same entities"
        faults.append(f"{label.path}: expected {expected}, found none")
    refuse(faults, root)
    return pairs


def _said(row: Mapping[str, str], column: str) -> str | None:
    value = row.get(column)
    return None if value in (None, "", "n/a") else value


def _ambiguous(image: File, found: Sequence[File]) -> list[str]:
    """Return the fault of an image that has several label maps."""
    dsegs = [file for file in found if file.suffix == "dseg"]
    names = [file.entities["label"] for file in found if file.suffix == "mask"]
    if len(dsegs) + bool(names) <= 1 and len(set(names)) == len(names):
        return []
    expected = "one _dseg, or one mask per label (choose by --segmentation)"
    listed = ", ".join(str(file.path.name) for file in found)
    return [f"{image.path}: expected {expected}, found {listed}"]


def _provenance(image: File) -> Any:
    """Return what MedPair's export has put into the sidecar."""
    path = image.path.with_name(image.path.name.split(".nii")[0] + ".json")
    content = read_json(path) if path.exists() else {}
    return content.get("MedPair") if isinstance(content, dict) else None


def _classes(
    files: Sequence[File],
    tables: Sequence[dict[str, int] | None],
    given: Mapping[str, int] | None,
    root: Path,
) -> dict[str, int]:
    """Return {name: value} of the whole dataset."""
    masks = sorted({file.entities["label"] for file in files if file.suffix == "mask"})
    classes: dict[str, int] = {}
    faults: list[str] = []
    if given is not None:
        if not all(map(is_whole, given.values())):
            raise ValueError(f"labels: expected {{name: whole number}}, found {given}")
        classes = dict(given)
    else:
        classes = {name: value for value, name in enumerate(masks, start=1)}
        for file, table in zip(files, tables, strict=True):
            if file.suffix == "dseg" and table is None:
                expected = "a _dseg.tsv with the names of its values (or --labels)"
                faults.append(f"{file.path}: expected {expected}, found none")
            for name, value in (table or {}).items():
                if classes.setdefault(name, value) != value:
                    found = f"{name!r} as {classes[name]} and as {value}"
                    faults.append(f"{file.path}: expected one value per name, found {found}")
    lacking = [name for name in masks if name not in classes]
    faults += [f"{root}: labels: expected {name!r} among them, found none" for name in lacking]
    if 0 not in classes.values():
        classes = {"background": 0, **classes}
    names: dict[int, str] = {}
    for name, value in classes.items():
        if names.setdefault(value, name) != name:
            found = f"{names[value]!r} and {name!r} for {value}"
            faults.append(f"{root}: expected one name per value, found {found}")
    refuse(list(dict.fromkeys(faults)), root)
    return dict(sorted(classes.items(), key=lambda item: item[1]))


def _read(pair: Pair) -> dict[str, list[Path]]:
    """Return the files of a case by role."""
    labels = [file.path for file in pair.source or ()]
    return {**files_of(pair), **({"label": labels} if labels else {})}


def _load(pair: Pair, classes: Mapping[str, int]) -> dict[str, Volume]:
    """Read the volumes of a case; masks are put together into a label map."""
    labels = LabelMap(tuple(classes), tuple((value,) for value in classes.values()))
    values = list(classes.values())
    files: Sequence[File] = pair.source or ()
    if files and files[0].suffix == "dseg":
        return load_pair(replace(pair, label=files[0].path), labels, values)
    volumes = load_pair(pair, labels, values)
    image = volumes["image"]
    merged = np.zeros(image.array.shape, label_dtype(values))
    for file in files:
        mask = on_grid(read_mask(file.path), image, (file.path, pair.image)).array > 0
        twice = int((merged[mask] != 0).sum())
        if twice:
            expected = "masks that do not overlap"
            raise DataError(f"{file.path}: expected {expected}, found {twice} voxels in two")
        merged[mask] = classes[file.entities["label"]]
    if files:
        volumes["label"] = Volume(merged, image.affine, image.orientation)
    return volumes
