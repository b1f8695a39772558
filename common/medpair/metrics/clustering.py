"""k-means with many starts at once: the starts share each pass over the data, as columns of one
matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medpair.metrics.frechet import Features

Labels = NDArray[np.int64]
Rows = NDArray[np.float32]

# Passes over the data, at most; tens are usual.
_PASSES = 300


def kmeans(
    rows: Features, clusters: int, generators: Sequence[np.random.Generator], starts: int = 10
) -> Labels:
    """Return the cluster of each row, once for every generator.

    Each generator draws ``starts`` sets of centres, every centre among the rows with a chance that
    grows with its squared distance to those before it; from the set that lies nearest to the rows,
    Lloyd's passes go on until no row changes its cluster. Computed in single precision, about the
    mean of the rows.
    Reference: Arthur & Vassilvitskii 2007, SODA, section 2.2; Lloyd 1982.

    Args:
        rows: (N, D), N >= 1.
        clusters: K.
        generators: one for each run.
        starts: sets of first centres to choose from.

    Returns:
        (runs, N) numbers below K. A cluster may be empty.
    """
    middle = rows - rows.mean(axis=0)
    # of single precision's range, neither end is near
    points = (middle / (np.abs(middle).max() or 1.0)).astype(np.float32)
    squares = np.einsum("nd,nd->n", points, points)
    chosen = _first_centres(points, squares, clusters, generators, starts)
    return _lloyd(points, points[chosen])


def _first_centres(
    points: Rows,
    squares: Rows,
    clusters: int,
    generators: Sequence[np.random.Generator],
    starts: int,
) -> Labels:
    """Return (runs, K) rows: of each run's ``starts`` choices the one nearest to all rows."""
    # all random numbers of a run from its own generator, whatever the other runs draw
    drawn = np.concatenate([generator.random((starts, clusters)) for generator in generators])
    count = len(points)
    chosen = np.empty(drawn.shape, np.int64)
    chosen[:, 0] = np.minimum(drawn[:, 0] * count, count - 1)
    nearest = _squared_distances(points, squares, chosen[:, 0])
    for number in range(1, clusters):
        upto = np.cumsum(nearest, axis=1, dtype=np.float64)
        # where every row is a centre already, any row does
        upto = np.where(upto[:, -1:] > 0, upto, np.arange(1, count + 1))
        chosen[:, number] = [
            np.searchsorted(sums, share * sums[-1], side="right")
            for sums, share in zip(upto, drawn[:, number], strict=True)
        ]
        nearest = np.minimum(nearest, _squared_distances(points, squares, chosen[:, number]))
    best = nearest.sum(axis=1, dtype=np.float64).reshape(-1, starts).argmin(axis=1)
    return chosen.reshape(-1, starts, clusters)[np.arange(len(best)), best]


def _squared_distances(points: Rows, squares: Rows, chosen: Labels) -> Rows:
    """Return (S, N) squared distances of all rows to ``chosen`` ones; none is below 0."""
    crossed = points[chosen] @ points.T
    crossed *= -2
    crossed += squares
    crossed += squares[chosen, None]
    crossed[np.arange(len(chosen)), chosen] = 0
    return np.maximum(crossed, 0, out=crossed)


def _lloyd(points: Rows, centres: Rows) -> Labels:
    """Return (runs, N) clusters that Lloyd's passes from ``centres`` (runs, K, D) end with."""
    runs, clusters, _ = centres.shape
    labels = np.full((runs, len(points)), -1, np.int64)
    moving = np.arange(runs)
    for _ in range(_PASSES):
        near = points @ centres.reshape(-1, points.shape[1]).T
        near = 0.5 * np.square(centres).sum(axis=2) - near.reshape(len(points), -1, clusters)
        found = near.argmin(axis=2).T
        changed = (found != labels[moving]).any(axis=1)
        labels[moving] = found
        moving, found, centres = moving[changed], found[changed], centres[changed]
        if not len(moving):
            break
        member = (found[:, None] == np.arange(clusters)[:, None]).astype(np.float32)
        held = member.sum(axis=2, keepdims=True)
        sums = (member.reshape(-1, len(points)) @ points).reshape(centres.shape)
        # a centre that lost all its rows stays where it was
        centres = np.where(held > 0, sums / np.maximum(held, 1), centres)
    return labels
