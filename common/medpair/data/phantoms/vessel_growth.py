"""How one artery grows: smooth winding paths, and twigs added where blood is missing most."""

from __future__ import annotations

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.spatial.distance import cdist

from medpair.data.phantoms.head import SCALP_DEPTH, head_distance, intracranial_distance

__all__ = ["Forest", "fill", "trunk_path", "under_skin"]

STEP = 1.2  # mm between nodes: shorter than the width of the vessels that bend most

# Shape of a new branch.
FORWARD = 0.9  # weight of the parent's direction against the target's: branching near 45 degrees
TURN_COST = 0.45  # extra length, in parts, that is worth walking to avoid turning sharply
END_SPREAD = 0.4  # randomness of the direction in which a twig ends
MIN_GAP = 5.0  # mm: a point this close to a vessel is supplied
WINDING_WAVE = 7.0  # mm: the shortest bends, half a wavelength
BRAIN_CENTRE = np.array([0.0, -17.0, 0.0])  # "outward" means away from here
SCALP_REACH = 4.0  # a branch in the scalp has reached its depth after 1/4 of its length


class Forest:
    """The trees while they grow: a list of nodes (mm), parents before children."""

    def __init__(self) -> None:
        self.points: list[np.ndarray] = []
        self.tangent: list[np.ndarray] = []
        self.parent: list[int] = []
        self.territory: list[str | None] = []
        self.bridge: list[bool] = []

    def add(
        self, path: np.ndarray, parent: int, territory: str | None, bridge: bool = False
    ) -> np.ndarray:
        """Append a path (N, 3) and return its nodes; a parent (or -1) is its first point."""
        tangent = np.gradient(path, axis=0)
        tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-9
        if parent >= 0:
            path, tangent = path[1:], tangent[1:]
        first, count = len(self.points), len(path)
        self.points.extend(path)
        self.tangent.extend(tangent)
        self.parent.extend([parent, *range(first, first + count - 1)])
        self.territory.extend([territory] * count)
        self.bridge.extend([bridge] * count)
        return np.arange(first, first + count)

    def nearest(self, nodes: np.ndarray, point: np.ndarray) -> int:
        """Which of ``nodes`` is nearest to a point (3,)."""
        points = np.array([self.points[i] for i in nodes])
        return int(nodes[np.argmin(np.linalg.norm(points - point, axis=1))])


def _count(length: float) -> int:
    return max(3, int(np.ceil(length / STEP)) + 1)


def _wind(path: np.ndarray, length: float, winding: float, rng: np.random.Generator) -> np.ndarray:
    """Add tortuosity that vanishes at both ends: a sine series with amplitudes falling as 1/k."""
    waves = np.arange(1, max(2, int(length / WINDING_WAVE)) + 1)
    series = np.sin(np.pi * np.outer(np.linspace(0, 1, len(path)), waves))
    amplitude = winding * np.sqrt(length) / waves
    return path + (series * amplitude) @ rng.standard_normal((len(waves), 3))


def trunk_path(course: np.ndarray, winding: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth winding curve (N, 3) through control points (K, 3), a node every STEP mm.

    ``winding``: amplitude of the tortuosity, in mm per square root of the length in mm.
    """
    along = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(course, axis=0), axis=1))])
    path = CubicSpline(along, course)(np.linspace(0, along[-1], _count(along[-1])))
    return _wind(path, along[-1], winding, rng)


def _branch_path(
    start: np.ndarray,
    tangent: np.ndarray,
    target: np.ndarray,
    scalp: bool,
    winding: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """A Hermite curve (N, 3) that leaves along its parent and ends roughly at its target."""
    chord = target - start
    length = float(np.linalg.norm(chord))
    ahead = chord / length
    leave = FORWARD * tangent + ahead
    leave *= length / (np.linalg.norm(leave) + 1e-9)
    arrive = (ahead + END_SPREAD * rng.standard_normal(3)) * length
    s = np.linspace(0, 1, _count(length))[:, None]
    path = (
        (1 + 2 * s) * (1 - s) ** 2 * start
        + s * (1 - s) ** 2 * leave
        + s**2 * (3 - 2 * s) * target
        + s**2 * (s - 1) * arrive
    )
    path = _wind(path, length, winding, rng)
    return under_skin(path, pinned=True) if scalp else _follow(path)


def _follow(path: np.ndarray) -> np.ndarray:
    """Move a path along the surface of the brain, where a straight one would cut through it.

    The depth under the surface changes evenly from start to end.
    """
    depth = intracranial_distance(path)
    wanted = depth[0] + (depth[-1] - depth[0]) * np.linspace(0, 1, len(path))
    return path + (wanted - depth)[:, None] * _outward(path, BRAIN_CENTRE)


def _outward(points: np.ndarray, centre: np.ndarray) -> np.ndarray:
    away = points - centre
    return away / (np.linalg.norm(away, axis=1, keepdims=True) + 1e-9)


def under_skin(path: np.ndarray, pinned: bool) -> np.ndarray:
    """Move a path (N, 3) to the scalp's fat, SCALP_DEPTH under the skin; its start, if pinned, not.

    Below the vault "outwards" is level, as the neck and the sides of the face are upright.
    """
    follow = np.minimum(1, SCALP_REACH * np.linspace(0, 1, len(path))) if pinned else 1.0
    target = path.copy()
    for _ in range(3):  # the distances are first-order ones
        centre = BRAIN_CENTRE + np.maximum(0, -target[:, 2:]) * [0, 0, -1]
        target -= (head_distance(target) + SCALP_DEPTH)[:, None] * _outward(target, centre)
    return path + (target - path) * np.reshape(follow, (-1, 1))


def fill(
    forest: Forest,
    nodes: np.ndarray,
    ends: np.ndarray,
    twigs: int,
    scalp: bool,
    winding: float,
    rng: np.random.Generator,
) -> None:
    """Grow one territory from its trunk's nodes: always towards the end farthest from a vessel.

    ends: points (M, 3) in mm that want blood; at most ``twigs`` branches are added, long ones
    first by construction. Each leaves the node that is nearest, turns counted as length.
    """
    index = list(nodes)
    territory = forest.territory[index[0]]
    points = np.array([forest.points[i] for i in index])
    tangents = np.array([forest.tangent[i] for i in index])
    gap = cdist(ends, points).min(1)
    for _ in range(twigs):
        worst = int(np.argmax(gap))
        if gap[worst] < MIN_GAP:
            break
        chord = ends[worst] - points
        distance = np.linalg.norm(chord, axis=1)
        turn = 1 - np.einsum("ij,ij->i", chord, tangents) / distance
        best = int(np.argmin(distance * (1 + TURN_COST * turn)))
        path = _branch_path(points[best], tangents[best], ends[worst], scalp, winding, rng)
        new = forest.add(path, index[best], territory)
        index.extend(new)
        points = np.concatenate([points, path[1:]])
        tangents = np.concatenate([tangents, [forest.tangent[i] for i in new]])
        gap = np.minimum(gap, cdist(ends, path).min(1))
        gap[worst] = 0  # its branch may have been moved off it: do not serve it twice
