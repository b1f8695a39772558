"""The vessels of the lungs: from each hilum a tree that reaches all of its lung.

Points that want blood are drawn in the lung and served one by one, far ones first, from the vessel
that is nearest; by Murray's law the cube of a vessel's radius is the sum of its branches' cubes.
"""

from __future__ import annotations

import numpy as np

from medpair.data.phantoms.capsules import Capsules, rasterise
from medpair.data.phantoms.shapes import Space, paint
from medpair.data.phantoms.thorax_anatomy import Chest, bronchi_courses
from medpair.data.phantoms.thorax_build import Build

__all__ = ["grow_tree", "paint_lung_vessels"]

ENDS = 340  # points served in each lung
TWIG = (0.75, 1.1)  # mm, radius of the last branches
JOINTS = 3  # nodes that a branch adds
BOW = 0.12  # how far a branch strays from straight, in parts of its length
AHEAD = 0.35  # of a branch's length: how far towards the hilum from the nearest node it leaves
VESSEL = 35.0  # HU
ROOM = 2.0  # mm under the pleura are free of vessels that show


def grow_tree(
    root: np.ndarray, ends: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grow a tree from root (3,) to ends (M, 3), in mm.

    Returns:
        points (N, 3), parent (N,), -1 for the root and before its children, and radius (N,) in mm.
    """
    count = 1 + JOINTS * len(ends)
    points, parent = np.zeros((count, 3)), np.full(count, -1)
    points[0] = root
    away = np.linalg.norm(ends - root, axis=1)
    along = np.arange(1, JOINTS + 1)[:, None] / JOINTS
    used = 1
    # Half of the points, far ones first, make the stems; the rest fills in.
    order = np.argsort(-away[: len(ends) // 8]).tolist()
    for end in ends[[*order, *range(len(order), len(ends))]]:
        distance = np.linalg.norm(points[:used] - end, axis=1)
        near = int(np.argmin(distance))
        for _ in range(round(AHEAD * distance[near] / 8)):
            near = max(int(parent[near]), 0)
        start = points[near]
        stray = BOW * np.linalg.norm(end - start) * rng.standard_normal(3)
        bowed = start + along * (end - start) + np.sin(np.pi * along) * stray
        points[used : used + JOINTS] = bowed
        parent[used : used + JOINTS] = [near, *range(used, used + JOINTS - 1)]
        used += JOINTS
    return points, parent, _radii(parent, rng)


def _radii(parent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Murray's law from the ends to the root; a softer exponent lets the stems not get too wide."""
    leaf = np.ones(len(parent), bool)
    leaf[parent[1:]] = False
    flow = np.where(leaf, rng.uniform(*TWIG, len(parent)) ** 3, 0.0)
    for node in range(len(parent) - 1, 0, -1):
        flow[parent[node]] += flow[node]
    return np.cbrt(flow)


def paint_lung_vessels(
    image: np.ndarray,
    share: np.ndarray,
    chest: Chest,
    space: Space,
    build: Build,
    rng: np.random.Generator,
) -> None:
    """Paint both trees into an image (W, H, D) of CT numbers, where ``share`` of it is lung."""
    deep = chest.lungs < -ROOM
    for side, course in zip((-1, 1), bronchi_courses(build), strict=True):
        here = np.flatnonzero(deep & (chest.middle * side > 0))
        if not len(here):
            continue
        picks = here[rng.integers(len(here), size=ENDS)]
        ends = np.stack([c.reshape(-1)[picks] for c in (space.x, space.y, space.z)], 1)
        root = course[1] + (course[2] - course[1]) * 0.6
        points, parent, radius = grow_tree(root, ends.astype(float), rng)
        corner = points @ space.matrix.T + space.offset + 0.5
        grid = corner * space.step
        tubes = Capsules(grid[parent[1:]], grid[1:], np.stack([radius[1:], radius[1:]], 1))
        tubes = tubes.take(tubes.reach(np.multiply(space.shape, space.step)))
        filled = rasterise(tubes, np.full(len(tubes.radii), VESSEL), space.shape, tuple(space.step))
        blood = np.zeros(space.shape, np.float32)
        blood.reshape(-1)[filled.voxel] = filled.fraction
        paint(image, blood * share, VESSEL)
