"""Deformed copies of training volumes, so that few of them are not learned by heart.

Image and label map are bent together, so that whoever draws images to label maps loses nothing: a
bent label map's image is the bent image. Where volumes are resampled to a coarser grid anyway,
copies are taken from the volume as it is stored, voxel by voxel, with no interpolation: fine noise
and sharp outlines are those of real images. On their own grid images are read through cubic
splines, which dampen noise less than straight lines between voxels do, and label maps so that
outlines stay smooth and classes as large as they are, see ``bent_label``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_dilation, map_coordinates

from medpair.data.cohort import Cohort, LabelledVolume, read_pair
from medpair.data.dataset import load_dataset
from medpair.data.intensity import to_unit
from medpair.data.resampling import resampled_size
from medpair.data.sampling import case_counter, numpy_generator

# The bend is drawn at nodes so far apart (mm) and interpolated by cubic splines: smooth, and finer
# than a lobe of the brain.
NODE_DISTANCE = 28.0
# So much coarser (every axis) and the nearest stored voxel is at most a third of a voxel away.
COARSER = 1.5
# Voxels around what is labelled in which a class's membership is looked for
RIPPLE = 2


@dataclass(frozen=True)
class Deformation:
    """How far copies differ from their volume.

    Attributes:
        copies: of each volume; 0 for none.
        degrees: standard deviation of the turn about each axis; never more than twice that.
        millimetres: standard deviation of the bend at each node, along each axis.
    """

    copies: int = 0
    degrees: float = 3.0
    millimetres: float = 2.5

    def __post_init__(self) -> None:
        if isinstance(self.copies, bool) or not isinstance(self.copies, int) or self.copies < 0:
            expected = "a whole number of at least 0"
            raise ValueError(f"deformed_copies: expected {expected}, found {self.copies!r}")
        for name, value in (
            ("turn_degrees", self.degrees),
            ("bend_millimetres", self.millimetres),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise ValueError(f"{name}: expected a number, found {value!r}")
            if not 0 <= value < np.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, found {value!r}")

    @property
    def settings(self) -> dict[str, float] | None:
        """Plain data for checkpoints; None without copies, whatever the other two say."""
        return dict(vars(self)) if self.copies else None


def deformed_copies(
    dataset_dir: str | Path,
    label_group: str | None,
    cohort: Cohort,
    deform: Deformation,
    seed: int = 0,
) -> list[LabelledVolume]:
    """Return ``deform.copies`` deformed copies of each training volume, in the cohort's order.

    A copy depends on (seed, name of the case, number of the copy) alone.

    Args:
        dataset_dir: the dataset folder; its training list is read.
        label_group: name of a merge of labels, or None.
        cohort: says the spacing, and for CT the range of intensities.
        deform: how many, and how far from the original.
        seed: of the deformations.

    Raises:
        DataError: if a file cannot be used; names the file.
    """
    if not deform.copies:
        return []
    result = []
    folder = load_dataset(dataset_dir)
    labels = folder.labels(label_group)
    for case in folder.split("training"):
        image, label = read_pair(case, labels)
        coarser = np.divide(cohort.spacing, image.spacing).min() >= COARSER
        for copy in range(deform.copies):
            rng = numpy_generator(seed, case_counter(case.name), copy)
            at = positions(label.shape, image.spacing, cohort.spacing, deform, rng)
            bent = sample(image.array, at, order=0 if coarser else 3)
            unit = to_unit(bent, *cohort.range_of(bent))
            classes = sample(label, at, order=0) if coarser else bent_label(label, at)
            result.append(LabelledVolume(unit, cohort.divide(unit, classes), case.name))
    return result


def positions(
    shape: Sequence[int],
    old: Sequence[float],
    new: Sequence[float],
    deform: Deformation,
    rng: np.random.Generator,
) -> np.ndarray:
    """Return (3, W, H, D) where each voxel of a copy lies in the stored volume, in its voxels.

    The copy's grid is that of ``resample``, moved by up to half a voxel, turned about the middle
    and bent.

    Args:
        shape: size of the stored volume.
        old: its spacing, millimetres.
        new: the copy's.
        deform: how far.
        rng: draws the move, the turn and the bend, in that order.
    """
    size = resampled_size(shape, old, new)
    scale = np.array(old)[:, None, None, None]
    axes = [np.arange(n) * float(step) for n, step in zip(size, new, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    grid += (rng.uniform(-0.5, 0.5, 3) * np.array(new))[:, None, None, None]
    angles = np.deg2rad(np.clip(rng.normal(0, 1, 3), -2, 2) * deform.degrees)
    middle = (np.array(shape) - 1).reshape(3, 1, 1, 1) * scale / 2
    grid = np.einsum("ij,j...->i...", _turn(angles), grid - middle) + middle
    nodes = [int(np.ceil(n * step / NODE_DISTANCE)) + 1 for n, step in zip(size, new, strict=True)]
    bend = rng.normal(0, deform.millimetres, (3, *nodes))
    weights = [_spline(m, n) for m, n in zip(nodes, size, strict=True)]
    grid += np.einsum("aijk,xi,yj,zk->axyz", bend, *weights, optimize=True)
    return grid / scale


def sample(array: np.ndarray, at: np.ndarray, order: int) -> np.ndarray:
    """Return (W, H, D) read at positions (3, W, H, D); beyond the border, the border."""
    if order == 0:
        last = (np.array(array.shape) - 1)[:, None, None, None]
        return array[tuple(np.clip(np.rint(at).astype(int), 0, last))]
    return map_coordinates(array, at, order=order, mode="nearest")


def bent_label(label: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return a label map (W, H, D) read at positions (3, W, H, D) between its voxels.

    The nearest voxel's class has outlines that jump by up to half a voxel: on hippocampi at 1 mm a
    segmenter agrees with such labels to a Dice of 0.836, with the labels as they were to 0.858. So
    each class's membership is read as the image is, through cubic splines: 0.844. Where it is
    largest alone would thin vessels out: a line between two voxels is half of either. So the
    foreground is where its membership is largest, in as many voxels as the nearest ones have of it,
    and of these each goes to its largest class. Simulated vessels break into 13 pieces, and into 12
    by the nearest voxels (5 as they were). Measured by tests/benchmarks/measure_bent_labels.py.

    Args:
        label: (W, H, D) class indices.
        at: in its voxels.
    """
    nearest = sample(label, at, order=0)
    # elsewhere memberships are ripples of the splines, and most of a head is elsewhere
    near = sample(binary_dilation(label > 0, np.ones((3, 3, 3)), RIPPLE), at, order=0)
    places = at[:, near]
    total = np.zeros(places.shape[1])
    most, largest = np.full(total.shape, -np.inf), np.zeros(total.shape, label.dtype)
    for value in np.unique(nearest[nearest > 0]):
        member = (label == value).astype(np.float64)
        share = map_coordinates(member, places, order=3, mode="nearest")
        total += share
        larger = share > most
        most[larger], largest[larger] = share[larger], value
    inside = np.argsort(-total, kind="stable")[: int((nearest > 0).sum())]
    chosen = np.zeros_like(largest)
    chosen[inside] = largest[inside]
    result = np.zeros(nearest.shape, label.dtype)
    result[near] = chosen
    return result


def _spline(nodes: int, size: int) -> np.ndarray:
    """Return (size, nodes): the weight of each node at evenly spaced places, by cubic splines.

    Splines are separable: three such matrices are the bend of a volume, without a look at 64
    neighbours for every voxel.
    """
    places = np.linspace(0, nodes - 1, size)[None]
    return np.stack(
        [map_coordinates(node, places, order=3, mode="nearest") for node in np.eye(nodes)], axis=1
    )


def _turn(angles: np.ndarray) -> np.ndarray:
    """Return the rotation (3, 3) about the first, then the second, then the third axis."""
    result = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (other for other in range(3) if other != axis)
        matrix = np.eye(3)
        matrix[[i, i, j, j], [i, j, i, j]] = [
            np.cos(angle),
            -np.sin(angle),
            np.sin(angle),
            np.cos(angle),
        ]
        result = result @ matrix
    return result
