"""Ribs, sternum, spine and shoulder girdle of the virtual thorax, painted in CT numbers.

Bones lie around the cage, whose distance says how deep: each is a distance worked out only where
it can be.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medpair.data.phantoms.shapes import Space, coverage, tube
from medpair.data.phantoms.thorax_anatomy import CANAL, VERTEBRA, Chest

__all__ = ["Bones", "draw_bones", "paint_bones"]

RIB_DEPTH, RIB_HALF = 5.0, (4.0, 6.5)  # mm outside the pleura; half thickness, half height
SAG = 0.3  # mm a rib falls per mm sideways from the spine
STERNUM_DEPTH, STERNUM_HALF = 8.0, 4.5
CANAL_RADIUS, RING = 9.0, 4.0  # mm, of the spinal canal; thickness of its arch
DISC = 3.0  # mm, half the height of a disc
CORTEX = 2.2  # mm of compact bone around the spongy one


@dataclass(frozen=True)
class Bones:
    """What differs between people: mm, slope, CT numbers."""

    spacing: float  # from rib to rib, and from vertebra to vertebra
    phase: float
    slope: float  # mm a rib falls per mm to the front
    compact: float
    spongy: float


def draw_bones(rng: np.random.Generator) -> Bones:
    """Draw a skeleton."""
    return Bones(
        spacing=float(rng.uniform(23, 28)),
        phase=float(rng.uniform(0, 1)),
        slope=float(rng.uniform(0.5, 0.75)),
        compact=float(rng.uniform(500, 900)),
        spongy=float(rng.uniform(120, 300)),
    )


def _wrapped(value: np.ndarray, bones: Bones) -> np.ndarray:
    """mm from the nearest of the levels that repeat up the body."""
    return (value / bones.spacing + bones.phase + 0.5) % 1 * bones.spacing - bones.spacing / 2


def _lay(
    image: np.ndarray, chest: Chest, where: np.ndarray, distance: np.ndarray, bones: Bones
) -> None:
    """Paint bone of given distances at flat indices; none comes near the skin."""
    step = chest.pitch
    distance = np.maximum(distance, chest.body.reshape(-1)[where] + 4)
    value = bones.spongy + (bones.compact - bones.spongy) * coverage(-CORTEX - distance, step)
    voxels = image.reshape(-1)
    voxels[where] += coverage(distance, step) * (value - voxels[where])


def _ribs(image: np.ndarray, space: Space, chest: Chest, bones: Bones) -> None:
    """Ribs, which end in cartilage towards the sternum, and the sternum."""
    where = np.flatnonzero((chest.cage > -3) & (chest.cage < 18))
    x, y, z = (c.reshape(-1)[where] for c in (space.x, space.y, space.z))
    depth = chest.cage.reshape(-1)[where]
    level = _wrapped(z + bones.slope * (y + 88) + SAG * np.abs(x), bones)
    half, high = RIB_HALF
    rib = (np.hypot((depth - RIB_DEPTH) / half, level / high) - 1) * half
    # No ribs below the costal margin, which rises to the front, nor above the first pair.
    margin = np.maximum(y - 46 - 0.7 * (z + 70), z - 132) * 0.8
    rib = np.maximum(rib, np.where(y > 20, np.maximum(margin, -200), z - 132))
    gristle = (y > 20) & (np.abs(x) < 66)
    bone = np.where(gristle, 50.0, rib)
    _lay(image, chest, where, bone, bones)
    voxels = image.reshape(-1)
    step = chest.pitch
    soft = np.where(gristle & (np.abs(x) > 12), rib, 50.0)
    voxels[where] += coverage(soft, step) * (110 - voxels[where])
    breadth = np.where(z > 50, 26.0, 15.0)
    plate = np.maximum(np.abs(depth - STERNUM_DEPTH) - STERNUM_HALF, np.abs(x) - breadth)
    plate = np.maximum(plate, np.abs(z - 14) - 68)
    _lay(image, chest, where, np.where(y > 0, plate, 50.0), bones)


def _spine(image: np.ndarray, space: Space, chest: Chest, bones: Bones) -> None:
    """Vertebral bodies with discs between, arches with their processes, the canal's fluid."""
    step = chest.pitch
    sx, sy = chest.spine
    where = np.flatnonzero((np.abs(sx) < 48) & (np.abs(sy + 16) < 52))
    x, y = sx.reshape(-1)[where], sy.reshape(-1)[where]
    level = _wrapped(space.z.reshape(-1)[where] + bones.slope * 12, bones)
    rise = np.abs(level) - (bones.spacing / 2 - DISC)  # negative within a vertebral body
    waist = 1.5 * np.cos(level * (2 * np.pi / bones.spacing))
    column = (np.hypot(x / VERTEBRA[0], y / VERTEBRA[1]) - 1) * VERTEBRA[1]
    voxels = image.reshape(-1)
    voxels[where] += coverage(column, step) * (90 - voxels[where])
    _lay(image, chest, where, np.maximum(column + waist, rise), bones)
    back = y + CANAL
    canal = np.hypot(x, back) - CANAL_RADIUS
    arch = np.maximum(np.maximum(canal - RING, -canal), np.abs(level + 2) - 0.36 * bones.spacing)
    # Spinous processes point down and back, transverse ones sideways and carry the ribs' heads.
    tip = np.maximum(np.abs(x) - 3, np.abs(back + 22) - 14)
    tip = np.maximum(tip, np.abs(level + 0.6 * (-back - 16)) - 7)
    wing = np.maximum(np.abs(np.abs(x) - 22) - 14, np.abs(back + 0.25 * np.abs(x)) - 4.5)
    wing = np.maximum(wing, np.abs(level) - 6)
    for part in (arch, tip, wing):
        _lay(image, chest, where, np.maximum(part, -canal), bones)
    voxels[where] += coverage(canal, step) * (12 - voxels[where])


def _girdle(image: np.ndarray, space: Space, chest: Chest, bones: Bones) -> None:
    """Shoulder blades and collar bones."""
    where = np.flatnonzero((chest.cage > 8) & (chest.cage < 34) & (space.y < -10))
    x, y, z = (c.reshape(-1)[where] for c in (space.x, space.y, space.z))
    x = np.abs(x)
    plate = np.abs(chest.cage.reshape(-1)[where] - 17 - 0.03 * z) - 2.5
    edge = np.maximum(72 - x - 0.1 * (z - 60), np.abs(z - 70) - 64)
    edge = np.maximum(edge, x - 96 - 0.55 * (z - 10))
    _lay(image, chest, where, np.maximum(np.maximum(plate, edge), y + 18), bones)
    for side in (-1, 1):
        course = [(side * 16, 40, 92), (side * 52, 44, 104), (side * 92, 16, 120)]
        bone = tube(space, np.array([*course, (side * 130, -18, 134)]), 6.0, 6.0)
        where = np.flatnonzero(bone < chest.pitch)
        _lay(image, chest, where, bone.reshape(-1)[where], bones)


def paint_bones(image: np.ndarray, space: Space, chest: Chest, bones: Bones) -> None:
    """Paint all bones into an image (W, H, D) of CT numbers, in place."""
    _girdle(image, space, chest, bones)
    _ribs(image, space, chest, bones)
    _spine(image, space, chest, bones)
