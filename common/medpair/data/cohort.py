"""What a generator must remember of the cohort it was trained on, stored beside its weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from medpair.data.card import (
    Card,
    card_path,
    check_classes,
    check_spacing,
    part_of,
    read_plain_card,
)
from medpair.data.check_header import AFFINE_TOLERANCE, matrix
from medpair.data.dataset import Case, load_dataset
from medpair.data.files import DataError, Volume, read_grid, read_volume
from medpair.data.intensity import CT, LEAST_CT_NUMBER, robust_range, to_unit
from medpair.data.labels import LabelMap, whole_values
from medpair.data.resampling import resample
from medpair.data.spellings import channels_of, licence_of
from medpair.data.unlabelled import class_names, divided, find_thresholds, require_count

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cohort:
    """Geometry, intensity scale and classes of a cohort.

    Attributes:
        name: the dataset's name.
        labels: class names; the first is the background.
        spacing: voxel size in millimetres, RAS axes.
        sizes: sizes (W, H, D) of the training volumes, sorted, at ``spacing``.
        intensity: median over the cohort of each volume's robust range (low, high); for CT never
            below -1024, and every volume's range.
        licence: the dataset's licence; what is generated from it inherits it.
        label_group: the merge of labels that ``labels`` comes from, or None.
        channel: what the image is (``channel_names`` of the dataset).
        unlabelled: intensities in -1..1 by which background was divided; as many classes at the end
            of ``labels`` are what came of it (``medpair.data.unlabelled``).
    """

    name: str
    labels: tuple[str, ...]
    spacing: tuple[float, float, float]
    sizes: tuple[tuple[int, int, int], ...]
    intensity: tuple[float, float]
    licence: str = ""
    label_group: str | None = None
    channel: str = "image"
    unlabelled: tuple[float, ...] = ()

    @property
    def num_labels(self) -> int:
        """Number of foreground classes."""
        return len(self.labels) - 1

    @property
    def labelled(self) -> Cohort:
        """The cohort without the classes of what has no label."""
        count = len(self.labels) - len(self.unlabelled)
        return replace(self, labels=self.labels[:count], unlabelled=())

    def divide(self, image: np.ndarray, label: np.ndarray) -> np.ndarray:
        """Return class indices in which unlabelled tissue has its classes, if the cohort has any.

        Args:
            image: (W, H, D) in -1..1 of the volume's own range (of the cohort's for CT).
            label: (W, H, D) indices of the labelled classes.
        """
        return divided(image, label, self.unlabelled, len(self.labels) - len(self.unlabelled))

    def range_of(self, image: np.ndarray) -> tuple[float, float]:
        """Return the intensities of a volume that become -1 and 1: its own, for CT the cohort's."""
        return self.intensity if self.channel.upper() == CT else robust_range(image)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        content = asdict(self)
        if not self.unlabelled:  # as cards were before there were such classes
            del content["unlabelled"]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Cohort:
        """Build from what ``to_json`` gave."""
        plain = dict(content)
        for key in ("labels", "spacing", "intensity"):
            plain[key] = tuple(plain[key])
        plain["unlabelled"] = tuple(float(value) for value in plain.get("unlabelled", ()))
        plain["sizes"] = tuple(tuple(size) for size in plain["sizes"])
        return cls(**plain)


@dataclass(frozen=True)
class LabelledVolume:
    """A training pair in memory: RAS, at the cohort's spacing.

    Attributes:
        image: (W, H, D) float32, its range mapped to -1..1 and clipped: the volume's own robust
            range, or the cohort's for CT.
        label: (W, H, D) class indices.
        case: name of the case.
    """

    image: np.ndarray
    label: np.ndarray
    case: str = ""


def read_cohort(
    dataset_dir: str | Path,
    label_group: str | None = None,
    spacing: Sequence[float] | None = None,
    split: str = "training",
    intensity: Sequence[float] | None = None,
    unlabelled_classes: int = 0,
    unlabelled: Sequence[float] = (),
    divide_if_possible: bool = False,
) -> tuple[Cohort, list[LabelledVolume]]:
    """Read one split of a dataset folder: all pairs in memory, and what to remember of them.

    Args:
        dataset_dir: the dataset folder.
        label_group: name of a merge of labels, or None.
        spacing: millimetres per RAS axis; default the median of the split. Volumes whose spacing
            differs by more than 5 % are resampled (images linearly, labels by nearest neighbour).
        split: which list of ``dataset.json``.
        intensity: the cohort's range (low, high), which CT is scaled by and what is generated is
            written in; default the median of the volumes' robust ranges.
        unlabelled_classes: into how many classes, beside air, the background is divided by
            intensity (``medpair.data.unlabelled``).
        unlabelled: the intensities to divide it by, where they are known already.
        divide_if_possible: leave a background that cannot be divided, as around a brain that was
            cut out by its label map, as it is, and say so.

    Raises:
        DataError: if a file cannot be used; names the file. So it does where a class has the name
            of a class of unlabelled tissue.
        ValueError: if ``spacing`` is no voxel size, or the background cannot be divided.
    """
    require_count(unlabelled_classes)
    if spacing is not None:
        check_spacing(spacing)
    folder = load_dataset(dataset_dir)
    labels = folder.labels(label_group)
    cases = folder.split(split)
    if spacing is None:
        # from the headers alone: full resolution is then held of one case at a time
        found = [read_grid(str(case.image))[1] for case in cases if case.image is not None]
        spacing = [float(value) for value in np.median(found, axis=0)]
    grid = [float(value) for value in spacing]
    channels = channels_of(folder.content)
    channel = str(next(iter(channels.values()), "image")) if isinstance(channels, dict) else "image"
    pairs = [_resampled_pair(case, labels, grid) for case in cases]
    ranges = [robust_range(array) for array, _ in pairs]
    low, high = (float(v) for v in (np.median(ranges, axis=0) if intensity is None else intensity))
    if channel.upper() == CT:
        low = max(low, LEAST_CT_NUMBER)
        ranges = [(low, high)] * len(ranges)
    volumes = []
    for case, limits in zip(cases, ranges, strict=True):
        array, label = pairs.pop(0)  # each goes as soon as it is scaled
        volumes.append(LabelledVolume(to_unit(array, *limits), label, case.name))
    cohort = Cohort(
        name=folder.name,
        labels=labels.names,
        spacing=(grid[0], grid[1], grid[2]),
        sizes=tuple(
            sorted((v.image.shape[0], v.image.shape[1], v.image.shape[2]) for v in volumes)
        ),
        intensity=(low, high),
        licence=licence_of(folder.content),
        label_group=label_group,
        channel=channel,
    )
    if unlabelled_classes and not unlabelled:
        backgrounds = ((volume.image, volume.label) for volume in volumes)
        try:
            unlabelled = find_thresholds(backgrounds, unlabelled_classes)
        except ValueError as error:
            if not divide_if_possible:
                raise
            logger.warning("%s: not divided, goes on without these classes: %s", folder.root, error)
    return _with_unlabelled(cohort, volumes, unlabelled, folder.root)


def _with_unlabelled(
    cohort: Cohort, volumes: list[LabelledVolume], thresholds: Sequence[float], root: Path
) -> tuple[Cohort, list[LabelledVolume]]:
    """Divide the background of all volumes by thresholds, if there are any."""
    if not thresholds:
        return cohort, volumes
    names = class_names(len(thresholds))
    if taken := sorted({*names} & {*cohort.labels}):
        raise DataError(
            f"{root / 'dataset.json'}: labels: expected none of {list(names)}, which "
            f"unlabelled_classes adds, found {taken}"
        )
    labels, values = (*cohort.labels, *names), tuple(float(value) for value in thresholds)
    cohort = replace(cohort, labels=labels, unlabelled=values)
    return cohort, [replace(v, label=cohort.divide(v.image, v.label)) for v in volumes]


def _resampled_pair(
    case: Case, labels: LabelMap, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label of a case at a spacing; nothing of another spacing is kept."""
    image, label = read_pair(case, labels)
    return (
        resample(image.array, image.spacing, spacing, order=1),
        resample(label, image.spacing, spacing, order=0),
    )


def read_pair(case: Case, labels: LabelMap) -> tuple[Volume, np.ndarray]:
    """Read the image of a case, and its label map as class indices; both in RAS.

    Raises:
        DataError: if a file cannot be used, or the two do not fit; names the file.
    """
    if case.image is None or case.label is None:
        raise DataError(f"{case.image}: expected a label beside the image, found none")
    image = read_volume(case.image)
    if not np.isfinite(image.array).all():
        raise DataError(f"{case.image}: expected finite intensities, found NaN or infinity")
    if image.array.min() == image.array.max():
        logger.warning("%s: one intensity everywhere: it becomes the darkest", case.image)
    label = read_volume(case.label, None)
    require_same_grid(case.label, label, image)
    source = str(case.label)
    return image, labels.encode(whole_values(label.array, source), source)


def require_same_grid(path: Path, label: Volume, image: Volume) -> None:
    """Refuse a label map on another grid than its image's.

    Raises:
        DataError: names the label map's file, and both shapes or affines.
    """
    if label.array.shape != image.array.shape:
        raise DataError(
            f"{path}: expected the image's shape {image.array.shape}, found {label.array.shape}"
        )
    off = float(np.abs(label.affine - image.affine).max())
    if off > AFFINE_TOLERANCE * min(image.spacing):
        raise DataError(
            f"{path}: expected the image's affine {matrix(image.affine)}, found "
            f"{matrix(label.affine)}, which differs by up to {off:.4g}"
        )


def read_card(checkpoint: str | Path, untrained: Mapping[str, Any] | None = None) -> Card:
    """Read the card (``NAME.json``) that lies beside a checkpoint (``NAME.pt``).

    Args:
        checkpoint: the path of the weights; they are not looked at.
        untrained: stands for the card where there is none. For the network alone: a bundle that
            ships no weights still says, and can build, what it would train.

    Raises:
        DataError: if one of them is missing or cannot be used, or the card has no cohort.
    """
    if untrained is not None and not card_path(checkpoint).exists():
        return Card(untrained)
    card = read_plain_card(checkpoint)
    if "cohort" not in card:
        raise DataError(f"{card.path}: cohort: expected an entry of that name, found none")
    return card


def cohort_of(card: Mapping[str, Any]) -> Cohort:
    """Return the cohort that a card describes.

    Raises:
        DataError: if it has none, or not what a cohort has; names the file.
    """

    def build(**content: Any) -> Cohort:
        cohort = Cohort.from_json(content)
        check_classes(cohort.labels)
        check_spacing(cohort.spacing)
        low, high = cohort.intensity
        if not low < high:
            raise ValueError(f"intensity: expected a range, found {low} to {high}")
        if not cohort.sizes:
            raise ValueError("sizes: expected those of the training volumes, found none")
        divided = list(cohort.unlabelled)
        rising = all(low < high for low, high in zip([-2.0, *divided], divided, strict=False))
        if not rising or len(divided) >= len(cohort.labels):
            raise ValueError(
                "unlabelled: expected rising intensities, fewer than labels, found "
                f"{divided} beside {len(cohort.labels)} labels"
            )
        texts = (cohort.name, cohort.licence, cohort.channel, cohort.label_group or "")
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"name, licence, channel, label_group: expected text, found {texts}")
        return cohort

    return part_of(card, "cohort", build)
