"""The data contract: a folder with a ``dataset.json``, read and written.

``dataset.json`` has ``name``, ``channel_names``, ``labels`` {name: value}, ``file_ending`` and the
lists ``training`` / ``validation`` / ``test`` of ``{"image", "label"[, "roi"]}`` with paths
relative to the folder. It is a Decathlon datalist, and what the writer leaves is a valid nnU-Net
raw dataset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medpair.data.faults import one_line
from medpair.data.files import DataError, read_json, write_json
from medpair.data.labels import LabelMap
from medpair.data.nifti_stream import VOLUME_ENDINGS

SPLITS = ("training", "validation", "test")


@dataclass(frozen=True)
class Case:
    """One labelled volume: absolute paths; ``roi`` is a mask that evaluation may restrict to.

    ``image`` is None only in a folder of label maps (see ``load_dataset``).
    """

    name: str
    image: Path | None
    label: Path | None
    roi: Path | None = None

    def item(self) -> dict[str, str]:
        """Return the paths as the dictionary that MONAI's transforms read."""
        paths = {"image": self.image, "label": self.label, "roi": self.roi}
        return {key: str(path) for key, path in paths.items() if path is not None}


@dataclass(frozen=True)
class DatasetFolder:
    """A dataset folder that has been read (its ``dataset.json``, not its volumes)."""

    root: Path
    content: dict[str, Any]
    cases: dict[str, tuple[Case, ...]]

    @property
    def name(self) -> str:
        """The dataset's name."""
        return str(self.content.get("name", self.root.name))

    def labels(self, group: str | None = None) -> LabelMap:
        """Return the classes, merged by ``label_groups[group]`` when a group is named.

        A generated folder says in ``label_group`` which merge it was made with; naming that one
        again changes nothing, so that real and generated folders go into one command.
        """
        if group is not None and self.content.get("label_group") == group:
            group = None
        try:
            return LabelMap.from_dataset_json(self.content, group)
        except DataError as error:
            raise DataError(f"{self.root / 'dataset.json'}: {error}") from None

    def split(self, name: str) -> tuple[Case, ...]:
        """Return the cases of one split.

        Raises:
            DataError: if the split is unknown or has no case.
        """
        if name not in SPLITS:
            raise DataError(f"split: expected one of {list(SPLITS)}, found {name!r}")
        if not self.cases.get(name):
            raise DataError(f"{self.root / 'dataset.json'}: {name}: expected cases, found none")
        return self.cases[name]


def load_dataset(folder: str | Path, images: bool = True) -> DatasetFolder:
    """Read the ``dataset.json`` of a folder.

    Args:
        folder: the dataset folder.
        images: entries must name an image; False accepts label maps alone, which a folder
            announces by ``"channel_names": {}``.

    Raises:
        DataError: if it is missing, is not JSON, or an entry is not ``{"image", "label"}``.
    """
    root = Path(folder)
    path = root / "dataset.json"
    if not root.is_dir():
        raise DataError(f"{root}: expected a dataset folder, found no folder there")
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected an object, found {type(content).__name__}")
    cases: dict[str, tuple[Case, ...]] = {}
    for split in SPLITS:
        entries = content.get(split, [])
        if not isinstance(entries, list):
            raise DataError(f"{path}: {split}: expected a list, found {type(entries).__name__}")
        cases[split] = tuple(
            _case(root, entry, f"{path}: {split}[{index}]", images)
            for index, entry in enumerate(entries)
        )
    return DatasetFolder(root, content, cases)


def _case(root: Path, entry: Any, where: str, images: bool) -> Case:
    """Turn an entry of a split into absolute paths."""
    # Decathlon's test lists hold bare image paths
    entry = {"image": entry} if isinstance(entry, str) else entry
    needed = (
        "image"
        if images or not isinstance(entry, dict) or entry.get("image") is not None
        else "label"
    )
    if not isinstance(entry, dict) or not isinstance(entry.get(needed), str):
        raise DataError(f'{where}: expected {{"image": path, "label": path}}, found {entry!r}')
    paths: dict[str, Path | None] = {}
    for key in ("image", "label", "roi"):
        value = entry.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {key}: expected a path, found {value!r}")
        outside = None if value is None else leaves(root, value)
        if outside is not None:
            expected = "a path inside the dataset folder"
            raise DataError(one_line(f"{where}: {key}: expected {expected}, found {outside}"))
        paths[key] = None if value is None else root / value
    named = paths[needed]
    assert named is not None
    return Case(case_name(named), paths["image"], paths["label"], paths["roi"])


def leaves(root: Path, value: str) -> str | None:
    """Return how a path of a ``dataset.json`` leaves the folder, or None if it does not.

    A folder may come from anywhere: what lies beside it is nobody's business.
    """
    try:
        base = root.resolve()
        target = (base / value).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # zero bytes, loops of links, ...
        return f"{value!r} ({error})"
    if Path(value).is_absolute():
        return f"the absolute path {value!r}"
    if ".." in Path(os.path.normpath(value)).parts:
        return f"{value!r}, which leaves it"
    return None if target.is_relative_to(base) else f"{value!r}, a link to {target}"


def case_name(image: Path) -> str:
    """Return the case's name: the image's (or label's), without ending and nnU-Net's ``_0000``."""
    name = image.name
    for ending in VOLUME_ENDINGS:
        name = name.removesuffix(ending)
    return name.removesuffix("_0000")


def as_folders(dataset_dir: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return ``dataset_dir`` as a list of folders: it may be one folder, or several."""
    if isinstance(dataset_dir, (str, Path)):
        text = str(dataset_dir)
        if text.startswith("[") and text.endswith("]"):
            return [Path(entry) for entry in _parse_list(text)]
        return [Path(text)]
    return [Path(entry) for entry in dataset_dir]


def _parse_list(text: str) -> list[str]:
    """Parse a list of paths as a command line passes it: quoted once or twice."""
    for candidate in (text, text.replace("'", '"')):
        try:
            paths = json.loads(candidate)
        except json.JSONDecodeError:
            continue
        if all(isinstance(path, str) for path in paths):
            return paths
    raise DataError(f'dataset_dir: expected a folder or ["folder", ...], found {text}')


def entry(name: str, split: str = "training", roi: bool = False) -> dict[str, str]:
    """Return the relative paths of a case as the writer lays it out (nnU-Net's raw format)."""
    suffix = {"training": "Tr", "validation": "Vl", "test": "Ts"}[split]
    paths = {
        "image": f"images{suffix}/{name}_0000.nii.gz",
        "label": f"labels{suffix}/{name}.nii.gz",
    }
    return paths | ({"roi": f"rois{suffix}/{name}.nii.gz"} if roi else {})


def write_dataset_json(
    folder: str | Path,
    name: str,
    labels: Mapping[str, int],
    splits: Mapping[str, Iterable[Mapping[str, str]]],
    channel_names: Mapping[str, str] | None = None,
    label_group: str | None = None,
    **more: Any,
) -> Path:
    """Write the ``dataset.json`` of a folder whose volumes are already there.

    Args:
        folder: the dataset folder.
        name: the dataset's name.
        labels: {name: value} with 0 for the background.
        splits: the entries of each split, paths relative to the folder.
        channel_names: default ``{"0": "image"}``; empty for a folder of label maps alone.
        label_group: the merge that the labels already went through, or None.
        more: further entries, kept as they are (``description``, ``licence``, ...).
    """
    lists = {split: [dict(case) for case in splits.get(split, [])] for split in SPLITS}
    content = {
        "name": name,
        "channel_names": {"0": "image"} if channel_names is None else dict(channel_names),
        "labels": dict(labels),
        "numTraining": len(lists["training"]),
        "file_ending": ".nii.gz",
        **({} if label_group is None else {"label_group": label_group}),
        **more,
        **lists,
    }
    path = Path(folder) / "dataset.json"
    write_json(path, content)
    return path
