"""Simulated time-of-flight angiograms: a head, its arteries, a scanner; the arteries as label.

The head is whole; a small field of view sees a random part of it. `head` says where which tissue
is, `vessel_tree` where the arteries run, `tof` what a scanner measures.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from medpair.data.phantoms import Phantom
from medpair.data.phantoms.capsules import Capsules, Filled, centreline_voxels, rasterise
from medpair.data.phantoms.head import (
    HEAD_BOX,
    Tissue,
    intracranial_distance,
    smooth_noise,
    tissue_map,
)
from medpair.data.phantoms.tof import (
    CORE_GAIN,
    PATCH,
    PATCHINESS,
    Scan,
    acquire,
    blood_signal,
    coil_gain,
    draw_scan,
    resized,
    tissue_signal,
)
from medpair.data.phantoms.vessel_tree import VesselTree, grow_vessels

__all__ = ["MIN_SIZE", "artery_label", "vessel_phantom"]

MIN_SIZE = (32, 32, 16)  # voxels

# What is labelled. An artery is followed outwards as long as somewhere ahead it would fill
# LABEL_FILL of the voxels it runs straight through (a radius of 0.22 mm at 0.5 x 0.5 x 0.7 mm) and
# rise LABEL_CONTRAST times the noise over grey matter: what a patient reader could trace. (Seldom
# is a thin artery centred on voxels: of that contrast a third or so remains.) Of the arteries so
# chosen, every voxel half full is labelled, and every voxel on a centreline, without which those
# thinner than a voxel would fall into dust.
LABEL_FILL, LABEL_CONTRAST, LABEL_HALF = 0.5, 8.0, 0.5

# Pose of the head (standard deviations) and where the field of view lies.
HEAD_SCALE_SD = 0.04
TILT_SD = np.deg2rad([7.0, 3.0, 3.0])  # nodding, leaning, turning
ANCHOR_RADIUS = 0.45  # mm: a field of view is laid around a point on an artery at least so wide
P_CENTRAL, CENTRAL_REACH = 0.6, 28.0  # how often, and mm around the circle of Willis
CIRCLE = np.array([0.0, 0.0, -16.0])
ANCHOR_SHIFT = 0.3  # largest distance of that point from the centre, in parts of the extent
WHOLE_WIDTH = np.array([140.0, 170.0])  # mm
WHOLE_SHIFT = 0.12  # the same for a field of view as wide as the head: those are laid with care

SHEATHED, SHEATH = 0.5, 2.0  # mm: arteries at least so wide (radius) have so much fluid around
TISSUE_STEP = 1.0  # mm, or a voxel where that is more: tissue, whose contrasts are low, is
# computed on this grid and interpolated
EDGE = 0.5  # steps of that grid: standard deviation of the smoothing that hides its corners


def vessel_phantom(
    size: tuple[int, int, int] = (128, 128, 64),
    spacing: tuple[float, float, float] = (0.5, 0.5, 0.7),
    seed: int = 0,
) -> Phantom:
    """One simulated TOF-MRA with its arteries as label and its intracranial cavity as roi.

    size: voxels (W, H, D), at least (32, 32, 16); spacing: mm; a field of view smaller than the
    head shows a random part of it with arteries in it. The same arguments give the same arrays.
    Raises ValueError for sizes, spacings or seeds it cannot use.
    """
    size, spacing = _checked(size, spacing, seed)
    streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(5)]
    vessels_rng, pose_rng, scan_rng, tissue_rng, noise_rng = streams
    tree = grow_vessels(vessels_rng)
    scan = draw_scan(scan_rng)
    matrix, offset = _pose(tree, size, spacing, pose_rng)
    capsules = _capsules(tree, matrix, offset)
    blood = blood_signal(capsules.radii.mean(1), (capsules.start + capsules.end)[:, 2] / 2, scan)
    traced = _traced(tree, capsules, blood, spacing, scan)
    seen = capsules.reach(np.multiply(size, spacing))
    capsules, blood, traced = capsules.take(seen), blood[seen], traced[seen]
    filled = rasterise(capsules, blood, size, spacing)
    label = artery_label(capsules.take(traced), size, spacing)
    tissue, layer, step = _tissue(capsules, matrix, offset, size, spacing, tissue_rng)
    signal = ndimage.gaussian_filter(tissue_signal(scan)[tissue], EDGE, truncate=3.0)
    signal *= 1 + PATCHINESS * smooth_noise(tissue_rng, signal.shape, PATCH / step)
    signal = _with_blood(resized(signal, size), filled)
    coil = resized(coil_gain(layer, step, scan, tissue_rng), size)
    roi = (resized(layer, size) < 0).astype(np.uint8)
    return Phantom(acquire(signal, coil, scan, noise_rng), label, roi, spacing)


def _checked(size: Sequence[int], spacing: Sequence[float], seed: int) -> tuple:
    least = " x ".join(map(str, MIN_SIZE))
    if len(size) != 3 or any(int(n) != n or n < m for n, m in zip(size, MIN_SIZE, strict=False)):
        raise ValueError(f"size: expected three whole numbers, at least {least}, found {size}")
    if len(spacing) != 3 or not all(0 < s < 10 for s in spacing):
        raise ValueError(f"spacing: expected three numbers of mm in (0, 10), found {spacing}")
    if int(seed) != seed or seed < 0:
        raise ValueError(f"seed: expected a whole number >= 0, found {seed}")
    return tuple(int(n) for n in size), tuple(float(s) for s in spacing)


def _pose(
    tree: VesselTree, size: tuple, spacing: tuple, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and offset that take head coordinates to mm from the grid's corner."""
    (sx, cx), (sy, cy), (sz, cz) = (
        (np.sin(a), np.cos(a)) for a in TILT_SD * rng.standard_normal(3)
    )
    nod = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    lean = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    turn = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    matrix = turn @ lean @ nod @ np.diag(1 + HEAD_SCALE_SD * rng.standard_normal(3))
    extent = np.multiply(size, spacing)
    wide = tree.points[
        (tree.radius > ANCHOR_RADIUS) & (intracranial_distance(tree.points) < -2) & ~tree.bridge
    ]
    central = wide[np.linalg.norm(wide - CIRCLE, axis=1) < CENTRAL_REACH]
    whole = bool(np.all(extent[:2] >= WHOLE_WIDTH))
    pool = central if whole or rng.random() < P_CENTRAL else wide
    anchor = pool[rng.integers(len(pool))] @ matrix.T
    shift = WHOLE_SHIFT if whole else ANCHOR_SHIFT
    centre = anchor + rng.uniform(-shift, shift, 3) * extent
    # Keep to the head: centred on it where it fits, within it where it does not.
    slack = (HEAD_BOX[:, 1] - HEAD_BOX[:, 0] - extent) / 2
    middle = HEAD_BOX.mean(1)
    low, high = middle - np.maximum(slack, 0), middle + np.maximum(slack, 0)
    return matrix, extent / 2 - np.clip(centre, low, high)


def _capsules(tree: VesselTree, matrix: np.ndarray, offset: np.ndarray) -> Capsules:
    """One capsule per node of the tree, in mm from the grid's corner; a root's has no length."""
    points = tree.points @ matrix.T + offset
    origin = np.where(tree.parent >= 0, tree.parent, np.arange(len(points)))
    return Capsules(points[origin], points, np.stack([tree.start_radius, tree.radius], 1))


def _traced(
    tree: VesselTree, capsules: Capsules, blood: np.ndarray, spacing: tuple, scan: Scan
) -> np.ndarray:
    """Which capsules (N,) are to be labelled: see LABEL_FILL."""
    x, y, z = spacing
    face = (x * y + y * z + z * x) / 3
    fill = np.minimum(np.pi * capsules.radii.mean(1) ** 2 / face, 1)
    contrast = fill * (blood - tissue_signal(scan)[Tissue.GREY]) / scan.noise
    traced = ((fill >= LABEL_FILL) & (contrast >= LABEL_CONTRAST)).tolist()
    for node in range(len(traced) - 1, -1, -1):  # children come after their parents
        if traced[node] and tree.parent[node] >= 0:
            traced[tree.parent[node]] = True
    return np.array(traced)


def artery_label(arteries: Capsules, size: tuple, spacing: tuple) -> np.ndarray:
    """Label map (uint8, of ``size``): voxels half full of arteries, and those on a centreline."""
    label = np.zeros(size, np.uint8)
    filled = rasterise(arteries, np.zeros(len(arteries.radii)), size, spacing)
    label.reshape(-1)[filled.voxel[filled.fraction >= LABEL_HALF]] = 1
    label.reshape(-1)[centreline_voxels(arteries, size, spacing)] = 1
    return label


def _with_blood(signal: np.ndarray, filled: Filled) -> np.ndarray:
    """Signal of a voxel: tissue and blood by the share each has of it."""
    blood = filled.value * (1 + CORE_GAIN * filled.core)
    voxels = signal.reshape(-1)
    tissue = voxels[filled.voxel]
    voxels[filled.voxel] = tissue + filled.fraction * (blood - tissue)
    return voxels.reshape(signal.shape)


def _tissue(
    capsules: Capsules,
    matrix: np.ndarray,
    offset: np.ndarray,
    size: tuple,
    spacing: tuple,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tissue and intracranial distance (mm) on a coarse grid over the voxels, its steps (mm)."""
    axes = [
        np.linspace(s / 2, (n - 0.5) * s, min(n, max(4, round(n * s / TISSUE_STEP))))
        for n, s in zip(size, spacing, strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    points = (grid - offset.astype(np.float32)) @ np.linalg.inv(matrix).T.astype(np.float32)
    step = np.array([a[1] - a[0] for a in axes])
    tissue, layer = tissue_map(points, step, rng)
    # Wide arteries run in fluid: through cisterns, fissures and the mouths of sulci.
    wide = capsules.end[capsules.radii[:, 1] > SHEATHED]
    index = np.rint((wide - np.asarray(spacing) / 2) / step).astype(int)
    index = index[np.all((index >= 0) & (index < tissue.shape), axis=1)]
    sheath = np.zeros(tissue.shape, bool)
    sheath[tuple(index.T)] = True
    sheath = ndimage.binary_dilation(sheath, iterations=max(1, round(SHEATH / step.mean())))
    tissue[sheath & ((tissue == Tissue.GREY) | (tissue == Tissue.WHITE))] = Tissue.FLUID
    return tissue, layer, step
