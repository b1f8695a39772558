"""The virtual head: the shape of brain, skull and skin, and which tissue is where.

Coordinates are mm, RAS, with the origin where the MNI152 space has it (the anterior commissure),
so that landmarks can be read off any atlas. Shapes are signed distances (negative inside), joined
by smooth minima: cheap, smooth, and good for "a layer 9 mm outside the brain".
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from scipy import ndimage

__all__ = [
    "HEAD_BOX",
    "SCALP_DEPTH",
    "SKIN",
    "Tissue",
    "cerebellum_distance",
    "head_distance",
    "intracranial_distance",
    "smooth_noise",
    "tissue_map",
]

# Everything of interest lies in this box (mm): the field of view is kept inside it when it fits.
HEAD_BOX = np.array([[-80.0, 80.0], [-118.0, 84.0], [-80.0, 86.0]])

# Layers outside the intracranial cavity, as distances from it in mm: an adult skull is 6 to 7 mm
# thick with a marrow-filled diploe in the middle, the scalp about 5 mm, most of it fat.
INNER_TABLE, DIPLOE, OUTER_TABLE, SCALP_FAT, SKIN = 1.5, 5.0, 6.5, 10.5, 12.0
SCALP_DEPTH = 3.5  # mm under the skin, in the fat, run the arteries of the scalp

# Ellipsoids (centre, semi-axes; mm) after the MNI152 brain: 136 x 175 mm, top at +76, temporal
# poles at about -40, cerebellum down to -62. |x| is used, so one temporal lobe stands for two.
_CEREBRUM = ((0.0, -17.0, 10.0), (68.0, 87.0, 66.0))
_CEREBRUM_FLOOR = 34.0  # semi-axis below its centre: the floor of the anterior fossa is flat
_TEMPORAL = ((40.0, -10.0, -20.0), (25.0, 40.0, 21.0))
_CEREBELLUM = ((0.0, -62.0, -34.0), (52.0, 34.0, 27.0))
_BRAINSTEM = ((0.0, -30.0, -38.0), (15.0, 14.0, 42.0))
_CISTERN = ((0.0, 2.0, -16.0), (14.0, 13.0, 8.0))  # suprasellar: holds the circle of Willis
_VAULT = ((0.0, -17.0, 4.0), (80.0, 99.0, 84.0))  # of the skin: it bridges the hollows of the skull
_FACE = ((0.0, 28.0, -62.0), (58.0, 56.0, 66.0))
_NECK = ((0.0, -28.0), (56.0, 56.0))  # an upright elliptic cylinder below _NECK_TOP
_NECK_TOP = -35.0
_BLEND = 6.0  # mm over which two shapes melt into each other

# Cavities of the skull base (|x| again): centre, semi-axes, mm.
_EYE = ((32.0, 60.0, -38.0), (12.0, 12.0, 12.0))
_ORBIT = ((29.0, 50.0, -38.0), (17.0, 24.0, 16.0))
_SPHENOID_SINUS = ((0.0, 16.0, -38.0), (9.0, 12.0, 9.0))
_NASAL = ((0.0, 46.0, -52.0), (14.0, 28.0, 22.0))
_MAXILLARY_SINUS = ((30.0, 46.0, -70.0), (13.0, 15.0, 14.0))
_MASTOID = ((50.0, -32.0, -48.0), (9.0, 13.0, 14.0))
_CLIVUS = ((0.0, -10.0, -42.0), (12.0, 7.0, 14.0))
_LATERAL_VENTRICLE = ((11.0, -14.0, 20.0), (7.0, 34.0, 9.0))
_THIRD_VENTRICLE = ((0.0, -14.0, 0.0), (2.0, 13.0, 10.0))

# Folding of the cortex. A sulcus is where a smooth random field crosses zero: thin winding sheets.
_SULCUS_SCALE = 3.8  # mm, correlation length of that field: gyri come out about 10 mm wide
_SULCUS_DEPTH = 20.0  # mm below the surface where folding ends
_SULCUS_WIDTH, _CORTEX_WIDTH = 0.16, 0.6  # |field| below which it is fluid, below which cortex
_CISTERN_FLUID = 1.2  # the same in the cistern: most of it is fluid, chiasm and stalk are not
_SURFACE_FLUID, _SURFACE_CORTEX = 1.5, 4.5  # mm of fluid, then of cortex, under the inner table
_FISSURE = 1.0  # mm, half the width of the fissure between the hemispheres
_STEM_FLUID = 2.5  # mm either side of the brainstem's surface; the cistern around it
_STEM_TOP, _FISSURE_FLOOR = -8.0, 8.0  # mm (z): above lies the midbrain, below the corpus callosum
# Face and neck: where a smooth random field is small lies a sheet of fat between muscles, or of
# mucosa between the air of the nose; where it is large, bone without marrow.
_FASCIA_SCALE, _FASCIA_WIDTH, _TURBINATE_WIDTH, _SOLID = 4.0, 0.25, 0.5, -0.6
_LINING = 1.5  # mm of mucosa in a sinus
_TEMPLE = ((45.0, 12.0, 25.0), 38.0)  # temporal muscle: lateral, about y, below z; half its length
_LIMITS_SCALE = 8.0  # mm over which it changes
_LIMITS = 0.8  # mm, standard deviation of the wobble of every layer's thickness


class Tissue(IntEnum):
    """What a point of the head is made of."""

    AIR = 0
    BONE = 1
    MARROW = 2
    FAT = 3
    MUSCLE = 4
    FLUID = 5
    GREY = 6
    WHITE = 7
    MUCOSA = 8
    VITREOUS = 9


def _ellipsoid(p: np.ndarray, shape: tuple) -> np.ndarray:
    """Distance (mm, first-order) to an ellipsoid, from points (..., 3)."""
    centre, axes = (np.asarray(v, np.float32) for v in shape)
    q = (p - centre) / axes
    inner = np.sqrt(np.einsum("...i,...i->...", q, q)) + 1e-4
    slope = np.sqrt(np.einsum("...i,...i->...", q / axes, q / axes)) + 1e-6
    return inner * (inner - 1.0) / slope


def _union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Smooth minimum of two distances (mm)."""
    overlap = np.maximum(_BLEND - np.abs(a - b), 0.0)
    return np.minimum(a, b) - overlap * overlap / (4.0 * _BLEND)


def _mirrored(points: np.ndarray) -> np.ndarray:
    p = np.array(points, np.float32)
    p[..., 0] = np.abs(p[..., 0])
    return p


def cerebellum_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance (mm) from points (..., 3) to the cerebellum."""
    return _ellipsoid(np.asarray(points, np.float32), _CEREBELLUM)


def intracranial_distance(points: np.ndarray) -> np.ndarray:
    """Signed distance (mm) from points (..., 3) to the cavity that holds brain and cisterns."""
    p = _mirrored(points)
    cerebrum = p.copy()
    (_, _, level), (_, _, height) = _CEREBRUM
    below = cerebrum[..., 2] < level
    cerebrum[..., 2] = np.where(
        below, level + (p[..., 2] - level) * (height / _CEREBRUM_FLOOR), p[..., 2]
    )
    distance = _ellipsoid(cerebrum, _CEREBRUM)
    for shape in (_TEMPORAL, _CEREBELLUM, _BRAINSTEM, _CISTERN):
        distance = _union(distance, _ellipsoid(p, shape))
    return distance


def head_distance(points: np.ndarray, intracranial: np.ndarray | None = None) -> np.ndarray:
    """Signed distance (mm) from points (..., 3) to the skin; pass the inner one if it is known."""
    p = _mirrored(points)
    inner = intracranial_distance(p) if intracranial is None else intracranial
    (cx, cy), (ax, ay) = _NECK
    neck = np.hypot((p[..., 0] - cx) / ax, (p[..., 1] - cy) / ay) * min(ax, ay) - min(ax, ay)
    neck = np.maximum(neck, p[..., 2] - _NECK_TOP)
    skin = _union(inner - SKIN, _ellipsoid(p, _VAULT))
    return _union(_union(skin, _ellipsoid(p, _FACE)), neck)


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], scale: np.ndarray | float
) -> np.ndarray:
    """Gaussian noise of unit variance smoothed over ``scale`` voxels (one for all or per axis)."""
    sigma = np.broadcast_to(scale, (len(shape),))
    field = rng.standard_normal(shape, dtype=np.float32)
    field = ndimage.gaussian_filter(field, tuple(sigma), mode="reflect", truncate=3.0)
    # The standard deviation a Gaussian filter leaves is (4 pi s^2)^(-1/4) per axis: not measured
    # on the field, which in a small field of view is a single swell.
    return field * np.float32(np.prod((4.0 * np.pi * sigma**2) ** 0.25))


def tissue_map(points: np.ndarray, step: np.ndarray, rng: np.random.Generator) -> tuple:
    """Tissue (int8, see `Tissue`) and intracranial distance (mm) at a grid of points.

    points: (X, Y, Z, 3) head coordinates in mm, a grid; step: (3,) mm between neighbours.
    """
    shape = points.shape[:3]
    distance = intracranial_distance(points)
    layer = distance + _LIMITS * smooth_noise(rng, shape, _LIMITS_SCALE / step)
    tissue = np.full(shape, Tissue.AIR, np.int8)
    _paint_outside(tissue, points, distance, layer, step, rng)
    _paint_brain(tissue, points, layer, step, rng)
    return tissue, layer


def _paint_outside(
    tissue: np.ndarray,
    points: np.ndarray,
    distance: np.ndarray,
    layer: np.ndarray,
    step: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Fill in skin, scalp, skull, face and neck."""
    p = _mirrored(points)
    skin = head_distance(points, distance) + layer - distance
    # Face and neck: muscle with sheets of fat between, so that bright does not mean vessel.
    planes = smooth_noise(rng, tissue.shape, _FASCIA_SCALE / step)
    tissue[skin < 0] = Tissue.MUSCLE
    tissue[(skin < 0) & (np.abs(planes) < _FASCIA_WIDTH)] = Tissue.FAT
    tissue[(skin < SCALP_FAT - SKIN) & (skin > OUTER_TABLE - SKIN)] = Tissue.FAT
    # The temporal muscle lies between skull and scalp fat at the temples.
    (tx, ty, tz), reach = _TEMPLE
    temple = (p[..., 0] > tx) & (np.abs(p[..., 1] - ty) < reach) & (p[..., 2] < tz)
    tissue[temple & (skin < -SCALP_DEPTH - 1)] = Tissue.MUSCLE
    tissue[_ellipsoid(p, _ORBIT) < 0] = Tissue.FAT
    tissue[_ellipsoid(p, _EYE) < 0] = Tissue.VITREOUS
    nasal = _ellipsoid(p, _NASAL) < 0
    tissue[nasal] = np.where(np.abs(planes[nasal]) < _TURBINATE_WIDTH, Tissue.MUCOSA, Tissue.AIR)
    for shape in (_SPHENOID_SINUS, _MAXILLARY_SINUS):
        sinus = _ellipsoid(p, shape)
        tissue[sinus < _LINING] = Tissue.MUCOSA
        tissue[sinus < 0] = Tissue.AIR
    tissue[(layer < OUTER_TABLE) & (layer > 0)] = Tissue.BONE
    diploe = (layer < DIPLOE) & (layer > INNER_TABLE)
    tissue[diploe & (planes > _SOLID)] = Tissue.MARROW
    tissue[_ellipsoid(p, _CLIVUS) < 0] = Tissue.MARROW
    mastoid = _ellipsoid(p, _MASTOID) < 0
    tissue[mastoid] = np.where(planes[mastoid] > 0, Tissue.BONE, Tissue.AIR)


def _paint_brain(
    tissue: np.ndarray,
    points: np.ndarray,
    layer: np.ndarray,
    step: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Fill in fluid, cortex and white matter."""
    inside = layer < 0
    p = _mirrored(points)
    folds = np.abs(smooth_noise(rng, tissue.shape, _SULCUS_SCALE / step))
    depth = np.minimum(-layer, p[..., 0])  # the medial surface is folded cortex too
    folded = depth < _SULCUS_DEPTH
    brain = np.full(tissue.shape, Tissue.WHITE, np.int8)
    brain[(folded & (folds < _CORTEX_WIDTH)) | (depth < _SURFACE_CORTEX)] = Tissue.GREY
    brain[folded & (folds < _SULCUS_WIDTH)] = Tissue.FLUID
    brain[(-layer < _SURFACE_FLUID) | ((p[..., 0] < _FISSURE) & (p[..., 2] > _FISSURE_FLOOR))] = (
        Tissue.FLUID
    )
    for shape in (_LATERAL_VENTRICLE, _THIRD_VENTRICLE):
        brain[_ellipsoid(p, shape) < 0] = Tissue.FLUID
    brain[(_ellipsoid(p, _CISTERN) < 0) & (folds < _CISTERN_FLUID)] = Tissue.FLUID
    stem = _ellipsoid(p, _BRAINSTEM)
    brain[(stem < -_STEM_FLUID) & (p[..., 2] < _STEM_TOP)] = Tissue.WHITE
    brain[(np.abs(stem) <= _STEM_FLUID) & (p[..., 2] < _STEM_TOP)] = Tissue.FLUID
    tissue[inside] = brain[inside]
