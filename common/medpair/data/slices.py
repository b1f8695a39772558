"""Volumes as sequences of slices: frames of one size, slicing axes, windows of a sequence.

A frame is the one size at which a bundle's networks see every volume. Smaller volumes are padded
evenly on both sides, larger ones cropped to their middle; ``unframed`` undoes the padding.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medpair.data.cohort import LabelledVolume
from medpair.data.patches import PAD_LABEL, crop_box, extract, fitting_patch
from medpair.data.sampling import numpy_generator

logger = logging.getLogger(__name__)

# RAS: the axis along which the slices of a view follow each other
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
NO_LIMIT = (1 << 15,) * 3
# Voxels kept around the labels of all training volumes: generated ones may lie somewhat farther
# out, and would end flat at the box (one of two brains did with none)
MARGIN = 4


def axis_of(view: str) -> int:
    """Return the RAS axis of a view.

    Raises:
        ValueError: if there is no such view.
    """
    if view not in AXES:
        raise ValueError(f"slicing_axis: expected one of {sorted(AXES)}, found {view!r}")
    return AXES[view]


def view_of(axis: int) -> str:
    """Return the view whose slices follow each other along a RAS axis (see ``axis_of``)."""
    return next(view for view, number in AXES.items() if number == axis)


def fitting_frame(
    sizes: Sequence[Sequence[int]], multiple: int = 8, largest: Sequence[int] | None = None
) -> list[int]:
    """Return the smallest frame, in multiples of ``multiple``, that holds every volume whole.

    Axes longer than ``largest`` get ``largest``: such volumes lose their margins, and a warning
    says how much.
    """
    frame = fitting_patch(sizes, multiple, NO_LIMIT if largest is None else largest)
    longest = np.max(np.asarray(sizes), axis=0)
    if cut := [axis for axis in range(3) if longest[axis] > frame[axis]]:
        logger.warning(
            "volume_size: volumes of up to %s voxels are cut to the middle %s along %s; what lies "
            "outside is not learned (a coarser --spacing, or --volume_size, keeps it)",
            " x ".join(map(str, longest.tolist())),
            " x ".join(map(str, frame)),
            " and ".join("xyz"[axis] for axis in cut),
        )
    return frame


def framed(array: np.ndarray, frame: Sequence[int], fill: float) -> np.ndarray:
    """Return (W, H, D) padded or cropped evenly on both sides to ``frame``."""
    start = [
        -((f - n) // 2) if n <= f else (n - f) // 2 for n, f in zip(array.shape, frame, strict=True)
    ]
    return extract(array, start, frame, fill)


def unframed(array: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return the part of a framed array (W, H, D) that a volume of ``size`` filled."""
    return array[crop_box(size, array.shape)]


def frame_box(size: Sequence[int], frame: Sequence[int]) -> np.ndarray:
    """Return a mask of the frame: 1 inside a volume of ``size``, 0 where it is padded."""
    inside = np.zeros(tuple(frame), np.float32)
    inside[crop_box(size, frame)] = 1.0
    return inside


def next_frame(size: Sequence[int], frame: Sequence[int], multiple: int) -> tuple[int, int, int]:
    """Return the training frame where ``size`` fits into it, else the next multiple per axis.

    It depends on the volume's own size alone, never on what else is in a batch.
    """
    w, h, d = (max(f, -(-n // multiple) * multiple) for n, f in zip(size, frame, strict=True))
    return w, h, d


@dataclass(frozen=True)
class Box:
    """A part of a frame: its first voxel and its size, (x, y, z) and (W, H, D)."""

    corner: tuple[int, ...]
    size: tuple[int, ...]

    def cut(self, array: np.ndarray) -> np.ndarray:
        """Return what a framed array (W, H, D) holds in the box."""
        return array[tuple(slice(c, c + n) for c, n in zip(self.corner, self.size, strict=True))]


def label_box(
    volumes: Sequence[LabelledVolume],
    frame: Sequence[int],
    shift: int = 0,
    multiple: int = 8,
    least: int = 1,
    margin: int = MARGIN,
    wanted: bool = True,
) -> Box:
    """Return the smallest box of a frame that holds the labels of all volumes.

    What no training volume has a label for, nothing has to be learned or computed of: it is
    background in every generated volume, too. A brain's box is two thirds of a head's frame.

    Args:
        volumes: the training pairs.
        frame: (W, H, D) that they are brought to.
        shift: voxels that they are moved by in training.
        multiple: of the box's sides, as far as the frame has so many voxels.
        least: voxels that every side has at least.
        margin: voxels around the labels, on each side, wherever they are moved.
        wanted: whether there is to be such a box; False: the whole frame.
    """
    whole = Box((0, 0, 0), tuple(int(n) for n in frame))
    if not wanted:
        return whole
    low, high = np.asarray(frame), np.zeros(3, int)
    for volume in volumes:
        label = framed(volume.label, frame, PAD_LABEL)
        for axis in range(3):
            others = tuple(a for a in range(3) if a != axis)
            planes = np.flatnonzero((label != PAD_LABEL).any(axis=others))
            if planes.size:
                low[axis] = min(low[axis], planes[0])
                high[axis] = max(high[axis], planes[-1] + 1)
    if not high.all():  # no labels at all
        return whole
    extent = np.maximum(high - low + 2 * (shift + margin), least)
    size = np.minimum(-(-extent // multiple) * multiple, frame)
    corner = np.clip((low + high - size) // 2, 0, np.asarray(frame) - size)
    return Box(tuple(corner.tolist()), tuple(size.tolist()))


class LabelWindows(Dataset[dict[str, Any]]):
    """Windows of ``m`` label slices for MC-DPM training (Han et al. 2023, section 2.1).

    An item has ``label`` (m, H, W) class indices, ``known`` (m,) 1 for slices that are given clean,
    ``position``: the first slice relative to the box's height, and ``case`` and ``index``, by
    which it is known. With the probabilities p_F and p_B the first or last n slices are given, with
    p_U none.

    Args:
        volumes: the training pairs.
        frame: (W, H, D) that the volumes are brought to.
        axis: along which the slices follow each other.
        window: m.
        overlap: n.
        probabilities: (p_F, p_B, p_U); they sum to 1.
        more_known: share of conditional windows that are given more than n slices, up to m - 1:
            the last window of a volume ends flush with it and overlaps more.
        shift: volumes are moved by up to so many voxels per axis, differently each time.
        flip: RAS axes along which volumes are mirrored half of the time; only for anatomy whose
            labels know no left and right.
        sizes: (N, K) scores of the classes' sizes in each volume; an item then also has ``sizes``
            (K,), with noise of ``size_noise``: exact ones would tell which volume it is.
        size_noise: in standard deviations of the cohort.
        box: part of the frame that the windows are cut from, heights counted within it; default
            all of it.
        length: items per epoch; default windows / m for each volume.
        seed: an item depends on (seed, epoch, index) alone.

    Raises:
        ValueError: if m, n or the probabilities make no sense.
    """

    def __init__(
        self,
        volumes: Sequence[LabelledVolume],
        frame: Sequence[int],
        axis: int,
        window: int = 8,
        overlap: int = 4,
        probabilities: Sequence[float] = (0.375, 0.375, 0.25),
        more_known: float = 0.25,
        shift: int = 0,
        flip: Sequence[int] = (),
        sizes: np.ndarray | None = None,
        size_noise: float = 0.25,
        box: Box | None = None,
        length: int | None = None,
        seed: int = 0,
    ) -> None:
        box = box or Box((0, 0, 0), tuple(frame))
        height = box.size[axis]
        if not 1 <= overlap < window <= height:
            raise ValueError(
                f"overlap, window: expected 1 <= overlap < window <= {height} slices, "
                f"found {overlap}, {window}"
            )
        if len(probabilities) != 3 or min(probabilities) < 0 or abs(sum(probabilities) - 1) > 1e-6:
            raise ValueError(
                f"probabilities: expected p_F, p_B, p_U with sum 1, found {list(probabilities)}"
            )
        self.stacks = [
            np.moveaxis(box.cut(framed(volume.label, frame, PAD_LABEL)), axis, 0)
            for volume in volumes
        ]
        self.cases = [volume.case for volume in volumes]
        if shift < 0:
            raise ValueError(f"shift: expected at least 0 voxels, found {shift}")
        self.axis = axis
        self.window = window
        self.overlap = overlap
        # what is nearly 1 here is not near enough for NumPy
        self.probabilities = np.asarray(probabilities) / sum(probabilities)
        self.more_known = more_known
        self.shift = shift
        # mirrored along an in-plane axis, or in the order of the slices
        self.flip = [
            0 if a == axis else 1 + [b for b in range(3) if b != axis].index(a) for a in flip
        ]
        self.sizes = sizes
        self.size_noise = size_noise
        self.length = length or max(1, len(volumes) * height // window)
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        rng = numpy_generator(self.seed, epoch, index)
        number = int(rng.integers(len(self.stacks)))
        stack = self.stacks[number]
        height = len(stack)
        first = int(rng.integers(height - self.window + 1))
        offset = rng.integers(-self.shift, self.shift + 1, 3) if self.shift else (0, 0, 0)
        mirrored = [a for a in self.flip if rng.random() < 0.5]
        stack = np.flip(stack, tuple(mirrored)) if mirrored else stack
        rows = np.clip(np.arange(first, first + self.window) - offset[0], 0, height - 1)
        label = moved(stack[rows], offset[1:], PAD_LABEL)
        item = {
            "label": torch.from_numpy(np.ascontiguousarray(label)),
            "known": torch.from_numpy(self._known(rng)),
            "position": np.float32(first / height),
            "case": self.cases[number],
            "index": index,
        }
        if self.sizes is not None:
            scores = self.sizes[number]
            noise = self.size_noise * rng.standard_normal(scores.shape)
            item["sizes"] = torch.from_numpy((scores + noise).astype(np.float32))
        return item

    def _known(self, rng: np.random.Generator) -> np.ndarray:
        """Draw which slices are given: forward, backward or unconditional."""
        known = np.zeros(self.window, np.float32)
        case = rng.choice(3, p=self.probabilities)
        count = self.overlap
        if rng.random() < self.more_known:
            count = int(rng.integers(self.overlap, self.window))
        if case == 0:
            known[:count] = 1
        elif case == 1:
            known[-count:] = 1
        return known


def moved(planes: np.ndarray, offset: Sequence[int] | np.ndarray, fill: float) -> np.ndarray:
    """Return (N, H, W) moved by whole voxels in the plane; what comes in is ``fill``."""
    down, right = (int(value) for value in offset)
    return extract(planes, (0, -down, -right), planes.shape, fill) if down or right else planes
