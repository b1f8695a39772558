"""From one stage's dataset folder to the next: reading label maps (and images), writing pairs.

Case i of the input folder becomes case i of the output folder, under its own name and on its own
grid. The label map is kept; what is new is the image.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from medpair.data.cohort import (
    CT,
    SPACING_TOLERANCE,
    cohort_of,
    from_unit,
    require_same_grid,
    to_unit,
)
from medpair.data.dataset import Case, load_dataset
from medpair.data.files import (
    DataError,
    Volume,
    file_sha256,
    read_grid,
    read_json,
    read_volume,
    write_volume,
)
from medpair.data.full_range import full_range
from medpair.data.labels import LabelMap, short_list, whole_values
from medpair.data.patches import PAD_IMAGE, PAD_LABEL
from medpair.data.slices import frame_box, framed, next_frame, unframed
from medpair.data.unlabelled import joined
from medpair.inferers.background import ONE_WRITER, Background
from medpair.inferers.folder import SyntheticFolder, stored, wanted_range

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
        self.undivided = bool(hidden) and not {*hidden} <= {*self.labels.names}
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
        label, grid = self.read_label(case)
        label = self.divided(case, label, grid)
        framed_label = torch.from_numpy(framed(label, frame, PAD_LABEL))[None]
        inside = torch.from_numpy(frame_box(label.shape, frame))[None]
        item = {"image": framed_label, "label": framed_label, "inside": inside, "index": index}
        if self.images:
            unit = to_unit(self._read_image(case, grid), *self.cohort.intensity)
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

    def divided(self, case: Case, label: np.ndarray, grid: Volume) -> np.ndarray:
        """Return class indices with those of unlabelled tissue, for a network that knows them.

        A generated label map has them; for a real one they are found in its image. Without an image
        it stays as it is: networks are trained to do without them, too.
        """
        if not self.divides(case):
            return label
        image = self._read_image(case, grid)
        return self.cohort.divide(to_unit(image, *self.cohort.range_of(image)), label)

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

    def read_label(self, case: Case) -> tuple[np.ndarray, Volume]:
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


class FrameBatches(Sampler[list[int]]):
    """Batches of cases that share a frame; a case has the same batch mates in every run.

    Args:
        dataset: the cases.
        writer: knows which are missing.
        batch_size: most cases in a batch.
        rank: number of this process, which takes every ``world_size``-th batch, missing or not.
        world_size: processes that share the batches.
    """

    def __init__(
        self,
        dataset: CaseVolumes,
        writer: CaseWriter,
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, found {batch_size}")
        groups: dict[tuple[int, int, int], list[int]] = {}
        for index, frame in enumerate(dataset.frames):
            groups.setdefault(frame, []).append(index)
        batches = [
            group[first : first + batch_size]
            for group in groups.values()
            for first in range(0, len(group), batch_size)
        ]
        self.batches = batches[rank::world_size]
        self.writer = writer

    def _open(self) -> list[list[int]]:
        missing = set(self.writer.missing())
        return [batch for batch in self.batches if missing & set(batch)]

    def __len__(self) -> int:
        return len(self._open())

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._open())


class Method(Protocol):
    """An inferer that can say what decides its results."""

    def origin(self) -> dict[str, Any]:
        """Return the options that decide what a sample is."""
        ...


class CaseWriter:
    """Write generated images beside their label maps, as a dataset folder of pairs.

    The first is written at once, the others while the next are made.

    Args:
        output_dir: the folder.
        cases: the input.
        card: what lies beside the weights.
        weights: path of the checkpoint; its SHA-256 goes into the sidecars.
        inferer: says how the images are made.
        generator: name of what makes them, for the sidecars.
        num_samples: how many cases; None: all.
        start_index: the first.
        split: list of ``dataset.json`` that the pairs go into.
        fill_range: stretch the ends of each image to the range that every training volume fills
            (``full_range``); CT numbers stay as they are.
        keep_unlabelled: whether label maps keep the classes of unlabelled tissue, which the next
            stage needs; of a network that knows none it says nothing.

    Raises:
        DataError: if the folder holds pairs made otherwise, or from other label maps.
    """

    def __init__(
        self,
        output_dir: str | Path,
        cases: CaseVolumes,
        card: dict[str, Any],
        weights: str | Path,
        inferer: Method,
        generator: str,
        num_samples: int | None = None,
        start_index: int = 0,
        split: str = "training",
        fill_range: bool = False,
        keep_unlabelled: bool = False,
    ) -> None:
        for name, value in (("fill_range", fill_range), ("keep_unlabelled", keep_unlabelled)):
            if not isinstance(value, bool):  # the text "false" would count as true
                raise ValueError(f"{name}: expected True or False, found {value!r}")
        self.cases = cases
        self.cohort = cohort_of(card)
        self.fill_range = fill_range and self.cohort.channel.upper() != CT
        if start_index >= len(cases) > 0:
            raise DataError(
                f"start_index: expected less than {len(cases)}, the cases of {cases.root}, found "
                f"{start_index}"
            )
        count = max(1, len(cases) - start_index) if num_samples is None else num_samples
        # the slice ends with the input
        self.wanted = range(len(cases))[wanted_range(start_index, count)[0] : start_index + count]
        origin = {
            "generator": generator,
            "weights": Path(weights).name,
            "weights_sha256": file_sha256(weights),
            "label_group_of_input": cases.label_group,
            **({"fill_range": True} if self.fill_range else {}),
            **({"keep_unlabelled": keep_unlabelled} if self.cohort.unlabelled else {}),
            **inferer.origin(),
        }
        self.background = Background(ONE_WRITER)
        names = [case.name for case in cases.cases]
        if Path(output_dir).resolve() == cases.root.resolve():
            raise DataError(f"{output_dir}: expected another folder than the input's, found it")
        self.written = self.cohort if keep_unlabelled else self.cohort.labelled
        self.folder = SyntheticFolder(output_dir, self.written, origin, split, names=names)

    def missing(self) -> list[int]:
        """Return the wanted indices that are not there yet; refuse those made of other input."""
        missing = []
        for index in self.wanted:
            if not self.folder.has(index):
                missing.append(index)
                continue
            path = self.folder.sidecar(index)
            there = read_json(path)
            if there.get("input_sha256") != self._input_hashes(index):
                files = " and ".join(str(file) for file in self._inputs(index).values())
                raise DataError(
                    f"{path}: expected a pair made of {files} as it is now, found one made of "
                    "another file (choose another output_dir)"
                )
            if there.get("index") != index:  # cases came before it: it would be drawn otherwise
                missing.append(index)
        return missing

    def _there(self, index: int) -> bool:
        """Return whether the pair is there, drawn as the case of this number."""
        there = self.folder.has(index)
        return there and read_json(self.folder.sidecar(index)).get("index") == index

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Write the pair of ``data``: ``pred`` (1, W, H, D) in -1..1, and its ``index``."""
        index = int(data["index"])
        if index in self.wanted and not self._there(index):
            frame = torch.as_tensor(data["pred"])[0].float().cpu().numpy()
            if self.folder.begun:
                self.background(self._write, index, frame)
            else:
                with self.folder.writing():
                    self._write(index, frame)
        return data

    def complete(self) -> Path:
        """Write ``dataset.json`` over all pairs in the folder, when all are written."""
        self.background.finish()
        return self.folder.complete()

    def _write(self, index: int, frame: np.ndarray) -> None:
        case = self.cases.cases[index]
        label, volume = self.cases.read_label(case)
        label = self.cases.divided(case, label, volume)
        low, high = self.cohort.intensity
        unit = unframed(frame, label.shape).astype(np.float64)
        if self.fill_range:
            # fat and vessels, which fill the range, are among what has no label
            unit = full_range(unit, joined(label, self.cohort.labelled.num_labels))
        image = from_unit(unit, low, high)
        root, paths = self.folder.root, self.folder.paths(index)
        geometry = (volume.affine, volume.orientation)
        pixels = Volume(stored(image, low, high), *geometry)
        write_volume(root / paths["image"], pixels, np.int16)
        kept = joined(label, self.written.num_labels)
        write_volume(root / paths["label"], Volume(kept, *geometry))
        self.folder.finish_case(
            index, input_sha256=self._input_hashes(index), made_from=self._earlier(index)
        )

    def _inputs(self, index: int) -> dict[str, Path]:
        """Return the files that the pair depends on: the label map, and the earlier image."""
        case = self.cases.cases[index]
        files = {"label": label_of(case)}
        if case.image is not None and (self.cases.images or self.cases.divides(case)):
            files["image"] = case.image
        return files

    def _input_hashes(self, index: int) -> dict[str, str]:
        return {role: file_sha256(path) for role, path in self._inputs(index).items()}

    def _earlier(self, index: int) -> dict[str, Any] | None:
        """Return the sidecar of the stage before, if there is one."""
        path = self.cases.root / "provenance" / f"{self.cases.cases[index].name}.json"
        return read_json(path) if path.exists() else None
