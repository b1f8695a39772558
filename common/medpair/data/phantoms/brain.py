"""Simulated T1-weighted MRI of a head: deep grey matter, white matter, fluid, cortex.

`head` says what lies around the brain, `brain_anatomy` what is in it. Whatever the grid, the field
of view holds a whole head.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medpair.data.phantoms import Phantom
from medpair.data.phantoms.brain_anatomy import Brain, brain, draw_brain
from medpair.data.phantoms.head import Tissue, tissue_map
from medpair.data.phantoms.shapes import (
    Pose,
    Space,
    checked,
    coverage,
    merge_specks,
    paint,
    posed_space,
    swell,
)
from medpair.data.phantoms.tof import rician
from medpair.data.sampling import numpy_generator

__all__ = ["BRAIN_LABELS", "brain_phantom"]

BRAIN_LABELS = {"background": 0, "subcortical": 1, "white_matter": 2, "csf": 3, "cortex": 4}
COUNTER = 12  # of this kind of phantom: its volumes share no random numbers with another's

# The head in a field of view: mm that this must hold and its middle; how much a head is stretched
# at most to fill one of other proportions; pose (standard deviations), bending (mm).
EXTENT, MIDDLE = np.array([183.0, 228.0, 240.0]), np.array([0.0, -16.0, -17.0])
STRETCH = 1.15
SCALE_SD, TILT_SD = np.array([0.03, 0.03, 0.03]), np.deg2rad([5.0, 3.0, 3.0])
SHIFT_SD, BEND = np.array([2.5, 4.0, 4.0]), (1.0, 2.5)

# Signal by tissue, in parts of white matter's: the mean and by how much volumes differ.
SIGNAL = {
    Tissue.AIR: (0.0, 0.0),
    Tissue.BONE: (0.1, 0.03),
    Tissue.MARROW: (0.75, 0.15),
    Tissue.FAT: (1.2, 0.15),
    Tissue.MUSCLE: (0.5, 0.06),
    Tissue.FLUID: (0.22, 0.04),
    Tissue.GREY: (0.64, 0.03),
    Tissue.WHITE: (1.0, 0.0),
    Tissue.MUCOSA: (0.55, 0.08),
    Tissue.VITREOUS: (0.2, 0.03),
}
# The same between cortex and white matter (0 to 1): iron and fibres brighten the deep nuclei.
THALAMUS, STRIATUM, PALLIDUM, STEM = (0.5, 0.08), (0.2, 0.06), (0.65, 0.08), (0.9, 0.03)
BIAS_SD, BIAS_SCALE = (0.04, 0.14), 60.0  # of the logarithm; mm
PATCHINESS, PATCH = 0.02, 5.0  # slow variation of tissue signal, and the mm it takes
BLUR = (0.25, 0.5)  # point spread, voxels
NOISE = (0.012, 0.04)  # of white matter's signal
FULL_SCALE = (250.0, 1800.0)  # grey value of white matter: scanners differ


def brain_phantom(
    size: tuple[int, int, int] = (90, 120, 120),
    seed: int = 0,
    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0),
) -> Phantom:
    """One simulated T1-weighted head; labels as in `BRAIN_LABELS`, the head as roi.

    size: voxels (W, H, D), at least 16 each; spacing: mm. The head is scaled to the field of view.
    The same arguments give the same arrays. Raises ValueError for sizes, spacings or seeds it
    cannot use.
    """
    size, spacing = checked(size, spacing, seed)
    pose_rng, build_rng, head_rng, fold_rng, scan_rng = (
        numpy_generator(COUNTER, seed, stream) for stream in range(5)
    )
    space = _space(size, spacing, pose_rng)
    points = np.stack([space.x, space.y, space.z], -1)
    tissue, layer = tissue_map(points, space.step, head_rng)
    box = ndimage.find_objects((layer < 4).astype(np.uint8))[0]
    inner, cavity = space.crop(box), layer[box]
    parts = brain(inner, cavity, draw_brain(build_rng), fold_rng)
    table = _signals(scan_rng)
    image = ndimage.gaussian_filter(table[tissue], 0.5, truncate=3.0)
    label = np.zeros(size, np.uint8)
    label[box] = _label(parts, cavity)
    inside = _brain_signal(parts, label[box], inner, table, scan_rng)
    image[box] += coverage(cavity, space.pitch) * (inside - image[box])
    head = ndimage.binary_fill_holes(tissue != Tissue.AIR)
    return Phantom(_scan(image, space, scan_rng), label, head.astype(np.uint8), spacing)


def _space(size: tuple, spacing: tuple, rng: np.random.Generator) -> Space:
    """Lay the grid over the standard head so that this fills it."""
    fit = np.multiply(size, spacing) / EXTENT
    fit = np.minimum(fit, STRETCH * fit.min())
    pose = Pose(
        scale=0.985 + np.clip(SCALE_SD * rng.standard_normal(3), -0.06, 0.045),
        tilt=np.clip(TILT_SD * rng.standard_normal(3), -2 * TILT_SD, 2 * TILT_SD),
        shift=np.clip(SHIFT_SD * rng.standard_normal(3), -2 * SHIFT_SD, 2 * SHIFT_SD),
        bend=float(rng.uniform(*BEND)),
    )
    return posed_space(size, MIDDLE, np.divide(spacing, fit), pose, rng)


def _signals(rng: np.random.Generator) -> np.ndarray:
    """Signal of every tissue (float32, by the values of `Tissue`)."""
    table = np.zeros(len(Tissue), np.float32)
    for tissue, (mean, spread) in SIGNAL.items():
        table[tissue] = mean + spread * rng.uniform(-1, 1)
    return table


def _brain_signal(
    parts: Brain, label: np.ndarray, space: Space, table: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Signal within the cavity (W, H, D): each tissue by the share it has of a voxel."""
    step = space.pitch
    fluid, grey, white = (table[t] for t in (Tissue.FLUID, Tissue.GREY, Tissue.WHITE))
    image = np.full(space.shape, fluid, np.float32)
    paint(image, coverage(-parts.pia, step), grey)
    core = coverage(parts.cortex - parts.pia, step)
    core[label == BRAIN_LABELS["cortex"]] *= 0.5  # gyri whose core no longer counts as white matter
    paint(image, core, white)
    for part, (mean, spread) in (
        (parts.white, STEM),
        (np.minimum(parts.deep.thalamus, parts.deep.adhesion), THALAMUS),
        (parts.deep.striatum, STRIATUM),
        (parts.deep.pallidum, PALLIDUM),
    ):
        value = grey + (mean + spread * rng.uniform(-1, 1)) * (white - grey)
        paint(image, coverage(part, step), value)
    image *= 1 + PATCHINESS * swell(space.step, space.shape, PATCH, rng)
    ventricles = np.maximum(parts.ventricles, -parts.deep.adhesion)
    paint(image, coverage(ventricles, step), fluid)
    return image


def _label(parts: Brain, cavity: np.ndarray) -> np.ndarray:
    """Label map (uint8) of the cavity, each class in one piece, corners counted as touching."""
    values = BRAIN_LABELS
    label = np.full(cavity.shape, values["csf"], np.uint8)
    label[parts.pia > 0] = values["cortex"]
    label[parts.pia > parts.cortex] = values["white_matter"]
    label[parts.white < 0] = values["white_matter"]
    deep = parts.deep
    nuclei = np.minimum(np.minimum(deep.thalamus, deep.striatum), deep.pallidum)
    label[nuclei < 0] = values["subcortical"]
    label[parts.ventricles < 0] = values["csf"]
    label[deep.adhesion < 0] = values["subcortical"]
    label[cavity > 0] = values["background"]
    merge_specks(label, (1, 2, 3, 4))
    return label


def _scan(image: np.ndarray, space: Space, rng: np.random.Generator) -> np.ndarray:
    """What the scanner stores, int16: point spread, uneven coil, noise, a scale of its own."""
    seen = ndimage.gaussian_filter(image, float(rng.uniform(*BLUR)), truncate=3.0)
    bias = float(rng.uniform(*BIAS_SD)) * swell(space.step, space.shape, BIAS_SCALE, rng)
    signal = rician(seen * np.exp(bias), float(rng.uniform(*NOISE)), rng)
    return np.rint(signal * float(rng.uniform(*FULL_SCALE))).astype(np.int16)
