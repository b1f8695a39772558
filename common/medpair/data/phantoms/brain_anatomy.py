"""The virtual brain: folded cortex, white matter, deep grey matter, ventricles.

Coordinates are those of `head`: mm, RAS, the origin at the anterior commissure. A sulcus is a thin
sheet of fluid upright on the surface: where a field that is drawn on the surface, and carried
inwards from it, crosses zero. Cortex lines all fluid but the ventricles'.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from scipy import ndimage

from medpair.data.phantoms.shapes import FAR, Space, ellipsoid, swell, tube

__all__ = ["Brain", "BrainBuild", "brain", "draw_brain"]

CORTEX = 2.8  # mm
GYRUS = 13.5  # mm from one sulcus to the next
FOLIUM = 11.0  # the same of the cerebellum, whose finer leaves no such grid shows
# What a coarse grid still shows, in voxels: thickness of cortex, half a sulcus, distance of sulci.
LEAST_CORTEX, LEAST_FLUID, LEAST_GYRUS = 0.75, 0.36, 2.6

_HEMISPHERE = ((31.0, -17.0, 8.0), (36.0, 84.0, 60.0))  # |x|: where sulci point to
_CALLOSUM = ((-9.0, 4.0), (40.0, 25.0))  # y, z: within this ellipse no fissure parts the halves
_CEREBELLUM = ((0.0, -62.0, -34.0), (50.0, 32.0, 25.0))
_STEM = [(0, -20, 2), (0, -25, -14), (0, -27, -34), (0, -33, -52), (0, -38, -90)]
_STEM_RADII = (13.0, 13.5, 15.0, 9.5, 7.0)
_CISTERN = ((0.0, 0.0, -17.0), (12.0, 10.0, 7.0))
WINDING, WINDING_SCALE = 5.0, 14.0  # mm that sulci stray from upright, and over what length
UNEVEN, UNEVEN_SCALE = 0.8, 14.0  # mm that all of the brain is out of shape, and over what length
SHALLOW, SHALLOW_SCALE = 0.22, 18.0  # spread of the sulci's depth, and over what length


@dataclass(frozen=True)
class BrainBuild:
    """What differs between people: factors (about 1) and lengths (mm)."""

    ventricles: float
    surface_fluid: float  # mm between arachnoid and brain
    sulcus: float  # mm, half the width
    depth: float  # mm, of the deepest sulci
    cortex: float
    gyrus: float
    deep: np.ndarray = field(repr=False)  # (3,) size of thalamus, caudate, putamen
    shift: np.ndarray = field(repr=False)  # (3, 3) mm, of the same
    cerebellum: float
    sylvian: np.ndarray = field(repr=False)  # (2,) mm higher, slope


def draw_brain(rng: np.random.Generator) -> BrainBuild:
    """Draw a brain; old ones have wide sulci and ventricles and a thin cortex."""
    age = float(rng.uniform(0, 1))
    return BrainBuild(
        ventricles=min(1.6, (0.75 + 0.65 * age) * float(np.exp(rng.normal(0, 0.13)))),
        surface_fluid=1.0 + 1.4 * age + float(rng.uniform(0, 0.8)),
        sulcus=0.55 + 0.6 * age + float(rng.uniform(0, 0.2)),
        depth=float(rng.uniform(16, 21)),
        cortex=1.05 - 0.15 * age + float(rng.normal(0, 0.03)),
        gyrus=float(rng.uniform(0.9, 1.12)),
        deep=np.clip(rng.normal(1, 0.08, 3), 0.85, 1.2),
        shift=np.clip(rng.normal(0, 1.0, (3, 3)), -1.5, 1.5),
        cerebellum=float(np.clip(rng.normal(1, 0.05), 0.88, 1.1)),
        sylvian=np.clip(rng.normal(0, 1, 2), -2, 2) * [2.5, 0.06],
    )


@dataclass(frozen=True)
class Deep:
    """Distances (W, H, D) in mm, negative inside, of the deep grey matter."""

    thalamus: np.ndarray
    adhesion: np.ndarray  # from thalamus to thalamus through the third ventricle, and to caudate
    striatum: np.ndarray  # caudate, putamen, accumbens
    pallidum: np.ndarray


@dataclass(frozen=True)
class Brain:
    """Distances (W, H, D) in mm, negative inside."""

    pia: np.ndarray  # of the fluid around the brain and in its sulci
    cortex: float  # mm of cortex that line it
    white: np.ndarray  # of white matter without cortex: brainstem, peduncles, corpus callosum
    ventricles: np.ndarray
    deep: Deep


def _folds(
    space: Space, centre: np.ndarray, axes: np.ndarray, wave: float, rng: np.random.Generator
) -> np.ndarray:
    """Distance (mm) to the nearest of the sheets, wave / 2 apart, that stand on an ellipsoid.

    The ellipsoid lies on either side: centre and axes are those of the right one.
    """
    side = np.where(space.x < 0, np.float32(-1), np.float32(1))
    u = [
        ((c * s) - np.float32(m)) / np.float32(a)
        for c, s, m, a in zip((space.x, space.y, space.z), (side, 1, 1), centre, axes, strict=True)
    ]
    norm = np.sqrt(u[0] ** 2 + u[1] ** 2 + u[2] ** 2) + np.float32(0.05)
    pitch = wave / 7
    # Two ellipsoids in one box of noise, one beside the other: the sides fold differently.
    box = 2 * (axes + wave / 2) * [2, 1, 1]
    noise = rng.standard_normal(np.ceil(box / pitch).astype(int) + 2, dtype=np.float32)
    # The difference of two Gaussian filters lets waves of 5.7 times the narrower's sigma pass.
    sigma = wave / 5.7 / pitch
    band = ndimage.gaussian_filter(noise, sigma, truncate=3.0)
    band -= ndimage.gaussian_filter(noise, 1.6 * sigma, truncate=3.0)
    where = np.stack(
        [
            v / norm * np.float32(a / pitch)
            + np.float32(WINDING / pitch) * swell(space.step, space.shape, WINDING_SCALE, rng)
            for v, a in zip(u, axes, strict=True)
        ]
    )
    where += (np.array(box) / [4, 2, 2] / pitch).astype(np.float32)[:, None, None, None]
    where[0] += np.float32(box[0] / 2 / pitch) * (side > 0)
    f = ndimage.map_coordinates(band, where, order=1, mode="nearest")
    slopes = np.gradient(f, *space.step)
    steep = np.sqrt(sum(s * s for s in slopes))
    steep = ndimage.gaussian_filter(steep, wave / 10 / space.step)
    return np.abs(f) / np.maximum(steep, np.float32(band.std() * 2.5 / wave))


def _sylvian(space: Space, build: BrainBuild, width: float) -> np.ndarray:
    """The fissure over the temporal lobe, and the fluid over the insula at its bottom."""
    lift, slope = build.sylvian
    x = np.abs(space.x)
    rise = space.z - (-3 + lift - (0.33 + slope) * space.y)
    cleft = np.maximum(np.abs(rise) * np.float32(0.95) - width - 0.5, 38 - x)
    cleft = np.maximum(cleft, np.abs(space.y + 8) - 38)
    oval = (np.hypot((space.y - 2) / 25, rise / 13) - 1) * 13
    return np.minimum(cleft, np.maximum(np.abs(x - 39) - width - np.float32(0.3), oval))


def _pia(
    space: Space, layer: np.ndarray, stem: np.ndarray, build: BrainBuild, rng: np.random.Generator
) -> np.ndarray:
    """Distance to the fluid outside the brain, folds and fissures included."""
    width = max(build.sulcus, LEAST_FLUID * space.pitch)
    wave = 2 * max(GYRUS * build.gyrus, LEAST_GYRUS * space.pitch)
    centre, axes = (np.array(v) for v in _HEMISPHERE)
    depth = -layer - max(build.surface_fluid, LEAST_FLUID * space.pitch)
    medial = np.abs(space.x) - np.float32(width)
    within = np.maximum(-_beyond_callosum(space), -8 - space.z)  # no fissure, nor sulci from it
    folds = _folds(space, centre, axes, wave, rng) - width
    shallow = 0.9 + SHALLOW * swell(space.step, space.shape, SHALLOW_SCALE, rng)
    deepest = np.float32(build.depth) * np.clip(shallow, 0.4, 1.15)
    deep = np.minimum(depth - deepest, np.maximum(medial - deepest, within))
    surface = np.minimum(depth, np.maximum(medial, within))
    cerebrum = np.minimum(surface, np.maximum(folds, deep))
    cerebrum = np.minimum(cerebrum, _sylvian(space, build, width))
    lobes = np.array(_CEREBELLUM[1]) * build.cerebellum
    cerebellum = ellipsoid(space, _CEREBELLUM[0], lobes)
    leaves = np.minimum(
        depth, np.maximum(_leaves(space, build, rng) - width * 0.6, -cerebellum - 13)
    )
    pia = np.where(cerebellum < 0, np.minimum(leaves, -cerebellum), cerebrum)
    # Tentorium, cisterns around the brainstem and over the pituitary gland.
    pia = np.minimum(pia, np.abs(cerebellum) - width - np.float32(0.3))
    around = np.maximum(np.abs(stem - 2) - 2 - width / 2, space.z + 9)
    pia = np.minimum(pia, np.where(space.y > -50, around, FAR))
    return np.minimum(pia, ellipsoid(space, *_CISTERN))


def _beyond_callosum(space: Space) -> np.ndarray:
    """Distance to the ellipse, seen from the side, along which the corpus callosum lies."""
    (cy, cz), (ay, az) = _CALLOSUM
    return (np.hypot((space.y - cy) / ay, (space.z - cz) / az) - 1) * np.float32(az)


def _callosum(space: Space) -> np.ndarray:
    """Distance to the corpus callosum, between the halves."""
    band = np.abs(_beyond_callosum(space) + 2.5) - max(2.8, 0.6 * space.pitch)
    return np.maximum(np.maximum(band, np.abs(space.x) - 14), 1 - space.z)


def _leaves(space: Space, build: BrainBuild, rng: np.random.Generator) -> np.ndarray:
    """Distance to the nearest fissure of the cerebellum: they fan out from its stalk."""
    y, z = space.y + 44, space.z + 34
    radius = np.hypot(y, z) + np.float32(1)
    count = round(2 * np.pi * 28 / (max(FOLIUM * build.gyrus, LEAST_GYRUS * space.pitch)))
    turn = np.arctan2(z, -y) * np.float32(count / (2 * np.pi)) + np.float32(rng.uniform())
    turn += 0.5 * np.sin(np.abs(space.x) / 14) ** 2
    return np.abs((turn + 0.5) % 1 - 0.5) * (2 * np.pi / count) * radius


def _both(space: Space, centre: np.ndarray, axes: np.ndarray, turn: tuple) -> np.ndarray:
    """The same ellipsoid on either side."""
    mirror = np.array([-1, 1, 1])
    right = ellipsoid(space, centre, axes, np.array(turn), 12.0)
    return np.minimum(right, ellipsoid(space, centre * mirror, axes, -mirror * turn, 12.0))


def _tubes(space: Space, courses: list, factor: float) -> np.ndarray:
    """Tubes (points, radii) on either side."""
    out = np.full(space.shape, FAR, np.float32)
    for course, radii in courses:
        for side in (-1, 1):
            points = np.array(course, float) * [side, 1, 1]
            np.minimum(out, tube(space, points, np.array(radii) * factor, 10.0), out=out)
    return out


def _ventricles(space: Space, build: BrainBuild) -> np.ndarray:
    """Lateral, third and fourth ventricle and the ways between them and out."""
    least = 0.72 * float(space.step.max())
    f = build.ventricles
    body = [(10, 33, 3), (9, 18, 12), (10, -6, 18), (16, -30, 17), (24, -46, 10), (24, -68, 4)]
    horn = [(24, -46, 10), (34, -36, -8), (33, -14, -19)]
    out = _tubes(space, [(body, (4, 5.5, 5, 5, 6.5, 2.5)), (horn, (5.5, 2.6, 2.2))], f)
    third = ellipsoid(space, (0, -13, 1), (max(2.2 * f, 0.6 * space.pitch), 14, 11))
    fourth = ellipsoid(space, (0, -43, -33), (7 * f, 5 * f, 11))
    ways = [
        ([(0, -30, -4), (0, -39, -26)], 1.3),
        ([(0, -43, -38), (0, -50, -58), (0, -56, -66)], 2.0),
    ]
    for course, radius in ways:
        np.minimum(out, tube(space, np.array(course, float), max(radius, least), 8.0), out=out)
    foramina = _tubes(space, [([(1, 2, 8), (9, 5, 13)], (max(1.5, least),) * 2)], 1.0)
    # Fluid under the arch of the corpus callosum, over the thalami.
    velum = np.abs(_beyond_callosum(space) + 8.5) - max(2.2 * f, 0.5 * space.pitch)
    velum = np.maximum(np.maximum(velum, np.abs(space.x) - 6), 5 - space.z)
    for part in (foramina, third, fourth, velum):
        np.minimum(out, part, out=out)
    return out


def _deep_grey(space: Space, build: BrainBuild) -> Deep:
    """The deep grey matter; by adhesion, accumbens and caudate it is in one piece."""
    least = 0.72 * float(space.step.max())
    (ft, fc, fp), (st, sc, sp) = build.deep, build.shift
    thalamus = _both(space, np.array([11, -19, 8.5]) + st, np.array([9, 15, 9.5]) * ft, (0, 0, 0.3))
    bridge = tube(space, np.array([(-9, -15, 7), (9, -15, 7)], float), max(2.6, least), 8.0)
    tail = [(14, 20, 3), (16, 14, 9), (19, 0, 17), (20, -14, 20), (25, -32, 16), (30, -42, 4)]
    # Wide ventricles press on the caudate, which lies on their wall.
    sc = sc * [0.3, 1, 1] + [5 * (build.ventricles - 1), 0, 0]
    radii = np.maximum(
        np.array([6.5, 7, 5.5, 4.5, 3, 2]) * fc, least * np.array([1, 1, 1, 1, 0, 0])
    )
    caudate = _tubes(space, [(np.array(tail) + sc, radii)], 1.0)
    putamen = _both(space, np.array([27, 3, 1]) + sp, np.array([6, 17, 11.5]) * fp, (0, 0, 0.15))
    head, shell = np.array(tail[0]) + sc, np.array([25, 12, -3]) + sp
    accumbens = _tubes(space, [([head - [0, 2, 4], shell], (max(4.2, least),) * 2)], 1.0)
    # Where the caudate lies on the thalamus only a thin band parts them; here they touch.
    body = np.array([20, -13, 18]) + sc
    band = _tubes(space, [([(15, -17, 11), body], (max(2.5, least),) * 2)], 1.0)
    pallidum = _both(space, np.array([19.5, -3, -1]) + sp, np.array([4.5, 9, 7]) * fp, (0, 0, 0.4))
    striatum = np.minimum(np.minimum(caudate, putamen), accumbens)
    return Deep(thalamus, np.minimum(band, bridge), striatum, pallidum)


def brain(space: Space, layer: np.ndarray, build: BrainBuild, rng: np.random.Generator) -> Brain:
    """Work out all distances for one person, in a cavity given by its distance ``layer``."""
    uneven = (UNEVEN * swell(space.step, space.shape, UNEVEN_SCALE, rng) for _ in range(3))
    x, y, z = (c + u for c, u in zip((space.x, space.y, space.z), uneven, strict=True))
    space = replace(space, x=x, y=y, z=z)
    stem = tube(space, np.array(_STEM, float), _STEM_RADII)
    stalks = _tubes(space, [([(6, -28, -32), (16, -40, -35), (20, -56, -38)], (8, 8, 9))], 1.0)
    pia = _pia(space, layer, stem, build, rng)
    white = np.minimum(np.minimum(stem, stalks), _callosum(space))
    thickness = max(CORTEX * build.cortex, LEAST_CORTEX * space.pitch)
    ventricles = _ventricles(space, build)
    return Brain(pia, thickness, white, ventricles, _deep_grey(space, build))
