"""Writing pairs case by case: which are missing, and each beside its label map.

Case i of the input folder becomes case i of the output folder, under its own name and on its own
grid. The label map is kept; what is new is the image.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

from medpair.data.cohort import cohort_of
from medpair.data.files import (
    DataError,
    Volume,
    file_sha256,
    read_json,
    write_volume,
)
from medpair.data.full_range import full_range
from medpair.data.intensity import CT, from_unit
from medpair.data.slices import unframed
from medpair.data.unlabelled import joined
from medpair.inferers.background import ONE_WRITER, Background
from medpair.inferers.cases import CaseVolumes, label_of
from medpair.inferers.folder import SyntheticFolder, stored, wanted_range


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

    # whether there are images beside the label maps
    images = True

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
        suffix = "synthetic" if self.images else "synthetic_labels"
        self.folder = SyntheticFolder(
            output_dir, self.written, origin, split, suffix, self.images, names
        )

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
        label, volume, _ = self.cases.read(case, with_image=False)
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
        self._finish(index)

    def _finish(self, index: int) -> None:
        """Write the sidecar of a case whose files are there."""
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
