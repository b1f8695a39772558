"""From one stage's dataset folder to the next: label maps and images as networks take them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medpair.data.cohort import cohort_of, require_same_grid
from medpair.data.dataset import Case, load_dataset
from medpair.data.files import (
    DataError,
    Volume,
    read_grid,
    read_volume,
)
from medpair.data.intensity import to_unit
from medpair.data.labels import LabelMap, short_list, whole_values
from medpair.data.patches import PAD_IMAGE, PAD_LABEL
from medpair.data.resampling import SPACING_TOLERANCE
from medpair.data.slices import frame_box, framed, next_frame

logger = logging.getLogger(__name__)


class CaseVolumes(Dataset[dict[str, Any]]):
    """The cases of a split, in frames that a generator can take.

    An item has ``image`` (1, W, H, D): the image in -1..1 on the training cohort's scale, or, in a
    dataset without ``images``, the label map; ``label`` (1, W, H, D) class indices of the training
    cohort; ``inside`` (1, W, H, D), 0 where the volume is padded; and ``index``.

    Args:
        dataset_dir: the folder; label maps alone will do where no image is needed.
        card: what lies beside the weights: the cohort.
        frame: (W, H, D) of training; larger volumes get a larger frame.
        multiple: what frames must be multiples of.
        split: which list of ``dataset.json``.
        label_group: merge of labels.
        images: whether images are read.
        divide: whether real images say where unlabelled tissue is, for a network that knows such
            classes; False where it is to be generated.

    Raises:
        DataError: if a file cannot be used.
    """

    def __init__(
        self,
        dataset_dir: str | Path,
        card: dict[str, Any],
        frame: Sequence[int],
        multiple: int,
        split: str = "training",
        label_group: str | None = None,
        images: bool = False,
        divide: bool = True,
    ) -> None:
        folder = load_dataset(dataset_dir, images=images)
        self.cohort = cohort_of(card)
        self.labels = folder.labels(label_group)
        self.cases = folder.split(split)
        self.root = folder.root
        self.images = images
        unlabelled = [case for case in self.cases if case.label is None]
        if unlabelled:
            raise DataError(f"{unlabelled[0].image}: expected a label map, found none listed")
        self.label_group = label_group
        hidden = self.cohort.labels[self.cohort.labelled.num_labels + 1 :]
        self.undivided = divide and bool(hidden) and not {*hidden} <= {*self.labels.names}
        if self.undivided and any(case.image is None for case in self.cases):
            logger.warning(
                "%s: no images, and labels without %s: what has no label is drawn without shape",
                folder.root,
                " and ".join(hidden),
            )
        self.frames = [self._frame(label_of(case), frame, multiple) for case in self.cases]

    def __len__(self) -> int:
        return len(self.cases)

    def __getitem__(self, index: int) -> dict[str, Any]:
        case, frame = self.cases[index], self.frames[index]
        label, _, image = self.read(case, self.images)
        framed_label = torch.from_numpy(framed(label, frame, PAD_LABEL))[None]
        inside = torch.from_numpy(frame_box(label.shape, frame))[None]
        item = {"image": framed_label, "label": framed_label, "inside": inside, "index": index}
        if self.images:
            assert image is not None
            unit = to_unit(image, *self.cohort.intensity)
            item["image"] = torch.from_numpy(framed(unit, frame, PAD_IMAGE))[None]
        return item

    def _read_image(self, case: Case, grid: Volume) -> np.ndarray:
        """Return the image of a case, which is on the grid of its label map."""
        assert case.image is not None
        volume = read_volume(case.image)
        require_same_grid(label_of(case), grid, volume)
        if not np.isfinite(volume.array).all():
            raise DataError(f"{case.image}: expected finite intensities, found NaN or infinity")
        return volume.array

    def divides(self, case: Case) -> bool:
        """Return whether the case's image has to say where unlabelled tissue is."""
        return self.undivided and case.image is not None

    def read(self, case: Case, with_image: bool) -> tuple[np.ndarray, Volume, np.ndarray | None]:
        """Return a case's class indices, its label map's volume, and its image if that was read.

        A generated label map has the classes of unlabelled tissue, if the network knows them; for a
        real one they are found in its image. Without an image it stays as it is: networks are
        trained to do without them, too.
        """
        label, grid = self._read_label(case)
        divides = self.divides(case)
        image = self._read_image(case, grid) if with_image or divides else None
        if image is not None and divides:
            label = self.cohort.divide(to_unit(image, *self.cohort.range_of(image)), label)
        return label, grid, image

    def _frame(self, path: Path, frame: Sequence[int], multiple: int) -> tuple[int, int, int]:
        """Return the frame of a label map; refuse one on another scale than the training's."""
        size, spacing = read_grid(path)
        if not np.allclose(spacing, self.cohort.spacing, rtol=SPACING_TOLERANCE):
            raise DataError(
                f"{path}: expected the spacing that the network was trained at, "
                f"{tuple(round(n, 3) for n in self.cohort.spacing)} mm, found "
                f"{tuple(round(float(n), 3) for n in spacing)} (resample the label map first)"
            )
        return next_frame(size, frame, multiple)

    def _read_label(self, case: Case) -> tuple[np.ndarray, Volume]:
        """Return a label map as class indices of the training cohort, and its volume."""
        path = label_of(case)
        volume = read_volume(path, None)
        classes = self.labels.encode(whole_values(volume.array, str(path)), str(path))
        return as_trained(classes, self.labels, self.cohort.labels, path), volume


def label_of(case: Case) -> Path:
    """Return the path of a case's label map, which has been checked to be there."""
    assert case.label is not None
    return case.label


def as_trained(
    classes: np.ndarray, labels: LabelMap, trained: Sequence[str], path: Path
) -> np.ndarray:
    """Translate class indices by name into those that a network was trained with.

    Raises:
        DataError: if a class occurs that training never saw; names it and its value.
    """
    table = np.zeros(len(labels.names), np.uint8 if len(trained) <= 256 else np.uint16)
    unknown = []
    for index, name in enumerate(labels.names):
        if index == 0 or name in trained:
            table[index] = trained.index(name) if index else 0
        elif (classes == index).any():
            unknown.append(f"{name!r} (value {short_list(labels.values[index])})")
    if unknown:
        raise DataError(
            f"{path}: expected labels that the network was trained on, {list(trained)}, "
            f"found {', '.join(unknown)}"
        )
    return table[classes]
