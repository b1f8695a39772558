"""Simulated time-of-flight angiograms: a head, its arteries, and what a scanner makes of them.

Contrast is computed, not drawn: spoiled gradient echo signal from T1 and proton density, inflow
from the number of pulses blood has seen since it entered the slab. Repetition time, flip angle,
slabs, coil, noise and anatomy differ from volume to volume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from medpair.data.phantoms import Phantom
from medpair.data.phantoms.capsules import Capsules, centreline_voxels, rasterise
from medpair.data.phantoms.head import (
    HEAD_BOX,
    Tissue,
    intracranial_distance,
    smooth_noise,
    tissue_map,
)
from medpair.data.phantoms.vessel_tree import VesselTree, grow_vessels

__all__ = ["MIN_SIZE", "rician", "vessel_phantom"]

MIN_SIZE = (32, 32, 16)  # voxels

# A voxel is labelled where at least half of it is vessel, and along the centreline of every vessel
# that would fill LABEL_FRACTION of the voxels it runs straight through (radius 0.19 mm at 0.5 x
# 0.5 x 0.7 mm). That much is just visible over the noise. As radii only shrink towards the ends,
# the rule cuts twigs off whole and never leaves dust.
LABEL_HALF, LABEL_FRACTION = 0.5, 0.35

# Pose of the head (standard deviations) and where the field of view lies.
HEAD_SCALE_SD = 0.04
TILT_SD = np.deg2rad([7.0, 3.0, 3.0])  # nodding, leaning, turning
ANCHOR_RADIUS = 0.45  # mm: a field of view is laid around a point on an artery at least so wide
P_CENTRAL, CENTRAL_REACH = 0.6, 28.0  # how often, and mm around the circle of Willis
CIRCLE = np.array([0.0, 0.0, -16.0])
ANCHOR_SHIFT = 0.3  # largest distance of that point from the centre, in parts of the extent

SHEATHED, SHEATH = 0.5, 2.0  # mm: arteries at least so wide (radius) have so much fluid around
TISSUE_STEP = 1.0  # mm: tissue is computed on this grid; its contrasts are low, its edges soft

# (T1 in ms at 3 T, proton density): Stanisz et al. 2005 for white, grey, muscle; CSF and fat as
# usually quoted. Bone and air give no signal at echo times of 3 ms; diploe is part fat.
RELAXATION = {
    Tissue.AIR: (1000.0, 0.0),
    Tissue.BONE: (1000.0, 0.04),
    Tissue.MARROW: (420.0, 0.5),
    Tissue.FAT: (380.0, 0.8),
    Tissue.MUSCLE: (1400.0, 0.6),  # lowered for its short T2*
    Tissue.FLUID: (4000.0, 1.0),
    Tissue.GREY: (1600.0, 0.82),
    Tissue.WHITE: (1080.0, 0.7),
    Tissue.MUCOSA: (900.0, 0.75),
    Tissue.VITREOUS: (4200.0, 1.0),
}
BLOOD_T1, BLOOD_DENSITY = 1650.0, 0.85  # Lu et al. 2004
T1_SPREAD = (0.6, 1.05)  # common factor: down to 1.5 T
MT_WHITE, MT_GREY = (0.7, 1.0), (0.78, 1.0)  # left by a magnetisation transfer pulse, if any
REPETITION = (19.0, 30.0)  # ms
FLIP = np.deg2rad((13.0, 22.0))  # ramped pulses (TONE) act like the low end
PATCHINESS = 0.06  # slow variation of tissue signal

# Inflow. By Murray's law flow goes with r^3, so mean velocity with r.
SPEED = (120.0, 260.0)  # mm/s of mean velocity per mm of radius: 25 to 55 cm/s in a carotid
DETOUR = 1.4  # path length over height climbed
SLAB = (22.0, 60.0)  # mm of a slab's height that are kept; single slabs are thicker, more faded
ENTRY = 4.0  # mm of slab below that, discarded
CORE_GAIN = 0.12  # laminar flow: the middle of wide vessels is that much brighter, the wall less

# Coil and receiver.
BIAS_SD, BIAS_SCALE = (0.05, 0.2), 40.0  # of the logarithm; mm
BIAS_STEP = 8  # tissue steps between the points where that slow field is drawn
COIL_GAIN = (0.0, 0.35)  # an array is more sensitive at the skin than at the centre
COIL_REACH = 35.0  # mm over which that gain falls by e
BLUR = (0.15, 0.6)  # point spread, standard deviation in voxels
NOISE = (0.012, 0.04)  # of a channel, in parts of fully relaxed blood
FULL_SCALE = (300.0, 1500.0)  # grey value of fully relaxed blood


@dataclass(frozen=True)
class _Scan:
    """One scanner setting."""

    repetition: float
    flip: float
    t1: float
    speed: float
    slab: float
    slab_start: float


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
    vessels_rng, pose_rng, tissue_rng, scan_rng, noise_rng = streams
    tree = grow_vessels(vessels_rng)
    rotation, offset = _pose(tree, size, spacing, pose_rng)
    scan = _draw_scan(scan_rng)
    capsules = _capsules(tree, rotation, offset).inside(np.multiply(size, spacing))
    blood = _blood_signal(capsules, scan)
    flat, fraction, value = rasterise(capsules, blood, size, spacing, CORE_GAIN)
    label = _label(capsules, flat, fraction, size, spacing)
    signal, roi, coil = _tissue_signal(
        capsules, rotation, offset, size, spacing, scan, tissue_rng
    )
    voxels = signal.reshape(-1)
    voxels[flat] += (fraction * (value - voxels[flat])).astype(np.float32)
    return Phantom(_acquire(signal, coil, scan_rng, noise_rng), label, roi, spacing)


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
    wide = tree.points[
        (tree.radius > ANCHOR_RADIUS) & (intracranial_distance(tree.points) < -2) & ~tree.bridge
    ]
    central = wide[np.linalg.norm(wide - CIRCLE, axis=1) < CENTRAL_REACH]
    pool = central if rng.random() < P_CENTRAL else wide
    anchor = pool[rng.integers(len(pool))] @ matrix.T
    extent = np.multiply(size, spacing)
    centre = anchor + rng.uniform(-ANCHOR_SHIFT, ANCHOR_SHIFT, 3) * extent
    # Keep to the head: centred on it where it fits, within it where it does not.
    slack = (HEAD_BOX[:, 1] - HEAD_BOX[:, 0] - extent) / 2
    middle = HEAD_BOX.mean(1)
    low, high = middle - np.maximum(slack, 0), middle + np.maximum(slack, 0)
    return matrix, extent / 2 - np.clip(centre, low, high)


def _draw_scan(rng: np.random.Generator) -> _Scan:
    slab = float(rng.uniform(*SLAB))
    return _Scan(
        repetition=float(rng.uniform(*REPETITION)),
        flip=float(rng.uniform(*FLIP)),
        t1=float(rng.uniform(*T1_SPREAD)),
        speed=float(rng.uniform(*SPEED)),
        slab=slab,
        slab_start=float(rng.uniform(0, slab)),
    )


def _capsules(tree: VesselTree, matrix: np.ndarray, offset: np.ndarray) -> Capsules:
    points = tree.points @ matrix.T + offset
    edge = np.flatnonzero(tree.parent >= 0)
    radii = np.stack([tree.start_radius[edge], tree.radius[edge]], 1)
    return Capsules(points[tree.parent[edge]], points[edge], radii)


def _steady(t1: float, scan: _Scan) -> float:
    """Longitudinal magnetisation a spoiled gradient echo leaves after many pulses, of 1."""
    decay = np.exp(-scan.repetition / (t1 * scan.t1))
    return float((1 - decay) / (1 - np.cos(scan.flip) * decay))


def _blood_signal(capsules: Capsules, scan: _Scan) -> np.ndarray:
    """Signal (N,) of the blood in each capsule, in parts of fully relaxed blood.

    Each pulse leaves cos(flip) of the magnetisation: after n of them it has come from 1 to
    steady + (1 - steady) (cos(flip) E1)^n, where n = path in the slab / velocity / TR.
    """
    radius = capsules.radii.mean(1)
    height = (capsules.start[:, 2] + capsules.end[:, 2]) / 2
    path = DETOUR * (ENTRY + (height - scan.slab_start) % scan.slab)
    pulses = path / (scan.speed * radius) / (scan.repetition / 1000)
    decay = np.exp(-scan.repetition / (BLOOD_T1 * scan.t1))
    steady = _steady(BLOOD_T1, scan)
    return steady + (1 - steady) * (np.cos(scan.flip) * decay) ** pulses


def _label(
    capsules: Capsules, flat: np.ndarray, fraction: np.ndarray, size: tuple, spacing: tuple
) -> np.ndarray:
    """Vessels, by the rule at LABEL_HALF."""
    label = np.zeros(size, np.uint8)
    label.reshape(-1)[flat[fraction >= LABEL_HALF]] = 1
    x, y, z = spacing
    face = (x * y + y * z + z * x) / 3
    visible = capsules.radii.mean(1) >= np.sqrt(LABEL_FRACTION * face / np.pi)
    wide = Capsules(capsules.start[visible], capsules.end[visible], capsules.radii[visible])
    label.reshape(-1)[centreline_voxels(wide, size, spacing)] = 1
    return label


def _tissue_table(scan: _Scan, rng: np.random.Generator) -> np.ndarray:
    """Signal of every tissue, in parts of fully relaxed blood."""
    table = np.zeros(len(Tissue), np.float32)
    for tissue, (t1, density) in RELAXATION.items():
        table[tissue] = density / BLOOD_DENSITY * _steady(t1, scan)
    table[Tissue.WHITE] *= rng.uniform(*MT_WHITE)
    table[Tissue.GREY] *= rng.uniform(*MT_GREY)
    return table


def _coarse_head(
    capsules: Capsules,
    matrix: np.ndarray,
    offset: np.ndarray,
    size: tuple,
    spacing: tuple,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Tissue and intracranial distance (mm) on a grid of about TISSUE_STEP over the same voxels."""
    pitch = np.asarray(spacing)
    axes = [
        np.linspace(s / 2, (n - 0.5) * s, max(4, round(n * s / TISSUE_STEP)))
        for n, s in zip(size, spacing, strict=True)
    ]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).astype(np.float32)
    points = (grid - offset.astype(np.float32)) @ np.linalg.inv(matrix).T.astype(np.float32)
    tissue, layer = tissue_map(points, TISSUE_STEP, rng)
    # Wide arteries run in fluid: through cisterns, fissures and the mouths of sulci.
    last = np.multiply(size, pitch) - pitch / 2
    wide = capsules.end[capsules.radii[:, 1] > SHEATHED]
    index = np.rint((wide - pitch / 2) / (last - pitch / 2) * (np.array(tissue.shape) - 1))
    index = index[np.all((index >= 0) & (index < tissue.shape), axis=1)].astype(int)
    sheath = np.zeros(tissue.shape, bool)
    sheath[tuple(index.T)] = True
    sheath = ndimage.binary_dilation(sheath, iterations=round(SHEATH / TISSUE_STEP))
    tissue[sheath & ((tissue == Tissue.GREY) | (tissue == Tissue.WHITE))] = Tissue.FLUID
    return tissue, layer


def _tissue_signal(
    capsules: Capsules,
    matrix: np.ndarray,
    offset: np.ndarray,
    size: tuple,
    spacing: tuple,
    scan: _Scan,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signal without arteries (float32), roi (uint8) and the sensitivity of the coil (float32)."""
    tissue, layer = _coarse_head(capsules, matrix, offset, size, spacing, rng)
    signal = _tissue_table(scan, rng)[tissue]
    signal *= 1 + PATCHINESS * smooth_noise(rng, signal.shape, 3.0 / TISSUE_STEP)
    swell = smooth_noise(rng, tuple(n // BIAS_STEP + 4 for n in layer.shape), BIAS_SCALE / BIAS_STEP)
    swell = _resized(swell, layer.shape)
    coil = rng.uniform(*BIAS_SD) * swell + rng.uniform(*COIL_GAIN) * np.exp(
        np.minimum(layer, 0) / COIL_REACH
    )
    roi = (_resized(layer, size) < 0).astype(np.uint8)
    return _resized(signal, size), roi, _resized(np.exp(coil), size)


def _resized(field: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A field on another grid that spans the same points, linearly interpolated."""
    factors = [n / m for n, m in zip(size, field.shape, strict=True)]
    return ndimage.zoom(field, factors, order=1, mode="nearest")


def rician(signal: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of a signal with Gaussian noise of ``sigma`` in both channels, same shape."""
    real = signal + sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = sigma * rng.standard_normal(signal.shape, dtype=np.float32)
    return np.hypot(real, imaginary)


def _acquire(
    signal: np.ndarray,
    coil: np.ndarray,
    scan_rng: np.random.Generator,
    noise_rng: np.random.Generator,
) -> np.ndarray:
    """What the scanner stores: int16, of a signal in parts of fully relaxed blood."""
    seen = ndimage.gaussian_filter(signal, scan_rng.uniform(*BLUR), truncate=3.0) * coil
    image = rician(seen, float(scan_rng.uniform(*NOISE)), noise_rng)
    return np.rint(image * scan_rng.uniform(*FULL_SCALE)).astype(np.int16)
