"""Datasets for training and scoring a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, MapTransform, RandAffined, RandomizableTransform
from monai.transforms.utils import get_largest_connected_component_mask

from medpair.data.card import Card, check_classes, check_spacing, part_of, read_plain_card
from medpair.data.dataset import Case, as_folders, load_dataset
from medpair.data.files import DataError, read_grid, read_volume
from medpair.data.folders import MaxCases, draw_cases, limits
from medpair.data.intensity import robust_range
from medpair.data.labels import LabelMap, whole_values
from medpair.data.resampling import SPACING_TOLERANCE
from medpair.data.sampling import derive_seed


@dataclass(frozen=True)
class SegmentationTask:
    """What a segmenter must remember: its classes and its grid.

    Attributes:
        labels: class names, background first.
        spacing: millimetres per RAS axis.
        longest: largest training volume per axis, in voxels at ``spacing``.
    """

    labels: tuple[str, ...]
    spacing: tuple[float, float, float]
    longest: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        """Classes with the background."""
        return len(self.labels)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def load_items(
    dataset_dir: str | Path | Sequence[str | Path],
    split: str = "training",
    label_group: str | None = None,
    required: bool = True,
    max_cases: MaxCases = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the cases of one or several folders as dictionaries of paths.

    Besides ``image``, ``label`` and ``roi`` each has ``truth`` (the label's path), ``case`` and
    ``dataset_dir``. ``case`` is the case's name, after ``2_`` in the second folder, ``3_`` in the
    third, ...: all generated folders have a ``pair_000000``. A folder without cases in ``split`` is
    an error if ``required``, else it is left out.

    Args:
        dataset_dir: a folder, or several.
        split: which of their lists.
        label_group: merge of labels.
        required: see above.
        max_cases: use so many cases of each folder, or of the first, the second, ... where it is
            a list; None for all. For one ``seed`` fewer cases are always some of the more.
        seed: of that draw; which cases a folder gives does not depend on the other folders.

    Raises:
        DataError: if a folder or split cannot be read, has fewer cases than asked for, the folders'
            classes differ, or an earlier folder has a case ``2_NAME`` of its own.
    """
    items: list[dict[str, Any]] = []
    names: tuple[str, ...] | None = None
    folders = as_folders(dataset_dir)
    most = limits(max_cases, len(folders))
    for number, (root, limit) in enumerate(zip(folders, most, strict=True), start=1):
        folder = load_dataset(root)
        labels = folder.labels(label_group)
        if names is not None and labels.names[1:] != names[1:]:
            raise DataError(
                f"{root / 'dataset.json'}: labels: expected the classes of the first folder "
                f"{list(names[1:])}, found {list(labels.names[1:])}"
            )
        names = labels.names
        cases = folder.split(split) if required else folder.cases.get(split, ())
        where = f"{root / 'dataset.json'}: {split}"
        own = [_item(case, root, number) for case in draw_cases(cases, limit, seed, where)]
        twice = sorted({item["case"] for item in own} & {item["case"] for item in items})
        if twice:
            raise DataError(f"{where}: expected names that no earlier folder has, found {twice[0]}")
        items += own
    return items


def _item(case: Case, root: Path, number: int) -> dict[str, Any]:
    """Return a case of the folder with this number (from 1) as ``load_items`` does."""
    # files are named after it, so no colon
    name = case.name if number == 1 else f"{number}_{case.name}"
    item = case.item() | {"case": name, "dataset_dir": str(root)}
    # MONAI's evaluator keeps "label" for a loaded tensor and drops a path of that name
    return item | ({"truth": item["label"]} if "label" in item else {})


def read_task(
    dataset_dir: str | Path | Sequence[str | Path],
    label_group: str | None = None,
    spacing: Sequence[float] | None = None,
    max_cases: MaxCases = None,
    seed: int = 0,
) -> SegmentationTask:
    """Read classes, median spacing and largest size from the headers of the training volumes.

    ``max_cases`` and ``seed``: as in ``load_items``; headers of other cases are not looked at.
    """
    if spacing is not None:
        check_spacing(spacing)
    items = load_items(dataset_dir, "training", label_group, max_cases=max_cases, seed=seed)
    names = load_dataset(as_folders(dataset_dir)[0]).labels(label_group).names
    spacings, extents = [], []
    for item in items:
        size, spacing_of_image = read_grid(item["image"])
        spacings.append(spacing_of_image)
        extents.append(spacing_of_image * size)
    grid = np.median(spacings, axis=0) if spacing is None else np.asarray(spacing, dtype=float)
    longest = np.ceil(np.max(extents, axis=0) / grid - SPACING_TOLERANCE).astype(int)
    return SegmentationTask(
        names,
        (float(grid[0]), float(grid[1]), float(grid[2])),
        (int(longest[0]), int(longest[1]), int(longest[2])),
    )


def training_patch(longest: Sequence[int], multiple: int, largest: Sequence[int]) -> list[int]:
    """Return the patch to train on: the whole volume where it fits into ``largest``."""
    return [
        min(-(-int(n) // multiple) * multiple, -(-int(limit) // multiple) * multiple)
        for n, limit in zip(longest, largest, strict=True)
    ]


class EncodeLabeld(MapTransform):
    """Replace stored label values by class indices (dataset contract, label groups).

    Args:
        keys: entries that hold labels, (1, W, H, D).
        label_group: merge of labels, or None.
    """

    def __init__(self, keys: Sequence[str] = ("label",), label_group: str | None = None) -> None:
        super().__init__(keys)
        self.label_group = label_group
        self._maps: dict[str, LabelMap] = {}

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Encode; raises DataError naming the file and the values that are not in the set."""
        result = dict(data)
        root = data["dataset_dir"]
        if root not in self._maps:
            self._maps[root] = load_dataset(root).labels(self.label_group)
        for key in self.key_iterator(result):
            value = result[key]
            source = value.meta.get("filename_or_obj", key) if hasattr(value, "meta") else key
            stored = whole_values(np.asarray(value), str(source))
            encoded = self._maps[root].encode(stored, str(source))
            tensor = torch.from_numpy(encoded.astype(np.int64))
            meta = getattr(value, "meta", None)
            result[key] = tensor if meta is None else MetaTensor(tensor, meta=meta)
            if meta is not None and isinstance(data.get("image"), MetaTensor):
                # the same but for rounding, which must not turn the two differently
                result[key].affine = data["image"].affine
        return result


class RobustScaled(MapTransform):
    """Map each volume's robust range to -1..1 and clip, as the generators see their volumes.

    Args:
        keys: entries that hold images, (1, W, H, D).
    """

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Scale; raises DataError for a volume with NaN or infinity, naming the file."""
        result = dict(data)
        for key in self.key_iterator(result):
            value = result[key]
            array = np.asarray(value)
            if not np.isfinite(array).all():
                source = value.meta.get("filename_or_obj", key) if hasattr(value, "meta") else key
                raise DataError(f"{source}: expected finite intensities, found NaN or infinity")
            low, high = robust_range(array)
            result[key] = ((value - low) * (2.0 / (high - low)) - 1.0).clamp(-1.0, 1.0)
        return result


class KeepPiecesd(MapTransform):
    """Keep the largest connected pieces of a label map's foreground; the others become background.

    A segmenter takes a patch for the whole: tissue that it never saw unlabelled, far from where
    anything is labelled, may look like the labelled kind. All classes count together, so that
    ventricles within a brain stay what they are.

    MONAI's ``KeepLargestConnectedComponentd`` does this by comparing every voxel with every class:
    a table of voxels times classes, 1.6 GiB for 104 classes and 256 x 256 x 256.

    Args:
        keys: entries that hold class indices, (1, W, H, D).
        pieces: how many; 0 keeps all. Voxels that touch by a face, an edge or a corner are of one
            piece.

    Raises:
        ValueError: if ``pieces`` is no whole number of at least 0.
    """

    def __init__(self, keys: Any, pieces: int = 0) -> None:
        if isinstance(pieces, bool) or not isinstance(pieces, int) or pieces < 0:
            raise ValueError(
                f"keep_pieces: expected a whole number, 0 (all) or more, found {pieces!r}"
            )
        super().__init__(keys)
        self.pieces = pieces

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the data with the small pieces taken out."""
        result = dict(data)
        if self.pieces:
            for key in self.key_iterator(result):
                label = result[key]
                kept = get_largest_connected_component_mask(
                    label[0] > 0, num_components=self.pieces
                )
                result[key] = label * kept  # a MetaTensor stays one: Invertd reads its history
        return result


class SeededCacheDataset(CacheDataset):
    """A cached dataset whose random transforms are a function of (seed, epoch, index).

    Indexed by the ``(epoch, index)`` pairs of ``EpochSampler``, an item is the same in whatever
    worker and after whatever interruption it is made.
    """

    def __init__(
        self, data: Sequence[Any], transform: Compose, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(data, transform, copy_cache=True, progress=False, **kwargs)
        self.seed = seed

    def __getitem__(self, key: Any) -> Any:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        self.transform.set_random_state(seed=derive_seed(self.seed, epoch, index) % 2**32)
        return super().__getitem__(index)


def read_truth(item: dict[str, Any], label_group: str | None) -> tuple[Any, Any, LabelMap]:
    """Return the label (class indices) and the roi (or None) of a case, RAS, and its classes."""
    labels = load_dataset(item["dataset_dir"]).labels(label_group)
    stored = read_volume(item["truth"], None)
    encoded = labels.encode(whole_values(stored.array, item["truth"]), item["truth"])
    roi = read_volume(item["roi"]).array > 0.5 if item.get("roi") else None
    return (encoded, stored.spacing), roi, labels


def has_split(dataset_dir: str | Path | Sequence[str | Path], split: str) -> bool:
    """Tell whether any of the folders has cases in ``split``."""
    return any(load_dataset(root).cases.get(split) for root in as_folders(dataset_dir))


class RandFlipAxesd(RandomizableTransform, MapTransform):
    """Flip each of ``axes`` with probability one half, independently.

    Args:
        keys: entries (C, W, H, D).
        axes: spatial axes, 0 is left-right in RAS. Empty: no flips.
    """

    def __init__(self, keys: Sequence[str], axes: Sequence[int] = (0,)) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, 1.0)
        self.axes = tuple(axes)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Flip all keys alike."""
        chosen = [axis + 1 for axis in self.axes if self.R.rand() < 0.5]
        return data | ({key: data[key].flip(chosen) for key in self.keys} if chosen else {})


class RandRotateSheard(RandAffined):
    """Rotate and shear image and label at random about all axes (degrees).

    Args:
        keys: image first (bilinear), label second (nearest).
        rotation_degrees: largest angle.
        shear_degrees: largest shear angle.
        prob: of doing anything.
    """

    def __init__(
        self,
        keys: Sequence[str],
        rotation_degrees: float = 30.0,
        shear_degrees: float = 20.0,
        prob: float = 0.5,
    ) -> None:
        super().__init__(
            keys,
            prob=prob,
            rotate_range=[float(np.deg2rad(rotation_degrees))] * 3,
            shear_range=[float(np.tan(np.deg2rad(shear_degrees)))] * 6,
            mode=["bilinear", "nearest"],
            padding_mode=["border", "zeros"],
        )


def read_segmenter_card(checkpoint: str | Path) -> Card:
    """Read the card (``NAME.json``) that lies beside a segmenter's weights (``NAME.pt``).

    Raises:
        DataError: if it is missing or is not a segmenter's.
    """
    card = read_plain_card(checkpoint)
    if not {"task", "segmenter"} <= card.keys():
        raise DataError(
            f"{card.path}: expected the card of a segmenter (task, segmenter), found none"
        )

    def check(labels: Any, spacing: Any, **_: Any) -> int:
        check_classes(labels)
        check_spacing(spacing)
        return len(labels)

    classes = part_of(card, "task", check)
    network = card["segmenter"]
    if not isinstance(network, dict) or network.get("num_classes") != classes:
        raise DataError(
            f"{card.path}: segmenter: expected a network of {classes} classes, as task has"
        )
    return card
