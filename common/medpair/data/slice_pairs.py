"""Slices of images with their labels, as the two image stages of MedGen3D train on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medpair.data.cohort import Cohort, LabelledVolume
from medpair.data.patches import PAD_IMAGE, PAD_LABEL
from medpair.data.sampling import numpy_generator
from medpair.data.slices import AXES, frame_box, framed
from medpair.data.traits import Traits, class_means
from medpair.data.unlabelled import joined


class FramedPairs:
    """Training pairs in one frame: images, labels, and masks of what is not padding.

    Args:
        volumes: the training pairs.
        frame: (W, H, D) that they are brought to.
        flip: RAS axes along which a pair is mirrored half of the time.
        cohort: what they are pairs of; says which classes are those of unlabelled tissue.
        withheld: in this share of draws these classes are background, so that images can be drawn
            to label maps without them, too.

    Raises:
        ValueError: if ``withheld`` is no share.
    """

    def __init__(
        self,
        volumes: Sequence[LabelledVolume],
        frame: Sequence[int],
        flip: Sequence[int] = (),
        cohort: Cohort | None = None,
        withheld: float = 0.0,
    ) -> None:
        if not 0 <= withheld <= 1:
            raise ValueError(f"unlabelled_dropout: expected a share of 0 to 1, found {withheld}")
        self.withheld = withheld if cohort is not None and cohort.unlabelled else 0.0
        self.labelled = 0 if cohort is None else cohort.labelled.num_labels
        self.images = [framed(v.image, frame, PAD_IMAGE) for v in volumes]
        self.labels = [framed(v.label, frame, PAD_LABEL) for v in volumes]
        self.sizes = [
            [min(n, f) for n, f in zip(v.image.shape, frame, strict=True)] for v in volumes
        ]
        self.inside = [frame_box(size, frame) for size in self.sizes]
        self.cases = [v.case for v in volumes]
        self.frame = tuple(frame)
        self.flip = tuple(flip)

    def draw(self, rng: np.random.Generator, axis: int) -> tuple[list[np.ndarray], range, int]:
        """Return a random pair: image, label, inside, slices first; its true slices; its number."""
        number = int(rng.integers(len(self.images)))
        mirrored = [a for a in self.flip if rng.random() < 0.5]
        stacks = [
            np.moveaxis(np.flip(group[number], tuple(mirrored)), axis, 0)
            for group in (self.images, self.labels, self.inside)
        ]
        if self.withheld and rng.random() < self.withheld:
            stacks[1] = joined(stacks[1], self.labelled)
        size, height = self.sizes[number][axis], self.frame[axis]
        first = (height - size) // 2
        if axis in mirrored:  # the odd padded slice is in front now
            first = height - size - first
        return stacks, range(first, first + size), number

    def class_means(self, num_labels: int) -> list[np.ndarray]:
        """Return the mean intensities (K,) of the first foreground classes in each volume."""
        return [
            class_means(image[inside > 0], label[inside > 0], num_labels)
            for image, label, inside in zip(self.images, self.labels, self.inside, strict=True)
        ]


class ViewSlices(Dataset[dict[str, Any]]):
    """One slice of each view, from random volumes, for the semantic refiner.

    An item has, for each view V of axial, coronal, sagittal: ``image_V`` (1, H, W) in -1..1,
    ``label_V`` (H, W) class indices, ``inside_V`` (1, H, W), 0 where the volume is padded; and
    ``case`` and ``index``, by which the item is known.

    Args:
        pairs: the training pairs.
        length: items per epoch.
        seed: an item depends on (seed, epoch, index) alone.
    """

    def __init__(self, pairs: FramedPairs, length: int, seed: int = 0) -> None:
        self.pairs = pairs
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        item: dict[str, Any] = {}
        cases = []
        for view, axis in AXES.items():
            rng = numpy_generator(self.seed, epoch, index, axis)
            (image, label, inside), slices, number = self.pairs.draw(rng, axis)
            cases.append(f"{view} {self.pairs.cases[number]}")
            z = int(rng.choice(slices))
            item[f"image_{view}"] = _tensor(image[z : z + 1])
            item[f"label_{view}"] = _tensor(label[z])
            item[f"inside_{view}"] = _tensor(inside[z : z + 1])
        return {**item, "case": ", ".join(cases), "index": index}


class SliceSequences(Dataset[dict[str, Any]]):
    """Sequences of consecutive slices for the image sequence generator.

    An item has ``image`` (past + L, H, W) in -1..1, ``label`` (past + L + 2 radius, H, W) class
    indices, ``inside`` (past + L, H, W), ``available`` (past,): 0 for past slices that lie before
    the volume's first, or that are withheld so that beginnings are learned too, ``position`` (L,):
    each slice's place, relative to the frame's height, and ``case`` and ``index``, by which the
    item is known. Half of the sequences run against the axis: the generator travels in both
    directions. With ``contrast`` also ``contrast`` (K,), the scores of each class's mean
    intensity in the whole volume.

    Args:
        pairs: the training pairs.
        axis: along which the slices follow each other.
        past: tau, past images that the generator sees.
        radius: label slices seen before and after the current one.
        lengths: L in the first epoch, and at most.
        grow_every: epochs after which L doubles.
        begin: share of sequences whose past is withheld.
        contrast: how the classes' mean intensities vary.
        contrast_noise: added to them, in standard deviations of the cohort: exact ones would tell
            which volume it is.
        length: items per epoch.
        seed: an item depends on (seed, epoch, index) alone.
    """

    def __init__(
        self,
        pairs: FramedPairs,
        axis: int,
        past: int = 2,
        radius: int = 1,
        lengths: Sequence[int] = (2, 8),
        grow_every: int = 10,
        begin: float = 0.3,
        contrast: Traits | None = None,
        contrast_noise: float = 0.25,
        length: int = 1000,
        seed: int = 0,
    ) -> None:
        if not 1 <= lengths[0] <= lengths[1] <= min(size[axis] for size in pairs.sizes):
            raise ValueError(
                "sequence_lengths: expected [first, largest] of at most "
                f"{min(size[axis] for size in pairs.sizes)} slices, found {list(lengths)}"
            )
        if grow_every < 1:
            raise ValueError(f"grow_every: expected at least 1, found {grow_every}")
        if not 0 <= begin <= 1:
            raise ValueError(f"begin: expected a share of 0 to 1, found {begin}")
        self.pairs = pairs
        self.axis = axis
        self.past = past
        self.radius = radius
        self.lengths = tuple(lengths)
        self.grow_every = grow_every
        self.begin = begin
        self.contrast_noise = contrast_noise
        self.scores: np.ndarray | None = None
        if contrast is not None:
            self.scores = contrast.scores(np.stack(pairs.class_means(len(contrast.names))))
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def sequence_length(self, epoch: int) -> int:
        """Return L of an epoch (from 0)."""
        return int(min(self.lengths[1], self.lengths[0] << min(epoch // self.grow_every, 16)))

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = numpy_generator(self.seed, epoch, index)
        stacks, slices, number = self.pairs.draw(rng, self.axis)
        height = len(stacks[0])
        place = np.arange(height, dtype=np.float32) / height
        if rng.random() < 0.5:
            place = place[::-1]
            stacks = [stack[::-1] for stack in stacks]
            slices = range(height - slices.stop, height - slices.start)
        steps = self.sequence_length(epoch)
        z = int(rng.integers(slices.start, slices.stop - steps + 1))
        rows = np.arange(z - self.past, z + steps)
        available = (rows[: self.past] >= slices.start).astype(np.float32)
        if rng.random() < self.begin:
            available[:] = 0
        image, label, inside = stacks
        inner = np.clip(rows, slices.start, slices.stop - 1)
        wide = np.arange(z - self.past - self.radius, z + steps + self.radius)
        item = {
            "image": _tensor(image[inner]),
            "label": _tensor(label[np.clip(wide, slices.start, slices.stop - 1)]),
            "inside": _tensor(inside[inner]),
            "available": torch.from_numpy(available),
            "position": _tensor(place[z : z + steps]),
            "case": self.pairs.cases[number],
            "index": index,
        }
        if self.scores is not None:
            scores = self.scores[number]
            noise = self.contrast_noise * rng.standard_normal(scores.shape)
            item["contrast"] = torch.from_numpy((scores + noise).astype(np.float32))
        return item


def _tensor(array: np.ndarray) -> torch.Tensor:
    # a copy: a single mirrored slice counts as contiguous, and keeps its negative stride
    return torch.from_numpy(array.copy())
