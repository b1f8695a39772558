"""Tubes to voxels: which share of each voxel lies in a set of tapering capsules.

Only voxels near a capsule are looked at. Each holds 4 x 4 x 4 sub-samples, one bit each of an
unsigned 64-bit integer, so that the union of capsules, which overlap wherever two meet, is a
bitwise or: no part of a voxel is counted twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Capsules", "Filled", "centreline_voxels", "rasterise"]

SUBSAMPLES = 4  # per axis, 64 in all: a voxel's fraction is known to about 1 %
CHUNK = 16384  # pairs of capsule and voxel worked on at once: their sub-samples fill a cache


@dataclass(frozen=True)
class Capsules:
    """Line segments with a radius at either end: start, end (N, 3) and radii (N, 2), all mm."""

    start: np.ndarray
    end: np.ndarray
    radii: np.ndarray

    def reach(self, extent: np.ndarray) -> np.ndarray:
        """Which (N,) bool reach into the box from 0 to ``extent`` (3,)."""
        reach = self.radii.max(1, keepdims=True)
        low = np.minimum(self.start, self.end) - reach
        high = np.maximum(self.start, self.end) + reach
        return np.all((high > 0) & (low < extent), axis=1)

    def take(self, which: np.ndarray) -> Capsules:
        """Those of an index or mask."""
        return Capsules(self.start[which], self.end[which], self.radii[which])


@dataclass(frozen=True)
class Filled:
    """The voxels that capsules reach into: all (M,).

    voxel: flat indices, sorted. fraction: share of the voxel inside any capsule, above 0 to 1.
    value: mean of the capsules' values, weighted by what each fills. core: 1 on an axis, -1 on a
    wall, weighted alike.
    """

    voxel: np.ndarray
    fraction: np.ndarray
    value: np.ndarray
    core: np.ndarray


def _pairs(capsules: Capsules, size: np.ndarray, spacing: np.ndarray) -> tuple:
    """Every (capsule, voxel) of the capsules' bounding boxes: indices (P,) and (P, 3)."""
    reach = capsules.radii.max(1, keepdims=True)
    low = np.floor((np.minimum(capsules.start, capsules.end) - reach) / spacing).astype(int)
    high = np.floor((np.maximum(capsules.start, capsules.end) + reach) / spacing).astype(int)
    low, high = np.clip(low, 0, size), np.clip(high + 1, 0, size)
    box = high - low
    count = box.prod(1)
    which = np.repeat(np.arange(len(count)), count)
    rest = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    box = box[which]
    x, rest = np.divmod(rest, box[:, 1] * box[:, 2])
    y, z = np.divmod(rest, box[:, 2])
    return which, low[which] + np.stack([x, y, z], 1)


def _nearest(points: np.ndarray, start: np.ndarray, axis: np.ndarray) -> tuple:
    """Squared distance of points (P, K, 3) to segments (P, 3), and where along them (0 to 1)."""
    offset = points - start[:, None]
    square = np.maximum(np.einsum("pi,pi->p", axis, axis), 1e-12)
    along = np.einsum("pki,pi->pk", offset, axis) / square[:, None]
    np.clip(along, 0, 1, out=along)
    offset -= along[..., None] * axis[:, None]
    return np.einsum("pki,pki->pk", offset, offset), along


def rasterise(
    capsules: Capsules, value: np.ndarray, size: tuple[int, ...], spacing: tuple[float, ...]
) -> Filled:
    """Fill a grid of ``size`` voxels whose corner is at 0 with capsules that carry values (N,)."""
    shape, pitch = np.asarray(size), np.asarray(spacing, float)
    which, voxel = _pairs(capsules, shape, pitch)
    start = capsules.start.astype(np.float32)
    axis = (capsules.end - capsules.start).astype(np.float32)
    radii = capsules.radii.astype(np.float32)
    centre = ((voxel + 0.5) * pitch).astype(np.float32)
    square, _ = _nearest(centre[:, None], start[which], axis[which])
    reach = radii[which].max(1)
    near = square[:, 0] < (reach + np.linalg.norm(pitch) / 2) ** 2
    core = 1 - 2 * np.minimum(square[near, 0] / reach[near] ** 2, 1)
    which, voxel, centre = which[near], voxel[near], centre[near]
    steps = (np.arange(SUBSAMPLES, dtype=np.float32) + 0.5) / SUBSAMPLES - 0.5
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    grid = (grid * pitch).astype(np.float32)
    bits = np.zeros(len(which), np.uint64)
    for low in range(0, len(which), CHUNK):
        part = slice(low, low + CHUNK)
        w = which[part]
        square, along = _nearest(centre[part, None] + grid, start[w], axis[w])
        radius = radii[w, :1] + along * (radii[w, 1:] - radii[w, :1])
        bits[part] = np.packbits(square <= radius * radius, axis=1).view(np.uint64)[:, 0]
    return _merge(np.ravel_multi_index(tuple(voxel.T), size), bits, value[which], core)


def _merge(flat: np.ndarray, bits: np.ndarray, value: np.ndarray, core: np.ndarray) -> Filled:
    """Unite the pairs of each voxel."""
    order = np.argsort(flat, kind="stable")
    order = order[bits[order] != 0]
    flat, bits = flat[order], bits[order]
    first = np.flatnonzero(np.diff(flat, prepend=-1))
    if not len(first):
        return Filled(flat, np.zeros(0), np.zeros(0), np.zeros(0))
    weight = _popcount(bits)
    total = np.add.reduceat(weight, first)
    return Filled(
        voxel=flat[first],
        fraction=_popcount(np.bitwise_or.reduceat(bits, first)) / SUBSAMPLES**3,
        value=np.add.reduceat(weight * value[order], first) / total,
        core=np.add.reduceat(weight * core[order], first) / total,
    )


def _popcount(bits: np.ndarray) -> np.ndarray:
    return np.unpackbits(bits[:, None].view(np.uint8), axis=1).sum(1).astype(float)


def centreline_voxels(
    capsules: Capsules, size: tuple[int, ...], spacing: tuple[float, ...]
) -> np.ndarray:
    """Flat indices (M,) of the voxels that the capsules' centrelines run through."""
    pitch = np.asarray(spacing, float)
    axis = capsules.end - capsules.start
    # Half a voxel a step: consecutive voxels then touch, so a vessel stays in one piece.
    count = np.ceil(2 * np.linalg.norm(axis / pitch, axis=1)).astype(int) + 1
    which = np.repeat(np.arange(len(count)), count)
    step = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    along = (step / np.maximum(count - 1, 1)[which])[:, None]
    voxel = np.floor((capsules.start[which] + along * axis[which]) / pitch).astype(int)
    voxel = voxel[np.all((voxel >= 0) & (voxel < size), axis=1)]
    return np.unique(np.ravel_multi_index(tuple(voxel.T), size))
