"""Organs as signed distances over a posed grid: what the thorax and the brain are drawn with.

An anatomy is written down once, in mm of a standard body. `posed_space` lays a grid of voxels over
it, moved, tilted and bent a little; shapes are then distances (mm, negative inside) at the voxels,
and `coverage` is the share of a voxel that lies inside, so that edges show partial volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medpair.data.phantoms.head import smooth_noise
from medpair.data.phantoms.tof import resized

__all__ = [
    "FAR",
    "Pose",
    "Space",
    "checked",
    "coverage",
    "ellipsoid",
    "keep_largest",
    "merge_specks",
    "paint",
    "posed_space",
    "swell",
    "tube",
    "union",
]

FAR = 1e3  # mm: the distance of a shape where it was not worked out
MARGIN = 30.0  # mm around a shape in which its distance is worked out
BEND_SCALE = 55.0  # mm over which the bending of a body changes
MIN_SIZE = 16  # voxels per axis


@dataclass(frozen=True)
class Pose:
    """How a body lies: factors per axis, tilt (radians), shift and bending (mm of the standard)."""

    scale: np.ndarray
    tilt: np.ndarray
    shift: np.ndarray
    bend: float


@dataclass(frozen=True)
class Space:
    """Where the voxels of a grid lie in the standard body.

    x, y, z: (W, H, D) float32, mm. step: (3,) mm between neighbours. matrix, offset: from points
    (N, 3) to voxel indices, ``points @ matrix.T + offset``, bending left out.
    """

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    step: np.ndarray
    matrix: np.ndarray
    offset: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the grid."""
        return self.x.shape

    @property
    def pitch(self) -> float:
        """Edge of a cube as large as a voxel, mm."""
        return float(np.prod(self.step) ** (1 / 3))

    def crop(self, box: tuple[slice, ...]) -> Space:
        """A part of the grid."""
        start = np.array([part.start for part in box])
        x, y, z = (np.ascontiguousarray(c[box]) for c in (self.x, self.y, self.z))
        return Space(x, y, z, self.step, self.matrix, self.offset - start)

    def box(self, points: np.ndarray, margin: float) -> tuple[slice, ...]:
        """The part of the grid within ``margin`` mm of points (N, 3)."""
        voxel = points @ self.matrix.T + self.offset
        reach = margin / self.step
        low = np.floor(np.clip(voxel.min(0) - reach, 0, self.shape)).astype(int)
        high = np.ceil(np.clip(voxel.max(0) + reach + 1, 0, self.shape)).astype(int)
        return tuple(slice(a, b) for a, b in zip(low, high, strict=True))


def checked(size: Sequence[int], spacing: Sequence[float], seed: int) -> tuple:
    """Size and spacing as tuples; raises ValueError for those, or seeds, that cannot be used."""
    if len(size) != 3 or any(int(n) != n or n < MIN_SIZE for n in size):
        raise ValueError(f"size: expected three whole numbers, at least {MIN_SIZE}, found {size}")
    if len(spacing) != 3 or not all(0 < s < 100 for s in spacing):
        raise ValueError(f"spacing: expected three numbers of mm in (0, 100), found {spacing}")
    if int(seed) != seed or seed < 0:
        raise ValueError(f"seed: expected a whole number >= 0, found {seed}")
    return tuple(int(n) for n in size), tuple(float(s) for s in spacing)


def _rotation(tilt: np.ndarray) -> np.ndarray:
    """Nodding, leaning and turning, in this order (radians), as a matrix."""
    (sx, cx), (sy, cy), (sz, cz) = ((np.sin(a), np.cos(a)) for a in tilt)
    nod = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    lean = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    turn = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return turn @ lean @ nod


def swell(step: np.ndarray, shape: tuple, scale: float, rng: np.random.Generator) -> np.ndarray:
    """A field of unit variance (W, H, D) that changes over ``scale`` mm; step: (3,) mm.

    It is drawn on a coarse grid.
    """
    pitch = scale / 2
    coarse = tuple(int(n) + 3 for n in np.multiply(shape, step) / pitch)
    return resized(smooth_noise(rng, coarse, scale / pitch), shape)


def posed_space(
    size: tuple, middle: np.ndarray, step: np.ndarray, pose: Pose, rng: np.random.Generator
) -> Space:
    """Lay a grid over a body: ``middle`` (mm) comes to lie in the centre, up to the pose's shift.

    step: (3,) mm between voxels, before the pose's own factors.
    """
    step = step / pose.scale
    rotation = _rotation(pose.tilt)
    axes = [
        ((np.arange(n) + 0.5 - n / 2) * s).astype(np.float32)
        for n, s in zip(size, step, strict=True)
    ]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    centre = middle - pose.shift
    turned = [
        sum(np.float32(rotation[j, i]) * grid[j] for j in range(3)) + np.float32(centre[i])
        for i in range(3)
    ]
    x, y, z = (
        t + np.float32(pose.bend) * swell(step, size, BEND_SCALE, rng).astype(np.float32)
        for t in turned
    )
    matrix = np.diag(1 / step) @ rotation
    offset = np.divide(size, 2) - 0.5 - matrix @ centre
    return Space(x, y, z, step, matrix, offset)


def union(a: np.ndarray, b: np.ndarray, blend: float) -> np.ndarray:
    """Smooth minimum of two distances, melting into each other over ``blend`` mm."""
    overlap = np.maximum(blend - np.abs(a - b), 0)
    return np.minimum(a, b) - overlap * overlap / (4 * blend)


def coverage(distance: np.ndarray, step: float) -> np.ndarray:
    """Share (0 to 1) of voxels of edge ``step`` mm inside a shape, from distances (mm)."""
    return np.clip(0.5 - distance / step, 0, 1)


def paint(image: np.ndarray, share: np.ndarray, value: np.ndarray | float) -> None:
    """Let a share (0 to 1) of each voxel have another value, in place."""
    image += share * (value - image)


def ellipsoid(
    space: Space,
    centre: Sequence[float] | np.ndarray,
    axes: Sequence[float] | np.ndarray,
    turn: np.ndarray | None = None,
    margin: float = MARGIN,
) -> np.ndarray:
    """Distance (W, H, D) to an ellipsoid, first-order; FAR beyond ``margin`` mm of its box.

    turn: (3,) angles of its own axes, in radians, as in `Pose`.
    """
    middle, axes = np.asarray(centre, float), np.asarray(axes, float)
    reach = np.full(3, axes.max()) if turn is not None else axes
    ends = np.stack([middle - reach, middle + reach], 1)
    box = space.box(np.array(np.meshgrid(*ends)).reshape(3, -1).T, margin)
    out = np.full(space.shape, FAR, np.float32)
    p = [(c[box] - np.float32(m)) for c, m in zip((space.x, space.y, space.z), middle, strict=True)]
    if turn is not None:
        r = _rotation(turn).astype(np.float32)
        p = [r[0, i] * p[0] + r[1, i] * p[1] + r[2, i] * p[2] for i in range(3)]
    q = [v / np.float32(a) for v, a in zip(p, axes, strict=True)]
    inner = np.sqrt(q[0] ** 2 + q[1] ** 2 + q[2] ** 2) + np.float32(1e-4)
    steep = sum((v / np.float32(a)) ** 2 for v, a in zip(q, axes, strict=True))
    slope = np.sqrt(steep) + np.float32(1e-6)
    out[box] = inner * (inner - 1) / slope
    return out


def tube(
    space: Space,
    course: np.ndarray,
    radii: Sequence[float] | np.ndarray | float,
    margin: float = MARGIN,
) -> np.ndarray:
    """Distance (W, H, D) to a tube along a course (K, 3) with radii (K,), mm; FAR beyond margin."""
    course = np.asarray(course, float)
    radius = np.broadcast_to(np.asarray(radii, float), (len(course),))
    out = np.full(space.shape, FAR, np.float32)
    for a, b, ra, rb in zip(course[:-1], course[1:], radius[:-1], radius[1:], strict=True):
        box = space.box(np.array([a, b]), margin + max(ra, rb))
        axis = (b - a).astype(np.float32)
        p = [c[box] - np.float32(m) for c, m in zip((space.x, space.y, space.z), a, strict=True)]
        along = (p[0] * axis[0] + p[1] * axis[1] + p[2] * axis[2]) / max(axis @ axis, 1e-6)
        along = np.clip(along, 0, 1)
        square = sum((v - along * w) ** 2 for v, w in zip(p, axis, strict=True))
        distance = np.sqrt(square) - (np.float32(ra) + along * np.float32(rb - ra))
        out[box] = np.minimum(out[box], distance)
    return out


def _pieces(label: np.ndarray, value: int, corners: bool) -> tuple[np.ndarray, int]:
    """Numbered pieces of a label (0 elsewhere), and the number of the largest."""
    structure = ndimage.generate_binary_structure(3, 3 if corners else 1)
    pieces, _ = ndimage.label(label == value, structure)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces, int(sizes.argmax())


def keep_largest(label: np.ndarray, value: int, instead: int) -> None:
    """Leave one piece of a label, in place: the voxels of all others become ``instead``.

    Voxels hang together by their faces.
    """
    pieces, largest = _pieces(label, value, corners=False)
    label[(pieces > 0) & (pieces != largest)] = instead


def merge_specks(label: np.ndarray, values: Sequence[int]) -> None:
    """Leave one piece of each of some labels, in place: other pieces go to what is nearest to them.

    Voxels hang together by corners too: what a grid shows of a thin sheet often does no better.
    """
    specks = np.zeros(label.shape, bool)
    for value in values:
        pieces, largest = _pieces(label, value, corners=True)
        specks |= (pieces > 0) & (pieces != largest)
    source = np.isin(label, values) & ~specks
    nearest = ndimage.distance_transform_edt(~source, return_distances=False, return_indices=True)
    label[specks] = label[tuple(axis[specks] for axis in nearest)]
