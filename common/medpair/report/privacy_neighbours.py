"""Training, synthetic and held-out volumes on one grid, and which of them are near one another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from medpair.metrics.copies import isolation
from medpair.metrics.nearest import Grid, Neighbours, Space, common_image, common_of_others, nearest
from medpair.report.pairs import Pair, PairFolder
from medpair.report.privacy_grid import GridCohort

LEAST_VOLUMES, LEAST_HELD_OUT = 5, 2
# Soft foreground voxels of a label map that has none
EMPTY = 1e-3
WHAT = {"real": "training", "synthetic": "synthetic", "holdout": "held-out"}


class GridCohorts:
    """The cohorts on the common grid in one space, and the neighbours found so far.

    Label maps without foreground are left out: they are like no other, and so would neither be
    found to be copies nor say how near others may be.

    Attributes:
        space: what is compared.
        names: of the volumes of each cohort that can be compared at all.
    """

    def __init__(self, grids: Mapping[str, GridCohort], space: Space) -> None:
        self.space = space
        self.names: dict[str, list[str]] = {}
        self.grids: dict[str, Grid] = {}
        for name, cohort in grids.items():
            kept = torch.arange(len(cohort.names))
            if space == "label":
                kept = kept[~_without_foreground(cohort)]
            if name == "holdout" and len(kept) < LEAST_HELD_OUT:
                continue
            self.names[name] = [cohort.names[index] for index in kept.tolist()]
            self.grids[name] = (cohort.images if space == "image" else cohort.labels)[kept]
        images = space == "image"
        self._common = common_image(self.grids["real"]) if images else None
        self._others = common_of_others(self.grids["real"]) if images else None
        self._found: dict[tuple[str, str], Neighbours] = {}

    def neighbours(self, one: str, two: str) -> Neighbours:
        """Return the neighbours of a cohort in another, or in itself."""
        if (one, two) not in self._found:
            others = self._others if one == "real" else None
            queries, targets = self.grids[one], self.grids[two]
            self._found[one, two] = nearest(
                queries, targets, self.space, self._common, same=one == two, others=others
            )
        return self._found[one, two]

    def distance(self, one: str, two: str) -> np.ndarray:
        """Return (N,) rigid distances to the nearest volume."""
        return self.neighbours(one, two).rigid.min(1).values.double().numpy()

    def distance_apart(self, one: str, two: str) -> np.ndarray:
        """Return the same, of training volumes without what the others of them share."""
        return self.neighbours(one, two).apart.min(1).values.double().numpy()

    def isolations(self, one: str) -> np.ndarray:
        """Return (N,) isolations of the nearest training volume."""
        return isolation(self.neighbours(one, "real").distance.numpy())


def each_once(pairs: PairFolder, seen: dict[str, int]) -> Iterator[Pair]:
    """Yield pairs whose image none before has, and note their indices in ``seen``."""
    for index, pair in enumerate(pairs):
        digest = hashlib.sha256(pair.image.tobytes()).hexdigest()
        if seen.setdefault(digest, index) == index:
            yield pair


def _without_foreground(cohort: GridCohort) -> torch.Tensor:
    """Return (N,) whose label maps have no foreground in the frame."""
    return cohort.labels.values.flatten(1).sum(1) < EMPTY


def enough_to_compare(grids: Mapping[str, GridCohort], space: Space) -> bool:
    """Tell whether there are label maps to compare; images there are."""
    with_any = {name: int((~_without_foreground(grid)).sum()) for name, grid in grids.items()}
    return space == "image" or (with_any["real"] >= LEAST_VOLUMES and with_any["synthetic"] > 0)


def empty_labels(grids: Mapping[str, GridCohort]) -> list[str]:
    """Say how many label maps have no foreground in the frame: they are like no other."""
    counts = {name: int(_without_foreground(grid).sum()) for name, grid in grids.items()}
    said = [f"{count} {WHAT[name]}" for name, count in sorted(counts.items()) if count]
    if not said:
        return []
    return [
        "Label maps without foreground are like no other, and are compared by their images alone: "
        f"{', '.join(said)} of that kind."
    ]
