"""Patches of Subramaniam et al. 2022: a systematic grid plus random foreground-centred ones.

The rule for sizes: along an axis longer than the patch, the grid has ``ceil(size / patch)`` evenly
spaced patches, first and last flush with the borders (for 312 x 384 x 127 and 128 x 128 x 64 these
are the paper's 18). Along an axis shorter than the patch, the volume is padded evenly on both
sides (the odd voxel behind); generated volumes are cropped back by the same rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medpair.data.cohort import LabelledVolume
from medpair.data.sampling import case_counter, numpy_generator

# What lies outside the volume: the darkest intensity and background.
PAD_IMAGE = -1.0
PAD_LABEL = 0


def grid_starts(size: int, patch: int) -> list[int]:
    """Return the first voxel of each grid patch along an axis; negative where padding is needed."""
    if size <= patch:
        return [-((patch - size) // 2)]
    count = -(-size // patch)
    return [int(start) for start in np.linspace(0, size - patch, count).round()]


def systematic_starts(size: Sequence[int], patch: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return the starts (x, y, z) of the systematic grid of a volume."""
    x, y, z = (grid_starts(s, p) for s, p in zip(size, patch, strict=True))
    return [(a, b, c) for a in x for b in y for c in z]


def random_starts(
    label: np.ndarray, patch: Sequence[int], count: int, rng: np.random.Generator
) -> list[tuple[int, int, int]]:
    """Return starts of patches centred on ``count`` distinct foreground voxels.

    A volume with fewer foreground voxels gives as many patches as it has. Patches may reach over
    the border, where they are padded, as in the paper's code.
    """
    foreground = np.flatnonzero(label)
    chosen = rng.choice(foreground, size=min(count, len(foreground)), replace=False)
    centres = np.stack(np.unravel_index(np.sort(chosen), label.shape), axis=1)
    starts = centres - np.asarray(patch) // 2
    return [(int(a), int(b), int(c)) for a, b, c in starts]


def extract(
    array: np.ndarray, start: Sequence[int], patch: Sequence[int], fill: float
) -> np.ndarray:
    """Cut a patch (W, H, D); voxels outside the array get ``fill``."""
    result = np.full(tuple(patch), fill, dtype=array.dtype)
    inside, target = overlap(array.shape, start, patch)
    result[target] = array[inside]
    return result


def overlap(
    size: Sequence[int], start: Sequence[int], patch: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return the part of the volume that a patch covers, as slices of volume and of patch."""
    inside, target = [], []
    for n, first, p in zip(size, start, patch, strict=True):
        low, high = max(first, 0), min(first + p, n)
        inside.append(slice(low, high))
        target.append(slice(low - first, high - first))
    return tuple(inside), tuple(target)


def crop_box(size: Sequence[int], patch: Sequence[int]) -> tuple[slice, ...]:
    """Return where a volume of ``size`` lies in a patch: undoes the padding of smaller volumes."""
    starts = [grid_starts(min(n, p), p)[0] for n, p in zip(size, patch, strict=True)]
    return overlap([min(n, p) for n, p in zip(size, patch, strict=True)], starts, patch)[1]


def fitting_patch(
    sizes: Sequence[Sequence[int]], multiple: int = 16, largest: Sequence[int] = (128, 128, 64)
) -> list[int]:
    """Return the smallest patch, in multiples of ``multiple``, that holds every volume whole.

    Axes longer than ``largest`` get ``largest``: such volumes are cut into patches.
    """
    longest = np.max(np.asarray(sizes), axis=0)
    return [
        min(int(-(-size // multiple) * multiple), int(limit))
        for size, limit in zip(longest, largest, strict=True)
    ]


class PatchDataset(Dataset[dict[str, torch.Tensor]]):
    """All patches of a cohort, cut on demand from volumes held in memory.

    An item has ``image`` (1, W, H, D) float32 in -1..1, ``label`` (1, W, H, D) class indices,
    ``box`` (2, 3): first and last-plus-one voxel of the patch that lies inside its volume, and
    ``case`` and ``index``: which patch of which case it is.

    Args:
        volumes: the training pairs.
        patch_size: (W, H, D).
        random_patches: foreground-centred patches per volume (32 in the paper); volumes that fit
            into the patch whole get none: a second, shifted view of them holds nothing new.
        seed: of the random patches.
        normalize: ``volume`` keeps the volume's robust range; ``patch`` stretches each patch to
            -1..1 by its minimum and maximum, as the paper's code does.
    """

    def __init__(
        self,
        volumes: Sequence[LabelledVolume],
        patch_size: Sequence[int],
        random_patches: int = 32,
        seed: int = 0,
        normalize: str = "volume",
    ) -> None:
        if normalize not in ("volume", "patch"):
            raise ValueError(f"normalize: expected volume or patch, found {normalize!r}")
        self.volumes = list(volumes)
        self.patch_size = tuple(patch_size)
        self.normalize = normalize
        self.data: list[tuple[int, tuple[int, int, int]]] = []
        if random_patches < 0:
            raise ValueError(f"random_patches: expected at least 0, found {random_patches}")
        versions: Counter[str] = Counter()  # a case's deformed copies have its name
        for index, volume in enumerate(self.volumes):
            starts = systematic_starts(volume.image.shape, patch_size)
            if any(n > p for n, p in zip(volume.image.shape, patch_size, strict=True)):
                rng = numpy_generator(seed, case_counter(volume.case), versions[volume.case])
                starts += random_starts(volume.label, patch_size, random_patches, rng)
            versions[volume.case] += 1
            self.data += [(index, start) for start in starts]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        # the samplers of this package yield (epoch, index); a patch is the same in every epoch
        index = key[1] if isinstance(key, tuple) else key
        number, start = self.data[index]
        volume = self.volumes[number]
        image = extract(volume.image, start, self.patch_size, PAD_IMAGE)
        if self.normalize == "patch" and image.max() > image.min():
            image = 2.0 * (image - image.min()) / (image.max() - image.min()) - 1.0
        label = extract(volume.label, start, self.patch_size, PAD_LABEL)
        _, target = overlap(volume.image.shape, start, self.patch_size)
        box = [[part.start for part in target], [part.stop for part in target]]
        return {
            "image": torch.from_numpy(image)[None],
            "label": torch.from_numpy(label)[None],
            "box": torch.tensor(box),
            "case": volume.case,
            "index": index,
        }
