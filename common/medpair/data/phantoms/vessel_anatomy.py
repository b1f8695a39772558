"""The named arteries of the head: courses, calibres, territories, variants of the circle of Willis.

Courses are control points in mm (RAS, origin as in `head`), read by eye off atlases and off the
projections of time-of-flight angiograms, for the right side (x > 0); the left one is mirrored.
Calibres are radii in mm, half of the usual diameters of adult angiography: internal carotid
4 to 5, M1 2.9, A1 and A2 2.0, P1 and P2 2.0, basilar 3.2, vertebral 3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from medpair.data.phantoms.head import (
    SCALP_DEPTH,
    cerebellum_distance,
    head_distance,
    intracranial_distance,
)

__all__ = ["TERRITORIES", "TRUNKS", "Territory", "Trunk", "Variant", "draw_variant", "targets"]


@dataclass(frozen=True)
class Trunk:
    """A named artery: it leaves ``parent`` at the node nearest its first control point.

    Side branches grow from it if it belongs to a ``territory``.
    """

    name: str
    parent: str | None
    territory: str | None
    course: tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Territory:
    """What one artery supplies: the radius (mm) it starts with, and its number of twigs."""

    calibre: float
    twigs: int
    scalp: bool = False  # its branches stay in the scalp


TERRITORIES = {
    "mca": Territory(1.45, 120),
    "aca": Territory(1.0, 60),
    "pca": Territory(1.0, 50),
    "sca": Territory(0.65, 14),
    "aica": Territory(0.5, 8),
    "pica": Territory(0.6, 10),
    "ophthalmic": Territory(0.55, 4),
    "sta": Territory(0.95, 36, scalp=True),
    "occipital": Territory(0.9, 22, scalp=True),
    "maxillary": Territory(1.1, 8),
}

# Order matters: a parent comes before its children, and what joins ("vertebral") before "basilar".
TRUNKS = (
    Trunk("vertebral", None, None, ((20, -47, -92), (18, -44, -78), (9, -37, -64), (0, -31, -53))),
    Trunk("basilar", None, None, ((0, -31, -53), (1, -23, -42), (-1, -19, -31), (0, -17, -20))),
    Trunk(
        "ica",
        None,
        None,
        (
            (31, -24, -92),
            (30, -26, -72),
            (30, -24, -54),  # enters the carotid canal
            (26, -17, -45),  # petrous segment, forward and inward
            (18, -7, -43),
            (13, -5, -37),
            (12, -3, -30),  # cavernous: posterior genu, forward, anterior genu, back
            (12, 6, -28),
            (12, 12, -25),
            (11, 9, -20),
            (12, 4, -17),
            (14, 2, -13),  # terminus
        ),
    ),
    Trunk("ophthalmic", "ica", "ophthalmic", ((11, 9, -20), (13, 20, -26), (20, 32, -32))),
    Trunk("m1", "ica", "mca", ((14, 2, -13), (22, 4, -14), (30, 5, -16), (36, 3, -14))),
    Trunk(
        "m2_superior",
        "m1",
        "mca",
        ((36, 3, -14), (41, 6, -5), (42, 6, 6), (46, 2, 14), (56, -2, 17), (62, -6, 26)),
    ),
    Trunk(
        "m2_inferior",
        "m1",
        "mca",
        ((36, 3, -14), (41, -4, -9), (43, -15, -1), (46, -28, 7), (56, -38, 9), (62, -46, 16)),
    ),
    Trunk("temporal", "m1", "mca", ((29, 5, -16), (36, 14, -24), (48, 10, -28), (58, 0, -26))),
    Trunk("a1", "ica", None, ((14, 2, -13), (9, 7, -11), (3, 10, -9))),
    Trunk(
        "a2",
        "a1",
        "aca",
        (
            (3, 10, -9),
            (1.5, 20, -7),
            (1.5, 32, -2),
            (1.5, 40, 8),
            (1.5, 37, 20),
            (1.5, 24, 28),
            (1.5, 6, 33),
            (1.5, -14, 35),
            (1.5, -30, 32),
        ),
    ),
    Trunk(
        "callosomarginal",
        "a2",
        "aca",
        ((1.5, 40, 8), (1.5, 50, 18), (1.5, 46, 34), (4, 30, 46), (4, 8, 52)),
    ),
    Trunk("p1", "basilar", None, ((0, -17, -20), (6, -15, -17), (11, -17, -15))),
    Trunk(
        "p2",
        "p1",
        "pca",
        (
            (11, -17, -15),
            (17, -25, -14),
            (19, -36, -10),
            (16, -48, -5),
            (12, -62, 0),
            (9, -78, 4),
        ),
    ),
    Trunk("p2_temporal", "p2", "pca", ((18, -30, -13), (28, -38, -16), (38, -50, -14))),
    Trunk("sca", "basilar", "sca", ((0, -18, -23), (10, -22, -22), (20, -34, -21), (20, -54, -14))),
    Trunk(
        "aica", "basilar", "aica", ((1, -23, -42), (13, -25, -41), (26, -36, -40), (36, -50, -42))
    ),
    Trunk(
        "pica", "vertebral", "pica", ((9, -37, -64), (13, -44, -66), (14, -54, -58), (10, -68, -60))
    ),
    Trunk(
        "sta",
        None,
        "sta",
        ((58, -14, -92), (66, -12, -60), (74, -10, -30), (76, -4, 0), (72, 4, 30)),
    ),
    Trunk(
        "occipital",
        None,
        "occipital",
        ((44, -40, -92), (46, -66, -68), (38, -92, -48), (28, -108, -20), (20, -108, 10)),
    ),
    Trunk(
        "maxillary",
        None,
        "maxillary",
        ((45, -14, -92), (45, -6, -74), (38, 10, -68), (28, 24, -62)),
    ),
)

# How often the circle is not complete, per side where there are sides. Anatomical series differ
# widely; these are round numbers inside their ranges (a complete circle in about 40 % of people).
P_NO_ACOM = 0.08
P_NO_A1 = 0.04  # the other side's A1 then feeds both anterior cerebral arteries
P_FETAL_PCA = 0.1  # the carotid then feeds the posterior cerebral artery, P1 is missing
P_NO_PCOM = 0.35


@dataclass(frozen=True)
class Variant:
    """Which parts of one circle of Willis exist; pairs are (right, left)."""

    acom: bool
    a1: tuple[bool, bool]
    pcom: tuple[bool, bool]
    fetal: tuple[bool, bool]


def draw_variant(rng: np.random.Generator) -> Variant:
    """Draw one circle of Willis."""
    missing_a1 = rng.random() < 2 * P_NO_A1
    missing_side = int(rng.integers(2))
    a1 = (not (missing_a1 and missing_side == 0), not (missing_a1 and missing_side == 1))
    acom = bool(missing_a1 or rng.random() >= P_NO_ACOM)
    fetal = rng.random(2) < P_FETAL_PCA
    pcom = (rng.random(2) >= P_NO_PCOM) & ~fetal
    return Variant(acom, a1, (bool(pcom[0]), bool(pcom[1])), (bool(fetal[0]), bool(fetal[1])))


CORTEX_SHELL = (-7.0, -0.5)  # mm from the inner table: where the arteries of the surface end
MEDIAL_SHELL = (0.8, 5.0)  # mm from the midline: the same for the faces of the fissure
DEEP_SHARE = 0.02  # of the points deeper than that are ends too: perforating arteries


def targets(rng: np.random.Generator, count: int = 60000) -> dict[str, np.ndarray]:
    """Points that want blood, by territory, (N, 3) mm, right side only (x > 0).

    The planes between territories follow the usual vascular maps: parieto-occipital sulcus, the
    strip beside the midline, tentorium, and thirds of the cerebellum.
    """
    low, high = np.array([0.0, -118.0, -75.0]), np.array([90.0, 90.0, 90.0])
    p = rng.uniform(low, high, (count, 3))
    x, y, z = p.T
    inner = intracranial_distance(p)
    cerebellar = (cerebellum_distance(p) < 0) & (z < -8 + 0.15 * (y + 40))
    surface = (inner > CORTEX_SHELL[0]) & (inner < CORTEX_SHELL[1])
    medial = (x > MEDIAL_SHELL[0]) & (x < MEDIAL_SHELL[1]) & (inner < 0) & (z > 2)
    deep = (inner < CORTEX_SHELL[0]) & (rng.random(count) < DEEP_SHARE)
    brain = (surface | medial | deep) & ~cerebellar & (z > -42)
    posterior = (y < -62 + 0.5 * np.maximum(z, 0)) & (x < 38) | (z < -12) & (y < -25)
    anterior = (x < 14) & ~posterior & (z > -10)
    scalp = (np.abs(head_distance(p, inner) + SCALP_DEPTH) < 1.5) & (z > -30)
    masks: dict[str, Callable[[], np.ndarray]] = {
        "mca": lambda: brain & ~posterior & ~anterior & (z > -38),
        "aca": lambda: brain & anterior,
        "pca": lambda: brain & posterior,
        "sca": lambda: cerebellar & (z > -30),
        "aica": lambda: cerebellar & (z <= -30) & (y > -62) & (x > 15),
        "pica": lambda: cerebellar & (z <= -36) & (y <= -50),
        "ophthalmic": lambda: (np.abs(x - 28) < 14) & (np.abs(y - 46) < 14) & (np.abs(z + 38) < 12),
        "sta": lambda: scalp & (y > -50) & (x > 20),
        "occipital": lambda: scalp & (y <= -50) & (x > 6),
        "maxillary": lambda: (x < 50) & (np.abs(y - 30) < 28) & (np.abs(z + 66) < 10),
    }
    return {name: p[mask()] for name, mask in masks.items()}
