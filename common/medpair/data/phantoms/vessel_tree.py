"""The arterial trees of one head: named trunks, grown branches, and radii by Murray's law.

Every radius comes from below: a twig's end has a small radius, a vessel widens against the flow at
a fixed rate, and where vessels meet r_parent^3 = sum r_child^3 (Murray, 1926). Scaling all twigs
of a territory scales its trunk, which is how each trunk gets the calibre anatomy gives it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medpair.data.phantoms.vessel_anatomy import (
    TERRITORIES,
    TRUNKS,
    Trunk,
    Variant,
    draw_variant,
    targets,
)
from medpair.data.phantoms.vessel_growth import Forest, fill, trunk_path, under_skin

__all__ = ["MURRAY_EXPONENT", "Join", "VesselTree", "grow_vessels", "murray_radii"]

MURRAY_EXPONENT = 3.0  # least work of pumping plus keeping blood: flow goes with r^3
TAPER = 0.003  # per mm: a carotid loses about a third of its width over the 120 mm drawn here
JITTER = 1.3  # mm, standard deviation of a control point from person to person
CALIBRE_SPREAD = 0.12  # relative spread of trunk radii from person to person
TWIG_SPREAD = 0.3  # relative half-range of the radii at which twigs of one territory end
WINDING = (0.07, 0.2)  # mm per mm^(1/2) of length: tortuosity, young to old
DOMINANCE = (0.3, 0.7)  # share of the basilar's flow that the right vertebral artery brings
BRIDGE_RADIUS = (0.35, 0.85)  # mm: communicating arteries that angiograms show
BLIND_END = 0.4  # mm: a basilar artery both of whose P1 are missing ends in perforators
PCOM_ORIGIN = (12.0, 4.0, -17.0)  # mm, right side, on the internal carotid artery
PCOM_MIDDLE = (12.0, -7.0, -16.0)


@dataclass(frozen=True)
class Join:
    """Vessels that flow together: ``shares`` (of r^3, sum 1) of the root come from ``inflow``."""

    inflow: tuple[int, ...]
    root: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class VesselTree:
    """A forest of vessels in head coordinates (mm); the edge of node i goes from its parent to i.

    points (N, 3); parent (N,), -1 at a root and always smaller than i; radius (N,) at the node;
    start_radius (N,) where the node's edge leaves its parent; bridge (N,) bool: communicating
    arteries, trees of their own whose ends lie in two others.
    """

    points: np.ndarray
    parent: np.ndarray
    radius: np.ndarray
    start_radius: np.ndarray
    bridge: np.ndarray
    joins: tuple[Join, ...]


def murray_radii(
    parent: np.ndarray, length: np.ndarray, end_radius: np.ndarray, joins: tuple[Join, ...] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Radii at nodes and at the starts of their edges, both (N,), from the radii of the ends.

    parent (N,), parents before children; length (N,) of each node's edge in mm; end_radius (N,),
    read where a node has no children. Nodes that flow into a join must come before its root.
    """
    count = len(parent)
    parents, ends = parent.tolist(), end_radius.tolist()
    widening = np.exp(TAPER * length).tolist()
    inflow = {
        i: (join.root, share)
        for join in joins
        for i, share in zip(join.inflow, join.shares, strict=True)
    }
    cubes, radius, start = [0.0] * count, [0.0] * count, [0.0] * count
    for i in range(count - 1, -1, -1):
        if i in inflow:
            root, share = inflow[i]
            cubes[i] = share * radius[root] ** MURRAY_EXPONENT
        radius[i] = cubes[i] ** (1 / MURRAY_EXPONENT) if cubes[i] else ends[i]
        start[i] = radius[i] * widening[i]
        if parents[i] >= 0:
            cubes[parents[i]] += start[i] ** MURRAY_EXPONENT
    return np.array(radius), np.array(start)


def grow_vessels(rng: np.random.Generator, variant: Variant | None = None) -> VesselTree:
    """Grow the arteries of one head, with a circle of Willis drawn at random unless it is given."""
    variant = variant or draw_variant(rng)
    winding = float(rng.uniform(*WINDING))
    forest = Forest()
    trunks = _grow_trunks(forest, variant, winding, rng)
    bridges = _add_bridges(forest, trunks, variant, winding, rng)
    for side in (0, 1):
        ends = targets(rng)
        for name, territory in TERRITORIES.items():
            nodes = np.concatenate([trunks[t.name, side] for t in TRUNKS if t.territory == name])
            goal = ends[name] * _mirror(side)
            fill(forest, nodes, goal, territory.twigs, territory.scalp, winding, rng)
    share = float(rng.uniform(*DOMINANCE))
    join = Join(
        (int(trunks["vertebral", 0][-1]), int(trunks["vertebral", 1][-1])),
        int(trunks["basilar", 0][0]),
        (share, 1 - share),
    )
    return _with_radii(forest, bridges, (join,), rng)


def _mirror(side: int) -> np.ndarray:
    return np.array([1.0 - 2.0 * side, 1.0, 1.0])


def _grow_trunks(
    forest: Forest, variant: Variant, winding: float, rng: np.random.Generator
) -> dict[tuple[str, int], np.ndarray]:
    """Lay down every named artery that exists; nodes by name and side (0 right, 1 left)."""
    nodes: dict[tuple[str, int], np.ndarray] = {}
    for trunk in TRUNKS:
        for side in (0,) if trunk.name == "basilar" else (0, 1):
            missing = {"a1": not variant.a1[side], "p1": variant.fetal[side]}
            course = np.array(trunk.course) * _mirror(side)
            shift = JITTER * rng.standard_normal(course.shape)
            if trunk.name == "vertebral":
                shift[-1] = 0  # both must meet where the basilar artery begins
            if trunk.name == "basilar":
                shift[0] = 0
            if missing.get(trunk.name):
                continue
            course = course + shift
            start = _origin(forest, nodes, trunk, side, course)
            if trunk.name == "p2" and variant.fetal[side]:
                course = np.concatenate(
                    [[course[0]], np.array([PCOM_MIDDLE]) * _mirror(side), course[1:]]
                )
            if start >= 0:
                course[0] = forest.points[start]
            key = f"{trunk.territory}{side}" if trunk.territory else None
            path = trunk_path(course, winding, rng)
            if trunk.territory and TERRITORIES[trunk.territory].scalp:
                path = under_skin(path, pinned=False)
            nodes[trunk.name, side] = forest.add(path, start, key)
    return nodes


def _origin(
    forest: Forest,
    nodes: dict[tuple[str, int], np.ndarray],
    trunk: Trunk,
    side: int,
    course: np.ndarray,
) -> int:
    """The node a trunk leaves from, -1 for none."""
    if trunk.parent is None:
        return -1
    if trunk.name == "p2" and ("p1", side) not in nodes:
        return forest.nearest(nodes["ica", side], np.array(PCOM_ORIGIN) * _mirror(side))
    parent_side = 0 if trunk.parent == "basilar" else side
    if trunk.name == "a2" and ("a1", side) not in nodes:
        parent_side = 1 - side
    parents = nodes[trunk.parent, parent_side]
    ends_there = next(t for t in TRUNKS if t.name == trunk.parent).course[-1] == trunk.course[0]
    return int(parents[-1]) if ends_there else forest.nearest(parents, course[0])


def _add_bridges(
    forest: Forest,
    trunks: dict[tuple[str, int], np.ndarray],
    variant: Variant,
    winding: float,
    rng: np.random.Generator,
) -> dict[int, float]:
    """Add the communicating arteries; returns their last nodes and radii (mm)."""
    wanted: list[tuple[int, list[np.ndarray], int]] = []
    if variant.acom and all(variant.a1):
        wanted.append((int(trunks["a1", 0][-1]), [], int(trunks["a1", 1][-1])))
    for side in (0, 1):
        if variant.pcom[side]:
            mirror = _mirror(side)
            origin = forest.nearest(trunks["ica", side], np.array(PCOM_ORIGIN) * mirror)
            middle = np.array(PCOM_MIDDLE) * mirror + JITTER * rng.standard_normal(3)
            wanted.append((origin, [middle], int(trunks["p1", side][-1])))
    radii = {}
    for first, middle, last in wanted:
        course = np.array([forest.points[first], *middle, forest.points[last]])
        path = trunk_path(course, winding, rng)
        radii[int(forest.add(path, -1, None, bridge=True)[-1])] = float(rng.uniform(*BRIDGE_RADIUS))
    return radii


def _with_radii(
    forest: Forest, bridges: dict[int, float], joins: tuple[Join, ...], rng: np.random.Generator
) -> VesselTree:
    """Choose the radii of the ends so that every trunk starts with its calibre."""
    points, parent = np.array(forest.points), np.array(forest.parent)
    length = np.linalg.norm(points - points[np.maximum(parent, 0)], axis=1) * (parent >= 0)
    ends = rng.uniform(1 - TWIG_SPREAD, 1 + TWIG_SPREAD, len(points))
    territory = np.array([t or "" for t in forest.territory])
    ends[territory == ""] = BLIND_END
    ends[list(bridges)] = list(bridges.values())
    _, start = murray_radii(parent, length, ends, joins)
    for name in sorted(set(territory) - {""}):
        nodes = np.flatnonzero(territory == name)
        calibre = TERRITORIES[name[:-1]].calibre * (1 + CALIBRE_SPREAD * rng.standard_normal())
        ends[nodes] *= max(calibre, 0.3) / start[nodes[0]]
    radius, start = murray_radii(parent, length, ends, joins)
    return VesselTree(points, parent, radius, start, np.array(forest.bridge), joins)
