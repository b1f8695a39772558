"""Smooth deformation of many pairs of small volumes at once: a slight warp must not hide a copy.

The displacement is a sum of low cosines per axis, found by damped Gauss-Newton steps (Ashburner
and Friston 1999, "Nonlinear spatial normalization using basis functions", Human Brain Mapping
7:254-266); higher cosines cost more.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from medpair.metrics.rigid import correlation

# Cosines per axis, and the price of bending in units of the mean curvature of the data term.
MODES = 3
STIFFNESS = 0.02


def elastic_align(
    moving: Tensor,
    moving_mask: Tensor,
    fixed: Tensor,
    fixed_mask: Tensor,
    steps: int = 6,
    modes: int = MODES,
    stiffness: float = STIFFNESS,
) -> Tensor:
    """Return coefficients (P, 3, K) of the displacement that lays ``moving`` onto ``fixed``.

    A pair keeps its best coefficients, at worst none: the correlation never falls.

    Args:
        moving: (P, C, H, W, D), rigidly aligned already.
        moving_mask: (P, 1, H, W, D).
        fixed: (P, C, H, W, D).
        fixed_mask: (P, 1, H, W, D).
        steps: Gauss-Newton steps.
        modes: cosines per axis; K is their cube.
        stiffness: price of bending.
    """
    pairs, channels = moving.shape[:2]
    basis, energy = _basis(moving.shape[2:], modes)
    found = torch.zeros(pairs, 3, basis.shape[1])
    best, kept = torch.full((pairs,), -2.0), found.clone()
    source = torch.cat([moving, *torch.gradient(moving, dim=(2, 3, 4)), moving_mask], dim=1)
    for step in range(steps + 1):
        laid = displaced(source, found, modes)
        values, mask = laid[:, :channels], (laid[:, -1:] > 0.5) * fixed_mask
        score = correlation(values, fixed, mask)
        better = score > best
        best, kept = (
            torch.where(better, score, best),
            torch.where(better[:, None, None], found, kept),
        )
        if step < steps:
            slopes = laid[:, channels:-1].unflatten(1, (3, channels)).flatten(3)
            found = found + _step(values, slopes, fixed, mask, basis, stiffness * energy, found)
    return kept


def displaced(volumes: Tensor, coefficients: Tensor, modes: int = MODES) -> Tensor:
    """Return (P, C, H, W, D) volumes moved by the displacement, which counts in shares of an axis.

    The same coefficients serve a grid of another resolution.
    """
    shape = volumes.shape[2:]
    basis, _ = _basis(shape, modes)
    shift = torch.einsum("vk,pik->pvi", basis, coefficients).unflatten(1, shape)
    axes = [(torch.arange(n, dtype=torch.float32) + 0.5) / n for n in shape]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) + shift
    return nnf.grid_sample(volumes, (2 * places - 1).flip(-1), align_corners=False)


def _basis(shape: torch.Size, modes: int) -> tuple[Tensor, Tensor]:
    """Return (V, K) products of cosines and (K,) their bending energies."""
    order = torch.arange(modes, dtype=torch.float32)
    lines = [
        torch.cos(torch.pi * (torch.arange(n, dtype=torch.float32)[:, None] + 0.5) * order / n)
        for n in shape
    ]
    basis = torch.einsum("xa,yb,zc->xyzabc", *lines).flatten(3).flatten(0, 2)
    squares = order.square()
    total = squares[:, None, None] + squares[None, :, None] + squares
    return basis, total.flatten().square() + 0.05


def _step(
    values: Tensor,
    slopes: Tensor,
    fixed: Tensor,
    mask: Tensor,
    basis: Tensor,
    price: Tensor,
    found: Tensor,
) -> Tensor:
    """Return (P, 3, K), one step; ``slopes`` (P, 3, C, V) are per voxel."""
    pairs, channels = values.shape[:2]
    sizes = torch.tensor(values.shape[2:], dtype=torch.float32)
    weight = mask.flatten(2).expand(-1, channels, -1)
    count = weight.flatten(1).sum(1).clamp(min=1)[:, None, None]
    m, f = values.flatten(2), fixed.flatten(2)
    mean_m, mean_f = ((part * weight).sum((1, 2), keepdim=True) / count for part in (m, f))
    m, f = (m - mean_m) * weight, (f - mean_f) * weight
    gain = ((m * f).sum((1, 2)) / m.square().sum((1, 2)).clamp(min=1e-6)).clamp(min=0.05)
    slope = slopes * sizes.view(1, 3, 1, 1) * weight[:, None] * gain.view(-1, 1, 1, 1)
    error = f - gain.view(-1, 1, 1) * m
    right = torch.einsum("picv,pcv->piv", slope, error) @ basis
    tensor = torch.einsum("picv,pjcv->pijv", slope, slope)
    size = basis.shape[1]
    normal = torch.empty(pairs, 3, size, 3, size)
    for one in range(3):
        for two in range(one, 3):
            block = basis.T @ (tensor[:, one, two, :, None] * basis)
            normal[:, one, :, two] = block
            normal[:, two, :, one] = block.mT
    normal = normal.flatten(3).flatten(1, 2)
    scale = torch.diagonal(normal, dim1=1, dim2=2).mean(1).clamp(min=1e-6)
    cost = scale[:, None] * price.repeat(3)
    right = right.flatten(1) - cost * found.flatten(1)
    solved = torch.linalg.solve(normal + torch.diag_embed(cost), right[..., None])
    return solved[..., 0].view(pairs, 3, size)
