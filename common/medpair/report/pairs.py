"""Cohorts as the report sees them: one split of a dataset folder, read a pair at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from medpair.data.cohort import require_same_grid
from medpair.data.dataset import Case, DatasetFolder, load_dataset
from medpair.data.files import DataError, read_volume
from medpair.data.intensity import robust_range, to_unit
from medpair.data.labels import LabelMap, whole_values
from medpair.data.resampling import resample, same_spacing
from medpair.data.sampling import numpy_generator
from medpair.data.unlabelled import MOST, class_names


@dataclass(frozen=True)
class Pair:
    """One labelled volume in RAS.

    Attributes:
        name: the case's name.
        image: (W, H, D) float32, as stored.
        label: (W, H, D) class indices.
        spacing: millimetres per axis.
    """

    name: str
    image: np.ndarray
    label: np.ndarray
    spacing: tuple[float, float, float]

    def unit(self) -> np.ndarray:
        """Return the image with its robust range mapped to -1..1 and clipped."""
        return to_unit(self.image, *robust_range(self.image))


@dataclass(frozen=True)
class PairFolder:
    """The pairs of one split of a dataset folder; nothing is held in memory.

    Attributes:
        folder: the dataset folder.
        split: which of its lists.
        classes: the labels, merged by ``label_group``.
        cases: those that are used.
        total: how many the split has.
        spacing: pairs are brought to these millimetres per axis; None: as stored.
    """

    folder: DatasetFolder
    split: str
    classes: LabelMap
    cases: tuple[Case, ...]
    total: int
    spacing: tuple[float, float, float] | None = field(default=None)

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Pair:
        """Read a pair.

        Raises:
            DataError: if a file cannot be used; names the file.
        """
        case = self.cases[index]
        assert case.image is not None
        assert case.label is not None
        image, label = read_volume(case.image), read_volume(case.label, None)
        require_same_grid(case.label, label, image)
        if not np.isfinite(image.array).all():
            raise DataError(f"{case.image}: expected finite intensities, found NaN or infinity")
        source = str(case.label)
        encoded = self.classes.encode(whole_values(label.array, source), source)
        grid = self.spacing or image.spacing
        if same_spacing(image.spacing, grid):
            grid = image.spacing  # the array stays as it is, and so must its voxels' size
        return Pair(
            case.name,
            resample(image.array, image.spacing, grid, order=1),
            resample(encoded, image.spacing, grid, order=0),
            grid,
        )

    def state(self) -> list[Any]:
        """Return names, sizes and times of all files: equal as long as nothing was changed.

        Raises:
            DataError: if a file is missing; names it.
        """
        paths = [path for case in self.cases for path in (case.image, case.label)]
        stats = []
        for path in (path for path in paths if path is not None):
            if not path.exists():
                raise DataError(f"{path}: expected a NIfTI volume, found nothing there")
            stats.append((str(path), path.stat().st_size, path.stat().st_mtime_ns))
        classes = [list(self.names), self.classes.values]
        return [str(self.folder.root), self.split, classes, self.spacing, stats]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the foreground classes."""
        return tuple(self.classes.names[1:])

    @property
    def num_labels(self) -> int:
        """Number of foreground classes."""
        return len(self.names)


def open_pairs(
    root: str | Path,
    split: str = "training",
    label_group: str | None = None,
    limit: int | None = None,
    seed: int = 0,
    spacing: tuple[float, float, float] | None = None,
) -> PairFolder:
    """Open the labelled pairs of one split.

    Classes of what has no label, which the stages hand on to each other, are background here: a
    report compares labels, and its pictures show nothing that is far from any (no face).

    Args:
        root: the dataset folder.
        split: training, validation or test.
        label_group: merge of its labels.
        limit: use so many, drawn by ``seed``, in the split's order; None for all.
        seed: of that draw.
        spacing: grid to bring the pairs to; None: as stored.

    Raises:
        DataError: if the folder or its split cannot be used, or a case has no label.
    """
    folder = load_dataset(root)
    cases = folder.split(split)
    for case in cases:
        if case.label is None:
            raise DataError(
                f"{folder.root / 'dataset.json'}: {split}: expected a label for {case.name}, "
                "found none"
            )
    picked = _drawn(cases, limit, seed)
    classes = folder.labels(label_group).without(class_names(MOST))
    return PairFolder(folder, split, classes, picked, len(cases), spacing)


def few(pairs: PairFolder, count: int, seed: int = 0) -> PairFolder:
    """Return a cohort of at most ``count`` of the pairs, drawn by ``seed``, in their order."""
    return replace(pairs, cases=_drawn(pairs.cases, count, seed))


def _drawn(cases: tuple[Case, ...], count: int | None, seed: int) -> tuple[Case, ...]:
    if count is None or count >= len(cases):
        return cases
    chosen = numpy_generator(seed).permutation(len(cases))[:count]
    return tuple(cases[index] for index in sorted(chosen))
