"""nnU-Net v2's raw format as dataset folders."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medpair.data.files import DataError, read_json
from medpair.data.labels import LabelMap, is_whole
from medpair.data.spellings import channels_of
from medpair.sharing.convert import (
    Pair,
    bad_names,
    files_of,
    folder_files,
    kept,
    load_pair,
    read_sidecar,
    refuse,
    write_dataset_folder,
)
from medpair.sharing.convert_nnunet import IGNORE
from medpair.sharing.convert_record import claim


def import_nnunet(
    source: str | Path,
    output_dir: str | Path,
    channel: int | str | None = None,
    splits: str | Path | None = None,
    fold: int = 0,
    ignore_as_background: bool = False,
) -> Path:
    """Write nnU-Net's ``DatasetXXX_Name`` as a dataset folder.

    Regions become label groups, one for each; the values below them keep the name of a region
    that has this value alone, or are called ``value_3``.

    Args:
        source: the folder with the ``dataset.json``.
        output_dir: the dataset folder to write.
        channel: number or name of the channel to take, where there are several.
        splits: a ``splits_final.json``; default the one in ``source``, if there is one.
        fold: which of its folds; its ``val`` becomes the validation list.
        ignore_as_background: take voxels of the ignore label for background.

    Returns:
        The path of the ``dataset.json`` written.

    Raises:
        DataError: if the source has faults or cannot be represented; lists them.
    """
    root, target = Path(source), Path(output_dir)
    where = root / "dataset.json"
    content = read_json(where)
    if not isinstance(content, dict):
        raise DataError(f"{where}: expected an object, found {type(content).__name__}")
    number, channel_name, count = _channel(content, channel, where)
    labels, values, groups = _labels(content, ignore_as_background, where)
    pairs = _training(root, content, number, count)
    pairs = _split(pairs, *_fold(root, splits, fold)) + _test(root, content, number)
    refuse(bad_names([pair.name for pair in pairs], root), root)
    options = {"channel": number, "fold": fold, "ignore_as_background": ignore_as_background}
    listed = [where, *([Path(splits)] if splits else root.glob("splits_final.json"))]
    claim(target, "import nnunet", root, listed, folder_files(target, pairs, files_of), options)
    more = kept(content)
    if "label_group" in content:
        more["label_group"] = content["label_group"]
    if groups:
        more["label_groups"] = groups
    return write_dataset_folder(
        target,
        pairs,
        lambda pair: load_pair(pair, labels, values),
        str(content.get("name") or re.sub(r"^Dataset\d+_", "", root.resolve().name)),
        dict(zip(labels.names, values, strict=True)),
        channel_name,
        **more,
    )


def _channel(
    content: Mapping[str, Any], wanted: int | str | None, where: Path
) -> tuple[int, str, int]:
    """Return number and name of the channel to take, and how many there are."""
    channels = channels_of(content)
    if not isinstance(channels, dict) or not channels or not all(k.isdigit() for k in channels):
        expected = 'channel_names: {"0": name}'
        raise DataError(f"{where}: expected {expected}, found {channels!r}")
    names = {int(key): str(value) for key, value in channels.items()}
    listed = ", ".join(f"{key} {names[key]}" for key in sorted(names))
    if wanted is None:
        if len(names) > 1:
            raise DataError(
                f"{where}: channel_names: expected one channel, found {len(names)} ({listed}); "
                "choose one with --channel"
            )
        wanted = min(names)
    for key, value in names.items():
        if wanted in (key, str(key), value):
            return key, value, len(names)
    raise DataError(f"{where}: channel_names: expected {wanted!r} among them, found {listed}")


def _labels(
    content: Mapping[str, Any], ignore_as_background: bool, where: Path
) -> tuple[LabelMap, list[int], dict[str, Any]]:
    """Return the classes, their values, and the regions as label groups."""
    labels = content.get("labels")
    hint = ""
    if isinstance(labels, dict) and all(key.isdigit() for key in labels):
        hint = " (of version 1? nnUNetv2_convert_old_nnUNet_dataset converts it)"
    listed = {
        name: value if isinstance(value, list) else [value]
        for name, value in (labels.items() if isinstance(labels, dict) else ())
    }
    if listed.get("background") != [0] or not all(
        value and all(map(is_whole, value)) for value in listed.values()
    ):
        expected = '{"background": 0, name: value or list of values}'
        raise DataError(f"{where}: labels: expected {expected}, found {labels!r}{hint}")
    ignored: tuple[int, ...] = ()
    if IGNORE in listed:
        ignored = tuple(listed.pop(IGNORE))
        if not ignore_as_background:
            raise DataError(
                f"{where}: labels: expected every voxel annotated, found an ignore label "
                f"({list(ignored)}; --ignore_as_background takes it for background)"
            )
    names = {value[0]: name for name, value in listed.items() if len(value) == 1}
    regions = {name: value for name, value in listed.items() if len(value) > 1}
    values = sorted({v for value in listed.values() for v in value})
    named = {names.get(value, f"value_{value}"): value for value in values}
    if len(named) < len(values) or (regions and set(regions) & set(named)):
        raise DataError(f"{where}: labels: expected a name for each value, found {labels!r}")
    groups = {
        name: {
            "0": {"name": "background", "values": [v for v in values if v not in value]},
            "1": {"name": name, "values": value},
        }
        for name, value in regions.items()
    }
    label_map = LabelMap(tuple(named), tuple((value,) for value in values), ignored)
    return label_map, values, groups


def _training(root: Path, content: Mapping[str, Any], number: int, count: int) -> list[Pair]:
    """Return the training cases; every channel of every case must be there."""
    ending = _ending(content, root)
    listed = content.get("dataset")
    if isinstance(listed, dict):
        return [_listed(root, name, entry, number, count) for name, entry in listed.items()]
    faults = [
        f"{root / part}: expected a folder of nnU-Net's raw format, found none"
        for part in ("imagesTr", "labelsTr")
        if not (root / part).is_dir()
    ]
    refuse(faults, root)
    images, faults = _images(root / "imagesTr", ending)
    labels = {path.name.removesuffix(ending): path for path in _files(root / "labelsTr", ending)}
    for name in sorted(labels.keys() - images.keys()):
        faults.append(f"{labels[name]}: expected an image {name}_0000{ending}, found none")
    for name in sorted(images):
        if name not in labels:
            faults.append(f"{root / 'labelsTr' / (name + ending)}: expected a label, found none")
        lacking = sorted(set(range(count)) - images[name].keys())
        if lacking:
            found = f"none for {', '.join(map(str, lacking))}"
            faults.append(f"{root / 'imagesTr' / name}: expected {count} channels, found {found}")
    announced = content.get("numTraining")
    if announced != len(images):
        faults.append(
            f"{root / 'dataset.json'}: numTraining: expected {len(images)}, the number of cases "
            f"in imagesTr, found {announced!r}"
        )
    refuse(faults, root)
    return [
        Pair(name, "training", images[name][number], labels[name], None, read_sidecar(root, name))
        for name in sorted(images)
    ]


def _listed(root: Path, name: str, entry: Any, number: int, count: int) -> Pair:
    """Return a case of a ``dataset.json`` that names its files."""
    where = f"{root / 'dataset.json'}: dataset.{name}"
    images = entry.get("images") if isinstance(entry, dict) else None
    if not isinstance(images, list) or len(images) != count or "label" not in entry:
        expected = f'{{"images": [{count} paths], "label": path}}'
        raise DataError(f"{where}: expected {expected}, found {entry!r}")
    return Pair(name, "training", root / str(images[number]), root / str(entry["label"]))


def _ending(content: Mapping[str, Any], root: Path) -> str:
    ending = content.get("file_ending")
    if not isinstance(ending, str) or not ending.startswith("."):
        where = root / "dataset.json"
        raise DataError(f"{where}: file_ending: expected one such as .nii.gz, found {ending!r}")
    return ending


def _files(folder: Path, ending: str) -> list[Path]:
    """Return the files with this ending that are not hidden."""
    files = sorted(folder.glob(f"*{ending}")) if folder.is_dir() else []
    return [path for path in files if not path.name.startswith(".")]


def _images(folder: Path, ending: str) -> tuple[dict[str, dict[int, Path]], list[str]]:
    """Return {case: {channel: path}}, and the faults of other files."""
    images: dict[str, dict[int, Path]] = {}
    faults = []
    for path in _files(folder, ending):
        match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if match is None:
            faults.append(f"{path}: expected a name such as case_0000{ending}, found {path.name}")
        else:
            images.setdefault(match[1], {})[int(match[2])] = path
    if not images and not faults:
        others = sorted({"".join(path.suffixes) for path in folder.iterdir()})
        faults.append(f"{folder}: expected files with the ending {ending}, found {others}")
    return images, faults


def _test(root: Path, content: Mapping[str, Any], number: int) -> list[Pair]:
    """Return the test cases; their labels need not be there."""
    ending = _ending(content, root)
    folder = root / "imagesTs"
    if not _files(folder, ending):
        return []
    images, faults = _images(folder, ending)
    pairs = []
    for name in sorted(images):
        if number not in images[name]:
            faults.append(f"{folder / name}: expected channel {number}, found none")
            continue
        label = root / "labelsTs" / (name + ending)
        found = label if label.exists() else None
        pairs.append(
            Pair(name, "test", images[name][number], found, None, read_sidecar(root, name))
        )
    refuse(faults, root)
    return pairs


def _fold(root: Path, splits: str | Path | None, fold: int) -> tuple[Path, dict[str, Any] | None]:
    """Return the file with the splits and the fold that is wanted, if there is such a file."""
    path = root / "splits_final.json" if splits is None else Path(splits)
    if splits is None and not path.exists():
        return path, None
    content = read_json(path)
    if not isinstance(content, list) or not (is_whole(fold) and 0 <= fold < len(content)):
        count = len(content) if isinstance(content, list) else type(content).__name__
        raise DataError(f"{path}: expected a list with fold {fold}, found {count}")
    chosen = content[fold]
    if not isinstance(chosen, dict) or not {"train", "val"} <= chosen.keys():
        raise DataError(f'{path}: [{fold}]: expected {{"train", "val"}}, found {chosen!r}')
    for part in ("train", "val"):
        names = chosen[part]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            found = reprlib.repr(names)
            raise DataError(f"{path}: [{fold}].{part}: expected a list of cases, found {found}")
    return path, chosen


def _split(pairs: Sequence[Pair], path: Path, fold: dict[str, Any] | None) -> list[Pair]:
    """Divide the cases into training and validation; without a fold all are training cases."""
    if fold is None:
        return list(pairs)
    train, val = set(fold["train"]), set(fold["val"])
    names = {pair.name for pair in pairs}
    faults = [f"{path}: expected cases of the dataset, found {n!r}" for n in (train | val) - names]
    faults += [f"{path}: expected {n!r} in train or val, found it in both" for n in train & val]
    faults += [
        f"{path}: expected {n!r} in train or val, found no such" for n in names - train - val
    ]
    refuse(sorted(faults), path)
    parts = [("training", train), ("validation", val)]
    return [
        replace(pair, split=split)
        for split, members in parts
        for pair in pairs
        if pair.name in members
    ]
