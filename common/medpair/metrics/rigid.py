"""Rigid alignment of many pairs of small volumes at once.

The sum of squared differences is minimised over a rotation, a translation, a gain and an offset
by Gauss-Newton steps (Friston et al. 1995, "Spatial registration and normalization of images",
Human Brain Mapping 3:165-189): the best gain and offset make it a normalised cross-correlation.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

# Farther than this a pair is not the same volume put down askew: degrees, share of the frame.
MOST_ROTATION, MOST_SHIFT = 20.0, 0.25
# Of the normal matrix's diagonal: keeps directions that the image says nothing about at rest.
DAMPING = 1e-3


def rigid_align(
    moving: Tensor, moving_mask: Tensor, fixed: Tensor, fixed_mask: Tensor, steps: int = 6
) -> Tensor:
    """Return the rigid maps (P, 3, 4) that carry voxels of ``fixed`` to voxels of ``moving``.

    Positions count in voxels from the volume's centre; voxels are cubes. A pair whose steps lead
    nowhere keeps its best map, at worst the identity: the correlation never falls.

    Args:
        moving: (P, C, H, W, D).
        moving_mask: (P, 1, H, W, D), 1 where ``moving`` is known.
        fixed: (P, C, H, W, D).
        fixed_mask: (P, 1, H, W, D).
        steps: Gauss-Newton steps.
    """
    maps = torch.eye(3, 4).expand(len(moving), 3, 4).contiguous()
    best, kept = torch.full((len(moving),), -math.inf), maps.clone()
    source = torch.cat([moving, *_gradients(moving), moving_mask], dim=1)
    positions = _positions(moving.shape[2:])
    channels = moving.shape[1]
    bound = MOST_SHIFT * torch.tensor(moving.shape[2:], dtype=torch.float32)
    for step in range(steps + 1):
        sampled = _sample(source, maps, positions)
        values, gradients = sampled[:, :channels], sampled[:, channels:-1]
        mask = (sampled[:, -1:] > 0.5) * fixed_mask
        score = correlation(values, fixed, mask)
        better = score > best
        best, kept = torch.where(better, score, best), _where(better, maps, kept)
        if step < steps:
            turned = torch.einsum("pij,vj->pvi", maps[:, :, :3], positions.flatten(0, 2))
            move = _step(values, gradients.unflatten(1, (3, channels)), fixed, mask, turned)
            maps = _bounded(_moved(maps, move), maps, bound)
    return kept


def resampled(volumes: Tensor, maps: Tensor) -> Tensor:
    """Return (P, C, H, W, D) ``volumes`` as seen through ``maps`` (P, 3, 4); 0 from outside."""
    return _sample(volumes, maps, _positions(volumes.shape[2:]))


def correlation(one: Tensor, two: Tensor, mask: Tensor) -> Tensor:
    """Return (P,) normalised cross-correlations of (P, C, ...) where ``mask`` (P, 1, ...) is 1.

    The channels share one mean and one scale. Constant volumes correlate with nothing: 0.
    """
    count = (mask.flatten(1).sum(1) * one.shape[1]).clamp(min=1).view(-1, 1)
    a, b = ((volume * mask).flatten(1) for volume in (one, two))
    weight = mask.expand_as(one).flatten(1)
    a, b = (part - weight * part.sum(1, keepdim=True) / count for part in (a, b))
    scale = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(scale > 1e-6, (a * b).sum(1) / scale.clamp(min=1e-6), 0.0)


def _positions(shape: torch.Size) -> Tensor:
    """Return (H, W, D, 3) voxel positions from the centre."""
    axes = [torch.arange(n, dtype=torch.float32) - (n - 1) / 2 for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


def _sample(volumes: Tensor, maps: Tensor, positions: Tensor) -> Tensor:
    at = positions @ maps[:, None, None, :, :3].mT + maps[:, None, None, None, :, 3]
    half = torch.tensor([n / 2 for n in volumes.shape[2:]])
    # grid_sample wants the last axis first, and -1..1 from edge to edge
    return nnf.grid_sample(volumes, (at / half).flip(-1), align_corners=False)


def _gradients(volume: Tensor) -> list[Tensor]:
    return list(torch.gradient(volume, dim=(2, 3, 4)))


def _step(values: Tensor, gradients: Tensor, fixed: Tensor, mask: Tensor, turned: Tensor) -> Tensor:
    """Return (P, 6): rotation vector and translation of one Gauss-Newton step.

    Args:
        values: (P, C, H, W, D) moving volume as it lies now.
        gradients: (P, 3, C, H, W, D) of it.
        fixed: (P, C, H, W, D).
        mask: (P, 1, H, W, D).
        turned: (P, V, 3) rotated positions.
    """
    slope = gradients.flatten(3).permute(0, 2, 3, 1)  # (P, C, V, 3)
    torque = torch.linalg.cross(turned[:, None].expand_as(slope), slope)
    level = values.flatten(2)[..., None]
    columns = torch.cat([torque, slope, level, torch.ones_like(level)], dim=-1)
    weight = mask.flatten(2)[..., None]
    matrix = (columns * weight).flatten(1, 2)
    normal = matrix.mT @ columns.flatten(1, 2)
    right = matrix.mT @ fixed.flatten(1)[..., None]
    diagonal = torch.diagonal(normal, dim1=1, dim2=2)
    normal = normal + torch.diag_embed(DAMPING * diagonal + 1e-6)
    solved = torch.linalg.solve(normal, right)[..., 0]
    gain = solved[:, 6:7]
    # without a positive gain there is nothing alike to align
    return torch.where(gain > 0.05, solved[:, :6] / gain.clamp(min=0.05), 0.0)


def _moved(maps: Tensor, move: Tensor) -> Tensor:
    x, y, z = move[:, :3].unbind(1)
    zero = torch.zeros_like(x)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=1).view(-1, 3, 3)
    rotation = torch.linalg.matrix_exp(skew) @ maps[:, :, :3]
    return torch.cat([rotation, (maps[:, :, 3] + move[:, 3:])[..., None]], dim=2)


def _bounded(new: Tensor, old: Tensor, bound: Tensor) -> Tensor:
    """Keep the old map where the new one has left the bounds."""
    trace = torch.diagonal(new[:, :, :3], dim1=1, dim2=2).sum(1)
    least = 1 + 2 * math.cos(math.radians(MOST_ROTATION))
    fine = (trace >= least) & (new[:, :, 3].abs() <= bound).all(1)
    return _where(fine, new, old)


def _where(choice: Tensor, one: Tensor, two: Tensor) -> Tensor:
    return torch.where(choice.view(-1, 1, 1), one, two)
