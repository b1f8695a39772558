"""Dataset folders as nnU-Net v2's raw format.

What the format is: documentation/dataset_format.md of nnU-Net. A label set of MedPair may have
any values; nnU-Net's are 0, 1, 2, ... Validation cases are training cases there, named by a
``splits_final.json``.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medpair import __version__
from medpair.data.dataset import DatasetFolder, load_dataset
from medpair.data.files import DataError, write_json
from medpair.data.labels import LabelMap, is_whole
from medpair.data.spellings import channels_of
from medpair.sharing.convert import (
    NAME,
    Pair,
    bad_names,
    dataset_pairs,
    files_of,
    for_each,
    kept,
    load_pair,
    refuse,
    require_sound,
    sidecar_path,
    write_volumes,
)
from medpair.sharing.convert_record import CaseFiles, claim

logger = logging.getLogger(__name__)

ENDING = ".nii.gz"
# nnU-Net gives this name a meaning
IGNORE = "ignore"


def export_nnunet(
    dataset: str | Path,
    output_dir: str | Path,
    dataset_id: int,
    name: str | None = None,
    label_group: str | None = None,
) -> Path:
    """Write a dataset folder as nnU-Net's ``DatasetXXX_Name``.

    Args:
        dataset: the dataset folder.
        output_dir: the folder that gets ``DatasetXXX_Name``, such as ``nnUNet_raw``.
        dataset_id: XXX, 1 to 999.
        name: Name; default the dataset's.
        label_group: merge of labels.

    Returns:
        The path of its ``dataset.json``.

    Raises:
        DataError: if the dataset has faults or cannot be represented; lists them all.
        ValueError: if an argument is wrong.
    """
    source = Path(dataset)
    require_sound(source, label_group)
    folder = load_dataset(source)
    name = re.sub(r"[^A-Za-z0-9]+", "_", folder.name).strip("_") if name is None else name
    root = _target(Path(output_dir), dataset_id, name)
    labels = folder.labels(label_group)
    pairs = dataset_pairs(folder)
    _refuse_unfit(folder, labels, pairs)
    options = {"dataset_id": dataset_id, "name": name, "label_group": label_group}
    cases = {
        pair.name: CaseFiles(
            files_of(pair), [*_targets(root, pair).values(), sidecar_path(root, pair.name)]
        )
        for pair in pairs
    }
    claim(root, "export nnunet", source, [source / "dataset.json"], cases, options)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (root / part).mkdir(exist_ok=True)
    for_each(pairs, lambda pair: _write(root, pair, labels), str(root))
    return _write_lists(root, folder, name, labels, label_group)


def _target(output_dir: Path, dataset_id: int, name: str) -> Path:
    """Return the folder to write; an id has one folder."""
    if not is_whole(dataset_id) or not 1 <= dataset_id <= 999:
        raise ValueError(f"id: expected a whole number from 1 to 999, found {dataset_id!r}")
    if not NAME.fullmatch(name):
        raise ValueError(f"name: expected letters, digits and _, found {name!r}")
    root = output_dir / f"Dataset{dataset_id:03d}_{name}"
    for other in output_dir.glob(f"Dataset{dataset_id:03d}_*"):
        if other != root:
            raise DataError(f"{other}: expected an id that is free, found {dataset_id} taken")
    return root


def _refuse_unfit(folder: DatasetFolder, labels: LabelMap, pairs: Sequence[Pair]) -> None:
    """Refuse what nnU-Net's format cannot say."""
    where = folder.root / "dataset.json"
    faults = bad_names([pair.name for pair in pairs], where)
    channels = channels_of(folder.content) or {}
    if len(channels) > 1:
        faults.append(f"{where}: channel_names: expected one channel, found {len(channels)}")
    for name in labels.names[1:]:
        if name.lower() in (IGNORE, "background"):
            expected = "another name of a class (nnU-Net gives this one a meaning)"
            faults.append(f"{where}: labels: expected {expected}, found {name!r}")
    refuse(faults, folder.root)
    if any(pair.roi is not None for pair in pairs):
        logger.warning("%s: roi: nnU-Net has no place for these masks; left out", where)


def _targets(root: Path, pair: Pair) -> dict[str, Path]:
    """Return where the volumes of a case go, the image first."""
    part = "Ts" if pair.split == "test" else "Tr"
    return {
        "image": root / f"images{part}" / f"{pair.name}_0000{ENDING}",
        "label": root / f"labels{part}" / f"{pair.name}{ENDING}",
    }


def _write(root: Path, pair: Pair, labels: LabelMap) -> None:
    """Write the volumes of a case and what is known of its origin."""
    targets = _targets(root, pair)
    if not targets["image"].exists():
        pair_only = replace(pair, roi=None)
        write_volumes(load_pair(pair_only, labels, range(len(labels.names))), targets)
    if pair.provenance is not None:
        write_json(sidecar_path(root, pair.name), pair.provenance)


def _write_lists(
    root: Path, folder: DatasetFolder, name: str, labels: LabelMap, label_group: str | None
) -> Path:
    """Write ``dataset.json``, and ``splits_final.json`` where there is a validation list."""
    training, validation = (
        [case.name for case in folder.cases[split]] for split in ("training", "validation")
    )
    splits = root / "splits_final.json"
    if validation:
        write_json(splits, [{"train": sorted(training), "val": sorted(validation)}])
        logger.info("%s: copy it to nnUNet_preprocessed/%s/ and train fold 0", splits, root.name)
    channels = channels_of(folder.content) or {"0": "image"}
    merged = folder.content.get("label_group") if label_group is None else label_group
    path = root / "dataset.json"
    content = {
        "name": name,
        "channel_names": {"0": str(next(iter(channels.values())))},
        "labels": {"background": 0} | {n: k for k, n in enumerate(labels.names) if k},
        "numTraining": len(training) + len(validation),
        "file_ending": ENDING,
        **({} if merged is None else {"label_group": merged}),
        **kept(folder.content),
        # what each label was before
        "label_values": dict(zip(labels.names, map(list, labels.values), strict=True)),
        "converted_by": f"MedPair {__version__}",
    }
    write_json(path, content)
    return path
