"""Simulated CT of the thorax: lungs, heart, oesophagus, trachea, spinal cord, body.

`thorax_anatomy` says where the organs are, `thorax_bones` paints the skeleton, `lung_vessels` the
branching inside the lungs. Whatever the grid, the field of view holds a whole thorax.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from medpair.data.phantoms import Phantom
from medpair.data.phantoms.head import smooth_noise
from medpair.data.phantoms.lung_vessels import paint_lung_vessels
from medpair.data.phantoms.shapes import (
    Pose,
    Space,
    checked,
    coverage,
    ellipsoid,
    keep_largest,
    paint,
    posed_space,
    tube,
)
from medpair.data.phantoms.thorax_anatomy import (
    EXTENT,
    Chest,
    chest,
    cord_course,
    least_radius,
)
from medpair.data.phantoms.thorax_bones import draw_bones, paint_bones
from medpair.data.phantoms.thorax_build import Build, draw_build
from medpair.data.sampling import numpy_generator

__all__ = ["THORAX_GROUPS", "THORAX_LABELS", "thorax_phantom"]

THORAX_LABELS = {
    "background": 0,
    "left_lung": 1,
    "right_lung": 2,
    "heart": 3,
    "oesophagus": 4,
    "trachea": 5,
    "spinal_cord": 6,
    "body": 7,
}
# what is large enough to be seen at 10 mm and more
THORAX_GROUPS = {
    "large_organs": {
        "1": {"name": "lungs", "values": [1, 2]},
        "2": {"name": "heart", "values": [3]},
        "3": {"name": "body", "values": [4, 5, 6, 7]},
    }
}
CORD_RADIUS = 5.5  # mm
COUNTER = 11  # of this kind of phantom: its volumes share no random numbers with another's

# Pose (standard deviations), bending (mm); a field of view higher or flatter than the standard is
# filled up to these factors of height over width, beyond which more air, or less body, is shown.
SCALE_SD, TILT_SD = np.array([0.03, 0.03, 0.03]), np.deg2rad([2.0, 2.0, 3.0])
SHIFT_SD, BEND = np.array([4.0, 5.0, 4.0]), (2.0, 4.5)
HEIGHT = (0.7, 1.4)

# CT numbers (HU): ranges of what differs between people and scans.
AIR, FAT, SKIN, MUSCLE = -1000.0, -100.0, 20.0, 52.0
BLOOD, WALL, CORD, LIVER, SPLEEN, STOMACH = (36.0, 52.0), 52.0, 38.0, (40.0, 68.0), 48.0, 15.0
OESOPHAGUS = (22.0, 38.0)
LUNG = (-880.0, -815.0)
LUNG_SLOPE = 35.0  # HU that the lung is denser behind than in front, where it hangs
LAYER = 13.0  # mm from one sheet of fat between muscles to the next
P_AIR = 0.45  # how often there is air in the oesophagus
NOISE = (9.0, 28.0)  # HU, standard deviation
BLUR = (0.3, 0.65)  # point spread, voxels


def thorax_phantom(
    size: tuple[int, int, int] = (128, 128, 96),
    seed: int = 0,
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0),
) -> Phantom:
    """One simulated CT of a thorax; labels as in `THORAX_LABELS`, the body as roi.

    size: voxels (W, H, D), at least 16 each; spacing: mm. The image is in HU. The body is scaled
    to the field of view. The same arguments give the same arrays. Raises ValueError for sizes,
    spacings or seeds it cannot use.
    """
    size, spacing = checked(size, spacing, seed)
    pose_rng, build_rng, vessel_rng, tissue_rng, scan_rng = (
        numpy_generator(COUNTER, seed, stream) for stream in range(5)
    )
    space = _space(size, spacing, pose_rng)
    build, bones = draw_build(build_rng), draw_bones(build_rng)
    parts = chest(space, build)
    image = np.full(size, AIR, np.float32)
    _paint_wall(image, parts, space, tissue_rng)
    _paint_abdomen(image, parts, space, build, tissue_rng)
    _paint_mediastinum(image, parts, space, tissue_rng)
    paint_bones(image, space, parts, bones)
    cord = tube(space, cord_course(build), max(CORD_RADIUS, least_radius(space)), 8.0)
    paint(image, coverage(cord, space.pitch), CORD)
    _paint_lungs(image, parts, space, build, vessel_rng)
    _paint_airways(image, parts, space, tissue_rng)
    label = _label(parts, cord, space, build)
    return Phantom(_scan(image, scan_rng), label, (label > 0).astype(np.uint8), spacing)


def _space(size: tuple, spacing: tuple, rng: np.random.Generator) -> Space:
    """Lay the grid over the standard body so that this fills it."""
    extent = np.multiply(size, spacing)
    across = float(np.min(extent[:2] / EXTENT[:2]))
    up = across * np.clip(extent[2] / EXTENT[2] / across, *HEIGHT)
    pose = Pose(
        scale=1 + np.clip(SCALE_SD * rng.standard_normal(3), -0.06, 0.045),
        tilt=np.clip(TILT_SD * rng.standard_normal(3), -2 * TILT_SD, 2 * TILT_SD),
        shift=np.clip(SHIFT_SD * rng.standard_normal(3), -2 * SHIFT_SD, 2 * SHIFT_SD),
        bend=float(rng.uniform(*BEND)),
    )
    step = np.divide(spacing, [across, across, up])
    return posed_space(size, np.zeros(3), step, pose, rng)


def _paint_wall(image: np.ndarray, parts: Chest, space: Space, rng: np.random.Generator) -> None:
    """Skin, fat with septa, muscles with sheets of fat between."""
    step = space.pitch
    texture = smooth_noise(rng, space.shape, 7.0 / space.step)
    paint(image, coverage(parts.body, step), SKIN)
    paint(image, coverage(parts.body + 2, step), FAT + 6 * texture)
    sheets = np.abs((parts.muscle + 5 * texture) % LAYER - LAYER / 2) < 0.5
    muscle = np.where(sheets & (texture > -0.5), FAT + 40, MUSCLE + 4 * texture)
    paint(image, coverage(parts.muscle, step), muscle)


def _paint_abdomen(
    image: np.ndarray, parts: Chest, space: Space, build: Build, rng: np.random.Generator
) -> None:
    """What shows under the diaphragm: liver, stomach with its bubble, spleen, fat."""
    step = space.pitch
    inside = np.maximum(parts.cage + 3, parts.diaphragm + 3)
    paint(image, coverage(inside - 3, step), MUSCLE)
    paint(image, coverage(inside, step), FAT)
    liver_hu, (liver, stomach, spleen) = float(rng.uniform(*LIVER)), build.organs
    organs = (
        (np.add(liver, (62, 12, -140)), (92, 92, 84), liver_hu),
        (np.add(spleen, (-62, -46, -134)), (44, 36, 46), SPLEEN),
        (np.add(stomach, (-52, 24, -138)), (46, 46, 52), STOMACH),
    )
    for centre, axes, value in organs:
        organ = np.maximum(ellipsoid(space, centre, axes), inside + 1)
        paint(image, coverage(organ, step), value)
        if value == STOMACH:  # lying on the back, its air is in front
            level = float(rng.uniform(20, 55))
            paint(image, coverage(np.maximum(organ + 5, level - space.y), step), AIR)


def _paint_mediastinum(
    image: np.ndarray, parts: Chest, space: Space, rng: np.random.Generator
) -> None:
    """Fat, heart, great vessels, oesophagus."""
    step, blood = space.pitch, float(rng.uniform(*BLOOD))
    above = np.maximum(parts.cage, -parts.diaphragm)
    stranded = 12 * smooth_noise(rng, space.shape, 4.0 / space.step)
    paint(image, coverage(above, step), FAT + 25 + stranded)
    paint(image, coverage(parts.vessels, step), blood)
    paint(image, coverage(parts.heart, step), WALL)
    # Fat in the groove between atria and ventricles, and blood in the chambers.
    groove = np.abs(parts.ventricles - parts.atria) - 4
    groove = np.maximum(groove, np.maximum(parts.heart, -9 - parts.heart))
    paint(image, coverage(groove, step), FAT + 50)
    paint(image, coverage(np.minimum(parts.ventricles + 12, parts.atria + 4), step), blood)
    hollow = float(rng.uniform(*OESOPHAGUS))
    paint(image, coverage(parts.oesophagus, step), hollow)
    if rng.random() < P_AIR:
        lumen = np.maximum(parts.oesophagus + 4.5, np.abs(space.z - rng.uniform(-60, 120)) - 28)
        paint(image, coverage(lumen, step), AIR)


def _paint_lungs(
    image: np.ndarray, parts: Chest, space: Space, build: Build, rng: np.random.Generator
) -> None:
    """Air and tissue, denser behind, and the vessels in it."""
    texture = smooth_noise(rng, space.shape, 1.3 * np.maximum(1, 3 / space.step))
    level = float(rng.uniform(*LUNG)) - LUNG_SLOPE * np.clip(space.y / 90, -1, 1)
    share = coverage(parts.lungs, space.pitch)
    paint(image, share, level + 16 * texture)
    paint_lung_vessels(image, share, parts, space, build, rng)


def _paint_airways(image: np.ndarray, parts: Chest, space: Space, rng: np.random.Generator) -> None:
    """Trachea and main bronchi with their walls."""
    step = space.pitch
    airway = np.minimum(parts.trachea, parts.bronchi)
    paint(image, coverage(airway - 1.8, step), float(rng.uniform(30, 70)))
    paint(image, coverage(airway, step), AIR)


def _label(parts: Chest, cord: np.ndarray, space: Space, build: Build) -> np.ndarray:
    """Label map (uint8): each organ in one piece, each painted over those before."""
    label = np.zeros(space.shape, np.uint8)
    values = THORAX_LABELS
    label[parts.body < 0] = values["body"]
    keep_largest(label, values["body"], values["background"])
    inside = label > 0
    label[(parts.lungs < 0) & inside] = values["right_lung"]
    label[(parts.lungs < 0) & inside & (parts.middle < 0)] = values["left_lung"]
    label[(parts.heart < 0) & inside] = values["heart"]
    label[(parts.oesophagus < 0) & inside] = values["oesophagus"]
    airway = np.minimum(parts.trachea, parts.bronchi)
    label[(airway < 0) & (space.z > build.carina - 12) & inside] = values["trachea"]
    label[(cord < 0) & inside] = values["spinal_cord"]
    for name in ("left_lung", "right_lung", "heart", "oesophagus", "trachea", "spinal_cord"):
        keep_largest(label, values[name], values["body"])
    return label


def _scan(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What the scanner stores, int16: point spread and noise that is correlated a little."""
    seen = ndimage.gaussian_filter(image, float(rng.uniform(*BLUR)), truncate=3.0)
    noise = ndimage.gaussian_filter(rng.standard_normal(image.shape, dtype=np.float32), 0.5)
    seen += float(rng.uniform(*NOISE)) / max(float(noise.std()), 1e-6) * noise
    return np.rint(np.clip(seen, -1024, 3071)).astype(np.int16)
