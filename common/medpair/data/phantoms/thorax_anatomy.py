"""The virtual thorax: where chest wall, lungs, heart and the tubes between them are.

Coordinates are mm, RAS (the patient's left has low x): x = 0 in the median plane, z = 0 in the
middle of a field of view 288 mm high, y = 0 in the middle of the chest. Measures are those of an
adult lying on the back, arms up, breath held; `thorax_build` says what differs between people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medpair.data.phantoms.shapes import FAR, Space, ellipsoid, tube, union
from medpair.data.phantoms.thorax_build import Build

__all__ = [
    "CANAL",
    "EXTENT",
    "VERTEBRA",
    "Chest",
    "bronchi_courses",
    "chest",
    "cord_course",
    "least_radius",
]

EXTENT = np.array([396.0, 290.0, 288.0])  # mm of the standard body that a field of view holds

Curve = Sequence[float] | np.ndarray  # values at given heights

# Outlines by height (mm): of the pleura (half width, front, back), of the muscles around it.
_Z = (-150, -100, -50, 0, 40, 80, 105, 122, 134, 150)
_CAGE_WIDTH = (134, 137, 135, 127, 114, 92, 70, 46, 16, 6)
_CAGE_FRONT = (76, 84, 87, 81, 67, 45, 27, 10, -12, -18)
_CAGE_BACK = (-76, -84, -88, -90, -89, -82, -71, -56, -38, -30)
_WALL_WIDTH = (148, 150, 151, 153, 156, 155, 147, 136, 122, 96)
_WALL_FRONT = (92, 100, 105, 103, 92, 76, 62, 52, 46, 42)
_WALL_BACK = (-106, -109, -113, -117, -119, -115, -107, -98, -90, -82)
_SPINE_Z, _SPINE_Y = (-150, -80, -20, 40, 80, 110, 150), (-56, -64, -69, -67, -59, -49, -34)
_TABLE = 4  # entries per mm in the tables that these become

VERTEBRA = (18.0, 14.0)  # half width and half depth of a vertebral body, mm
# Least radius of an upright tube, in voxels: half the diagonal of a voxel's face, so that it meets
# every slice, and half of what it moves sideways from slice to slice, so that these meet.
TUBE_VOXELS = (0.72, 0.25)
CANAL = 23.0  # mm from the middle of a vertebral body back to that of its canal


@dataclass(frozen=True)
class Chest:
    """Distances (W, H, D) in mm, negative inside, of everything that is painted, by name."""

    pitch: float  # mm, edge of a voxel
    body: np.ndarray
    muscle: np.ndarray
    cage: np.ndarray
    lungs: np.ndarray  # both; the median plane at `middle` keeps them apart
    middle: np.ndarray
    diaphragm: np.ndarray  # negative below
    ventricles: np.ndarray
    atria: np.ndarray
    heart: np.ndarray
    vessels: np.ndarray
    trachea: np.ndarray
    bronchi: np.ndarray
    oesophagus: np.ndarray
    spine: tuple[np.ndarray, np.ndarray]  # x and y of the voxels from the axis of the vertebrae


def _profile(values: Curve, z: np.ndarray, knots: tuple = _Z) -> np.ndarray:
    """Values given at heights ``knots``, at heights z (any shape): a smoothed table, looked up."""
    low, high = knots[0] - 60, knots[-1] + 60
    table = np.interp(np.arange(low, high, 1 / _TABLE), knots, values)
    kernel = np.hanning(20 * _TABLE)
    table = np.convolve(np.pad(table, len(kernel), "edge"), kernel / kernel.sum(), "same")
    table = table[len(kernel) : -len(kernel)].astype(np.float32)
    return table[np.clip((z - low) * _TABLE, 0, len(table) - 1).astype(np.int32)]


def _outline(space: Space, width: Curve, front: Curve, back: Curve) -> np.ndarray:
    """Distance to a body whose cross-sections are superellipses of exponent 2.5."""
    a = _profile(width, space.z)
    slope = _profile(np.gradient(np.asarray(width, float), np.asarray(_Z)), space.z)
    b = _profile((np.asarray(front, float) - np.asarray(back, float)) / 2, space.z)
    u = np.abs(space.x) / a
    v = np.abs(space.y - _profile((np.add(front, back)) / 2, space.z)) / b
    su, sv = np.sqrt(u), np.sqrt(v)
    rho = (u * u * su + v * v * sv) ** np.float32(0.4) + np.float32(1e-4)
    steep = np.hypot(u * su / a, v * sv / b) / (rho * np.sqrt(rho)) + np.float32(1e-6)
    return (rho - 1) / steep / np.sqrt(1 + slope * slope)


def spine_axis(build: Build, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """x and y (mm) of the middle of the vertebral bodies at heights z."""
    y = np.asarray(_SPINE_Y, float)
    y = y.mean() + (y - y.mean()) * (0.6 + 0.4 * build.kyphosis)
    amplitude, phase = build.scoliosis
    sway = amplitude * np.sin(np.asarray(_SPINE_Z) / 60 + phase)
    return _profile(sway, z, _SPINE_Z), _profile(y, z, _SPINE_Z)


def _along_spine(build: Build, z: np.ndarray, x: object, ahead: object) -> np.ndarray:
    """Points (K, 3) at heights z, so many mm right of and before the front of the spine."""
    sx, sy = spine_axis(build, z)
    return np.stack([sx * 0.7 + np.asarray(x), sy + VERTEBRA[1] + np.asarray(ahead), z], 1)


def trachea_course(build: Build) -> np.ndarray:
    """Points (K, 3) down the trachea to the carina."""
    z = np.array([170, 150, 110, 70, build.carina])
    return _along_spine(build, z, [0, 0, 0, 2, 4], [25, 24, 22, 21, 22])


def oesophagus_course(build: Build) -> np.ndarray:
    """Points (K, 3) down the oesophagus to the stomach."""
    z = np.linspace(170, -118, 17)
    amplitude, phase = build.oesophagus_bow
    x = np.interp(z, [-118, -90, -40, 20, 80, 150], [-24, -15, -6, -5, -7, -4])
    ahead = np.interp(z, [-118, -90, -40, 20, 80, 150], [34, 22, 11, 9, 9, 8])
    return _along_spine(build, z, x + amplitude * np.sin(z / 45 + phase), ahead)


def cord_course(build: Build) -> np.ndarray:
    """Points (K, 3) down the spinal cord, which fills the canal from end to end."""
    z = np.linspace(190, -190, 20)
    x, y = spine_axis(build, z)
    return np.stack([x, y - CANAL, z], 1)


def bronchi_courses(build: Build) -> list[np.ndarray]:
    """Points (K, 3) down the two main bronchi, left first; they enter the lungs at the hila."""
    x, y, z = trachea_course(build)[-1]
    left = [(x, y, z), (x - 26, y + 2, z - 17), (x - 48, y - 4, z - 30), (x - 58, y - 14, z - 58)]
    right = [(x, y, z), (x + 18, y + 1, z - 17), (x + 36, y - 2, z - 34), (x + 46, y - 10, z - 62)]
    return [np.array(left), np.array(right)]


def _vessels(space: Space, build: Build) -> np.ndarray:
    """The great vessels in the mediastinum, all of them in one."""
    r, u = build.aorta, build.unfolding
    hx, hy, hz = build.heart_shift
    down = _along_spine(build, np.linspace(26, -170, 9), np.linspace(-27, -12, 9), 0)
    arch = [
        (2 + hx, 8 + hy, -28 + hz),
        (15 + hx, 18 + hy, 0),
        (16, 18, 28),
        (6, 10, 50 + u / 2),
        (-12 - u / 2, -10, 58 + u),
        (-24 - u, -34, 46 + u),
        *down,
    ]
    courses = [
        (np.array(arch), 14.5 * r, 12.0 * r),
        (np.array([(-10 + hx, 32 + hy, -18 + hz), (-22, 20, 6), (-22, 2, 14)]), 13.5, 12.5),
        (np.array([(-22, 2, 14), (-40, -12, 14), (-56, -24, 0)]), 10.5, 7),
        (np.array([(-18, 6, 10), (14, -4, 4), (44, -14, -6), (56, -24, -22)]), 11, 7),
        (np.array([(28, 12, -20), (28, 10, 30), (24, 6, 76)]), 9, 8.5),
        (np.array([(24, 6, 76), (-6, 24, 88), (-34, 14, 106), (-70, 0, 122)]), 6.5, 5.5),
        (np.array([(24, 6, 76), (38, 8, 106), (72, 0, 122)]), 6.5, 5.5),
        (np.array([(6, 10, 50), (16, 0, 84), (24, -8, 112), (24, -10, 170)]), 6.5, 4),
        (np.array([(-6, 0, 56), (-17, -6, 100), (-22, -8, 170)]), 4.2, 3.5),
        (np.array([(-15, -16, 56), (-26, -20, 96), (-62, -24, 126)]), 5.0, 4.5),
        (np.array([(22 + hx, -6 + hy, -40), (24, -10, -90), (22, -16, -170)]), 10.5, 10.5),
        (np.array([(-52, -20, -22), (-6, -18, -28)]), 6, 7),
        (np.array([(56, -22, -30), (22, -16, -30)]), 6, 7),
    ]
    out = np.full(space.shape, FAR, np.float32)
    for course, first, last in courses:
        np.minimum(out, tube(space, course, np.linspace(first, last, len(course)), 14.0), out=out)
    return out


def _diaphragm(space: Space, build: Build) -> np.ndarray:
    """Height (mm) over the diaphragm: two domes, deep behind, the heart on the saddle between."""
    left, right = build.domes
    y = (space.y - 8) / 92
    sides = []
    for centre, top in ((-64, -82 + left), (64, -68 + right)):
        x = (space.x - centre) / 84
        r2 = x * x + y * y
        sides.append(np.float32(top) - 54 * r2 / (1 + 0.12 * r2))
    height = np.maximum(*sides) - 16 * np.clip(-y, 0, 1.5)
    return (space.z - height) * np.float32(0.85)


def _heart(space: Space, build: Build) -> tuple[np.ndarray, np.ndarray]:
    """Ventricles and atria."""
    f, shift = build.heart, build.heart_shift
    axis = np.deg2rad([-18, 24, -36]) + build.heart_turn
    base = np.array([-30, 24, -52]) + shift
    ventricles = ellipsoid(space, base, np.array([58, 43, 42]) * f, axis)
    atria = ellipsoid(space, np.array([5, 1, -32]) + shift, np.array([37, 35, 35]) * f)
    return ventricles, atria


def least_radius(space: Space) -> float:
    """mm: a tube narrower than that would fall to pieces between the voxels of a coarse grid."""
    across, up = TUBE_VOXELS
    return float(across * space.step[:2].max() + up * space.step[2])


def _mediastinum(
    space: Space,
    build: Build,
    organs: tuple[np.ndarray, ...],
    spine: tuple[np.ndarray, np.ndarray],
    middle: np.ndarray,
) -> np.ndarray:
    """Distance to what keeps the lungs apart: organs with fat around, and a sheet front to back."""
    heart, vessels, trachea, oesophagus = organs
    body = np.hypot(spine[0] / VERTEBRA[0], spine[1] / VERTEBRA[1])
    out = (body - 1) * np.float32(VERTEBRA[1]) - 3
    half = _profile((5, 5, 5, 7, 12, 17, 21, 24, 25, 25), space.z) * np.float32(build.mediastinum)
    # The sheet is thick between sternum and spine only where thymus, fat and great vessels are.
    sheet = np.abs(middle) - np.where(np.abs(space.y + 10) < 40, half, np.float32(6))
    out = union(out, sheet, 12.0)
    for organ, fat in ((heart, 4.0), (vessels, 5.0), (trachea, 4.0), (oesophagus, 4.0)):
        out = union(out, organ - np.float32(fat), 9.0)
    return out


def chest(space: Space, build: Build) -> Chest:
    """Work out all distances for one person."""
    upper = np.interp(_Z, [20, 110], [1, build.apices])
    cage = _outline(space, np.multiply(_CAGE_WIDTH, upper), _CAGE_FRONT, _CAGE_BACK)
    m = build.muscle
    wall = np.add(_WALL_WIDTH, m), np.add(_WALL_FRONT, m), np.subtract(_WALL_BACK, m / 2)
    muscle = _outline(space, *wall)
    # Less fat on the flanks of the shoulder girdle and over the spine than in front.
    body = muscle - build.fat * np.clip(0.85 + space.y / 400 - space.z / 500, 0.4, 1.3)
    if build.breast:
        f = build.breast
        for side in (-1, 1):
            centre = (side * 74, 96 + build.fat, 4)
            body = union(body, ellipsoid(space, centre, (56 * f, 34 * f, 52 * f)), 20.0)
    diaphragm = _diaphragm(space, build)
    ventricles, atria = _heart(space, build)
    heart = union(ventricles, atria, 14.0)
    heart = np.maximum(heart, 2 - diaphragm)
    vessels = _vessels(space, build)
    least = least_radius(space)
    trachea = tube(space, trachea_course(build), max(8.5 * build.trachea, least))
    bronchi = np.full(space.shape, FAR, np.float32)
    for course in bronchi_courses(build):
        radii = np.array([8.0, 7.2, 6.2, 4.2]) * build.trachea
        np.minimum(bronchi, tube(space, course, radii, 12.0), out=bronchi)
    oesophagus = tube(space, oesophagus_course(build), max(7.0 * build.oesophagus, least))
    sx, sy = spine_axis(build, space.z)
    spine = space.x - sx, space.y - sy
    middle = space.x + np.float32(4) - sx * np.float32(0.5)
    organs = heart, vessels, trachea, oesophagus
    between = _mediastinum(space, build, organs, spine, middle)
    # Smooth maximum: inside the cage, outside the mediastinum, above the diaphragm.
    lungs = -union(union(-cage, between, 8.0), diaphragm, 6.0)
    return Chest(
        pitch=space.pitch,
        body=body,
        muscle=muscle,
        cage=cage,
        lungs=lungs,
        middle=middle,
        diaphragm=diaphragm,
        ventricles=ventricles,
        atria=atria,
        heart=heart,
        vessels=vessels,
        trachea=trachea,
        bronchi=bronchi,
        oesophagus=oesophagus,
        spine=spine,
    )
