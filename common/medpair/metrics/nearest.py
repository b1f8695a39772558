"""The nearest volumes of another cohort, whatever flip and rigid motion lies between them.

All pairs are compared in all eight flips by masked correlations, which are matrix products
(Padfield 2012, "Masked object registration in the Fourier domain", IEEE TIP 21:2706-2718, eqs.
20-22, at zero displacement). The best few of each volume are aligned and measured again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from medpair.metrics.elastic import displaced, elastic_align
from medpair.metrics.rigid import correlation, resampled, rigid_align

FLIPS = tuple(
    tuple(axis for axis, flipped in enumerate(choice) if flipped)
    for choice in product((False, True), repeat=3)
)
# Pairs that are aligned at a time: bounds the memory.
BATCH = 32
# Less of the frame in common, and a distance says nothing.
LEAST_OVERLAP = 0.4
Space = Literal["image", "label"]


@dataclass(frozen=True)
class Grid:
    """A cohort on a common grid of cubic voxels.

    Attributes:
        values: (N, C, H, W, D) float32.
        mask: (N, 1, H, W, D), 1 where the volume reaches.
    """

    values: Tensor
    mask: Tensor

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: Tensor) -> Grid:
        return Grid(self.values[index], self.mask[index])

    def flipped(self, axes: tuple[int, ...]) -> Grid:
        """Return the cohort mirrored along these axes (0 to 2)."""
        dims = [axis + 2 for axis in axes]
        return Grid(self.values.flip(dims), self.mask.flip(dims)) if dims else self

    def halved(self) -> Grid:
        """Return the cohort at half the resolution; voxels only partly inside are outside."""
        pooled = nnf.avg_pool3d(self.mask, 2, ceil_mode=True, count_include_pad=False)
        values = nnf.avg_pool3d(self.values, 2, ceil_mode=True, count_include_pad=False)
        return Grid(values, (pooled > 0.99).float())


@dataclass(frozen=True)
class Neighbours:
    """The nearest volumes of each volume, nearest first.

    Attributes:
        distance: (N, K), images after rigid and smooth elastic, labels after rigid alignment.
        rigid: (N, K), the same pairs after rigid alignment alone.
        index: (N, K) into the other cohort.
        flip: (N, K) into ``FLIPS``: how the volume had to be mirrored.
        apart: (N, K) as ``rigid``, without what the other volumes of its own cohort share; where
            that was not asked for, the same.
    """

    distance: Tensor
    rigid: Tensor
    index: Tensor
    flip: Tensor
    apart: Tensor


def common_image(images: Grid) -> Tensor:
    """Return (1, C, H, W, D) the mean of a cohort where volumes reach."""
    total = images.mask.sum(0, keepdim=True).clamp(min=1)
    return (images.values * images.mask).sum(0, keepdim=True) / total


def common_of_others(images: Grid) -> Tensor:
    """Return (N, C, H, W, D): for each volume the mean of all others, where these reach.

    A volume is not judged by a mean that it is a part of: it would seem farther from everything
    than one that is not.
    """
    inside = images.values * images.mask
    left = (images.mask.sum(0, keepdim=True) - images.mask).clamp(min=1)
    return (inside.sum(0, keepdim=True) - inside) / left


def nearest(
    queries: Grid,
    targets: Grid,
    space: Space,
    common: Tensor | None = None,
    neighbours: int = 6,
    same: bool = False,
    others: Tensor | None = None,
    progress: Callable[[int], object] | None = None,
) -> Neighbours:
    """Find the nearest targets of each query.

    The image distance is 1 - the correlation of what is left when ``common`` is taken away: what
    all volumes share says nothing about who is who. The label distance is 1 - the Dice overlap of
    soft labels, averaged over the channels.

    Args:
        queries: (N, C, H, W, D).
        targets: (M, C, H, W, D), of the same grid.
        space: ``image`` or ``label``.
        common: (1, C, H, W, D) what the cohort's volumes share; None: nothing.
        neighbours: how many to align and return; fewer where there are fewer targets.
        same: queries and targets are one cohort: a volume is not its own neighbour.
        others: (N, C, H, W, D) what to take away for ``apart``, of queries that are a part of
            ``common``.
        progress: called with the number of queries done.

    Raises:
        ValueError: if there is no target.
    """
    count = min(neighbours, len(targets) - same)
    if count < 1:
        raise ValueError(f"targets: expected at least one other volume, found {len(targets)}")
    shared = torch.zeros_like(targets.values[:1]) if common is None else common
    scores = coarse_correlations(queries, targets, shared)
    if same:
        scores.diagonal(dim1=1, dim2=2).fill_(-2.0)
    best, flip = scores.max(0)
    index = best.topk(count, dim=1).indices
    flip = flip.gather(1, index)
    distance, rigid, apart = (torch.empty(index.shape) for _ in range(3))
    rows = max(1, BATCH // count)
    for first in range(0, len(queries), rows):
        part = slice(first, first + rows)
        own = torch.arange(len(queries))[part, None].expand_as(index[part]).reshape(-1)
        moving = _mirrored(queries, own, flip[part].reshape(-1))
        fixed = targets[index[part].reshape(-1)]
        own_shared = None if others is None else others[own]
        measured = aligned_distances(moving, fixed, space, shared, own_shared)
        rigid[part], distance[part], apart[part] = (values.view(-1, count) for values in measured)
        if progress is not None:
            progress(len(index[part]))
    order = distance.argsort(dim=1)
    return Neighbours(*(table.gather(1, order) for table in (distance, rigid, index, flip, apart)))


def coarse_correlations(queries: Grid, targets: Grid, common: Tensor) -> Tensor:
    """Return (8, N, M): correlations of all pairs as they lie, for each of ``FLIPS``."""
    small, other = queries.halved(), targets.halved()
    shared = Grid(common, torch.ones_like(common[:, :1])).halved().values
    two = _terms(other.values - shared, other.mask)
    scores = []
    for axes in FLIPS:
        turned = small.flipped(axes)
        scores.append(_masked_correlations(_terms(turned.values - shared, turned.mask), two))
    return torch.stack(scores)


def aligned_distances(
    moving: Grid, fixed: Grid, space: Space, common: Tensor, others: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (P,) distances of pairs after rigid alignment, and after elastic for images.

    The third are the first again, measured without (P, ...) ``others`` if these are given. Labels
    stay rigid: a deformation makes any two of them alike.
    """
    small, other = moving.halved(), fixed.halved()
    maps = rigid_align(small.values, small.mask, other.values, other.mask)
    half = resampled(torch.cat([small.values, small.mask], dim=1), maps)
    maps = torch.cat([maps[..., :3], 2 * maps[..., 3:]], dim=2)
    laid = resampled(torch.cat([moving.values, moving.mask], dim=1), maps)
    if space == "label":
        unlike = (1 - soft_dice(laid[:, :-1], fixed.values)).clamp(min=0)
        return unlike, unlike, unlike
    rigid = _residual_distance(laid, fixed, common)
    mask = (half[:, -1:] > 0.5).float()
    bent = elastic_align(half[:, :-1], mask, other.values, other.mask)
    elastic = torch.minimum(rigid, _residual_distance(displaced(laid, bent), fixed, common))
    return rigid, elastic, rigid if others is None else _residual_distance(laid, fixed, others)


def _residual_distance(laid: Tensor, fixed: Grid, common: Tensor) -> Tensor:
    """Return (P,) 1 - the correlation without ``common``; ``laid`` ends with its mask."""
    mask = (laid[:, -1:] > 0.9) * fixed.mask
    similar = correlation(laid[:, :-1] - common, fixed.values - common, mask)
    enough = mask.flatten(1).mean(1) >= LEAST_OVERLAP * fixed.mask.flatten(1).mean(1)
    # of equal volumes rounding would leave less than nothing
    return torch.where(enough, (1 - similar).clamp(min=0), 1.0)


def soft_dice(one: Tensor, two: Tensor) -> Tensor:
    """Return (P,) mean Dice of (P, C, ...) memberships over channels that either volume has.

    0 where neither has any: of empty label maps nothing says who is who.
    """
    a, b = one.flatten(2), two.flatten(2)
    total = a.sum(2) + b.sum(2)
    dice = 2 * torch.minimum(a, b).sum(2) / total.clamp(min=1e-6)
    there = total > 1e-3
    mean = (dice * there).sum(1) / there.sum(1).clamp(min=1)
    return torch.where(there.any(1), mean, 0.0)


def _mirrored(cohort: Grid, index: Tensor, flip: Tensor) -> Grid:
    """Return the volumes ``index``, each mirrored by its own flip."""
    chosen = cohort[index]
    values, mask = chosen.values.clone(), chosen.mask.clone()
    for number in flip.unique().tolist():
        rows = flip == number
        turned = chosen[rows].flipped(FLIPS[number])
        values[rows], mask[rows] = turned.values, turned.mask
    return Grid(values, mask)


def _terms(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (N, C V) masks, masked values and their squares."""
    weight = mask.expand_as(values).flatten(1)
    inside = values.flatten(1) * weight
    return weight, inside, inside.square()


def _masked_correlations(
    one: tuple[Tensor, Tensor, Tensor], two: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    (weight_a, a, aa), (weight_b, b, bb) = one, two
    count = (weight_a @ weight_b.T).clamp(min=1)
    sum_a, sum_b = a @ weight_b.T, weight_a @ b.T
    spread_a = aa @ weight_b.T - sum_a.square() / count
    spread_b = weight_a @ bb.T - sum_b.square() / count
    scale = (spread_a.clamp(min=0) * spread_b.clamp(min=0)).sqrt()
    product_ab = a @ b.T - sum_a * sum_b / count
    return torch.where(scale > 1e-6, product_ab / scale.clamp(min=1e-6), 0.0)
