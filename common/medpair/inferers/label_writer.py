"""Generated label volumes as a folder of label maps."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from medpair.data.cohort import cohort_of
from medpair.data.files import Volume, file_sha256, write_volume
from medpair.data.sampling import numpy_generator
from medpair.data.slices import frame_box, unframed
from medpair.data.unlabelled import joined
from medpair.inferers.folder import SyntheticFolder, centred_affine, wanted_range
from medpair.inferers.label_volume import LabelVolumeInferer

logger = logging.getLogger(__name__)

# Share of a label that may lie beyond the volume's size: of 52 brains 16 had one to three voxels
# there, each by itself, far from the brain
SPECKS = 0.001
# Fixes the meaning of (seed, index): which size a volume has
SIZE_STREAM = 1


class LabelVolumeWriter:
    """Write generated label volumes as a folder of label maps.

    Args:
        output_dir: the folder.
        card: what lies beside the weights.
        weights: path of the checkpoint; its SHA-256 goes into the sidecars.
        inferer: knows how each volume was made.
        num_samples: how many.
        seed: of the cohort to be made.
        start_index: index of the first sample.
        split: list of ``dataset.json`` that the label maps go into.

    Raises:
        DataError: if the folder holds label maps made otherwise.
    """

    def __init__(
        self,
        output_dir: str | Path,
        card: dict[str, Any],
        weights: str | Path,
        inferer: LabelVolumeInferer,
        num_samples: int,
        seed: int = 0,
        start_index: int = 0,
        split: str = "training",
    ) -> None:
        self.cohort = cohort_of(card)
        self.inferer = inferer
        self.seed = seed
        self.wanted = wanted_range(start_index, num_samples)
        origin = {
            "generator": "medgen3d_mcdpm",
            "weights": Path(weights).name,
            "weights_sha256": file_sha256(weights),
            "seed": seed,
            **inferer.origin(),
        }
        self.folder = SyntheticFolder(
            output_dir, self.cohort, origin, split, "synthetic_labels", images=False
        )

    def missing(self) -> list[int]:
        """Return the wanted indices whose label map is not there yet."""
        return [index for index in self.wanted if not self.folder.has(index)]

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Write the label map of ``data``: ``pred`` (1, W, H, D) and its ``index``."""
        index = int(data["index"])
        if index in self.wanted and not self.folder.has(index):
            with self.folder.writing():
                self._write(index, torch.as_tensor(data["pred"])[0].cpu().numpy())
        return data

    def complete(self) -> Path:
        """Write ``dataset.json``; say how many volumes were implausible."""
        records = [r for i, r in self.inferer.records.items() if i in self.wanted]
        tries = sum(len(r["rejected"]) for r in records)
        if tries:
            logger.info(
                "%d label volumes: %d implausible ones came up, %d were kept",
                len(records),
                tries,
                sum(not r["plausible"] for r in records),
            )
        return self.folder.complete()

    def _write(self, index: int, framed: np.ndarray) -> None:
        size = self._size(index, framed)
        label = np.ascontiguousarray(unframed(framed, size))
        record = dict(self.inferer.records[index])
        # seams as slices of the file
        axis = self.inferer.axis
        offset = (framed.shape[axis] - size[axis]) // 2
        record["seams"] = [s - offset for s in record["seams"] if 0 < s - offset < size[axis]]
        affine = centred_affine(self.cohort.spacing, size)
        path = self.folder.root / self.folder.paths(index)["label"]
        write_volume(path, Volume(label, affine))
        self.folder.finish_case(index, size=list(size), axis=axis, **record)

    def _size(self, index: int, framed: np.ndarray) -> tuple[int, int, int]:
        """Draw the volume's size from the cohort's: one that cuts off specks of the label at most.

        Beyond every size of the cohort the image generators have seen padding alone: what is kept
        there has no image.
        """
        # necks and shoulders reach as far as the volume does, whatever its size
        framed = joined(framed, self.cohort.labelled.num_labels)
        most = SPECKS * np.count_nonzero(framed)
        # as often as in the cohort: a size of many volumes stands there many times
        sizes = sorted(self._fitted(size, framed.shape) for size in self.cohort.sizes)
        order = numpy_generator(self.seed, index, SIZE_STREAM).permutation(len(sizes))
        for choice in order:
            size = sizes[int(choice)]
            if np.count_nonzero(framed[frame_box(size, framed.shape) == 0]) <= most:
                return size
        w, h, d = framed.shape
        return w, h, d

    def _fitted(self, size: Sequence[int], frame: Sequence[int]) -> tuple[int, int, int]:
        """Return a size of the cohort within the frame, of the height that was asked for."""
        fitted = [min(a, b) for a, b in zip(size, frame, strict=True)]
        if self.inferer.height is not None:
            fitted[self.inferer.axis] = self.inferer.height
        w, h, d = fitted
        return w, h, d
