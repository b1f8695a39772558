"""SPADE: a normalised feature map, scaled and shifted by what a label map says (Park et al. 2019).

gamma and beta depend on the label map alone, not on the features: a network that is evaluated many
times under one label map (a diffusion sampler) computes them once. Kept for every pixel they take
more memory than the network's features; but they depend on the classes of a pixel's 5x5
neighbourhood alone, and few of all possible neighbourhoods occur, over and over. So
``compact_modulations`` keeps one row for each that occurs, and the number of its row for every
pixel.

Without gradients, features are changed in place: nobody else holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# 1 + gamma and beta of one layer, each (B, C, H, W); or, compact, the row of each pixel
# (B, H, W) int32, and the rows (2, rows, C)
Modulation = tuple[Tensor, Tensor]

# Rows that are computed at a time, and pixels whose hidden features are
ROWS_AT_ONCE, PIXELS_AT_ONCE = 2**13, 2**17


def modulated(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return ``x * scale + shift``; without gradients and if their type allows it in ``x``."""
    if torch.is_grad_enabled() or torch.result_type(x, scale) != x.dtype:
        return x * scale + shift
    return x.mul_(scale).add_(shift)


class SPADE(nn.Module):
    """``norm(x) (1 + gamma(label)) + beta(label)``.

    Args:
        channels: of the features.
        label_channels: of the label map (or of whatever else steers the layer).
        hidden: width between the label map and gamma, beta (128 in the paper).
        norm: parameter-free normalisation of the features; returns a new tensor.
        scale: the features are smaller than the label map by this factor.
    """

    def __init__(
        self, channels: int, label_channels: int, hidden: int, norm: nn.Module, scale: int = 1
    ) -> None:
        super().__init__()
        self.norm = norm
        self.scale = scale
        self.shared = nn.Sequential(nn.Conv2d(label_channels, hidden, 3, padding=1), nn.ReLU())
        # one convolution gives both
        self.gamma_beta = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def scaled(self, label: Tensor) -> Tensor:
        """Return a label map at the features' size."""
        if self.scale > 1:
            size = [n // self.scale for n in label.shape[2:]]
            label = F.interpolate(label, size, mode="nearest-exact")
        return label

    def modulation(self, label: Tensor) -> Modulation:
        """Return 1 + gamma and beta for a label map (B, label_channels, H, W) at full size."""
        gamma, beta = self.gamma_beta(self.shared(self.scaled(label))).chunk(2, dim=1)
        return 1 + gamma, beta

    def forward(self, x: Tensor, modulation: Modulation, silu: bool = False) -> Tensor:
        """Return (B, C, H, W) normalised and modulated, and if told so through a SiLU."""
        scale, shift = modulation
        h = self.norm(x)
        sampling = not torch.is_grad_enabled()
        if scale.is_floating_point():
            h = modulated(h, scale, shift)
            return F.silu(h, inplace=sampling) if silu else h
        if not sampling or torch.result_type(h, shift) != h.dtype:
            h = h * spread(scale, shift[0]) + spread(scale, shift[1])
            return F.silu(h) if silu else h
        # spread over all pixels at once they would be as large as the features, and leave a CPU's
        # caches
        most = 2048 if h.device.type == "cpu" else 2097152
        lines = max(1, most // (h.shape[0] * h.shape[3]))
        for first in range(0, h.shape[2], lines):
            part, index = h[:, :, first : first + lines], scale[:, first : first + lines]
            part.mul_(spread(index, shift[0])).add_(spread(index, shift[1]))
            if silu:
                F.silu(part, inplace=True)
        return h


def spread(index: Tensor, rows: Tensor) -> Tensor:
    """Return (B, C, H, W), channels last: for each pixel of (B, H, W) its row of (rows, C)."""
    return F.embedding(index, rows).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Places:
    """Which pixels of label maps look alike.

    Attributes:
        index: (B, H, W) int32, the row of each pixel.
        pixels: (rows,) a pixel of each row, counted through (B, H, W).
    """

    index: Tensor
    pixels: Tensor


def places_of(label: Tensor) -> Places:
    """Tell apart the 5x5 neighbourhoods that occur in label maps; beyond the border is nothing.

    Args:
        label: (B, K, H, W) one-hot, or zeros for no class.
    """
    kinds, width = label.shape[1] + 2, label.shape[3]
    numbers = torch.arange(1, kinds - 1, dtype=label.dtype, device=label.device)
    # 1 is no class, 0 beyond the border
    code = 1 + (label * numbers[:, None, None]).sum(1, keepdim=True)
    around = F.pad(code, (2, 2, 2, 2))
    inner = F.max_pool2d(around, 5, 1) == -F.max_pool2d(-around, 5, 1)
    # most pixels see one class only: they need no search
    index = code.flatten().long()
    others = (~inner.flatten()).nonzero()[:, 0]
    line = torch.zeros_like(index).view(len(label), -1, width)
    line = F.pad(line, (0, 0, 2, 2))
    for shift in range(5):  # the five pixels of a line as one number
        line = line * kinds + around[:, 0, :, shift : shift + width].long()
    line, place = line.flatten(), _row_above(others, label)
    lines = torch.stack([line[place + n * width] for n in range(5)])
    known, lines = torch.unique(lines, return_inverse=True)
    seen = lines[0]
    for number in range(1, 5):
        _, seen = torch.unique(seen * len(known) + lines[number], return_inverse=True)
    index[others] = kinds + seen
    count = len(index)
    pixels = torch.full((int(index.max()) + 1,), count - 1, device=index.device)
    everywhere = torch.arange(count, device=index.device)
    # the first of each kind; of a class that no pixel sees alone any pixel does
    pixels = pixels.scatter_reduce(0, index, everywhere, "amin")
    return Places(index.int().view(len(label), *label.shape[2:]), pixels)


def _row_above(pixels: Tensor, label: Tensor) -> Tensor:
    """Return, in maps padded by two lines on both sides, the pixels two lines above ``pixels``."""
    size = label.shape[2] * label.shape[3]
    return pixels + pixels // size * (4 * label.shape[3])


def compact_modulations(layers: Sequence[SPADE], label: Tensor) -> list[Modulation]:
    """Return what one-hot label maps (B, K, H, W) contribute to each layer, compact."""
    found: dict[int, Places] = {}
    result = []
    for layer in layers:
        small = layer.scaled(label)
        if layer.scale not in found:
            found[layer.scale] = places_of(small)
        result.append((found[layer.scale].index, _rows(layer, small, found[layer.scale].pixels)))
    return result


def _rows(layer: SPADE, label: Tensor, pixels: Tensor) -> Tensor:
    """Return 1 + gamma and beta (2, rows, C) at some pixels of label maps of the layer's size."""
    height, width = label.shape[2:]
    size, weight = height * width, layer.gamma_beta.weight
    kernel = weight.permute(0, 2, 3, 1).flatten(1)
    steps = torch.arange(3, device=label.device)
    window = (steps[:, None] * (width + 2) + steps).flatten()
    maps = max(1, PIXELS_AT_ONCE // size)
    rows = None
    for first in range(0, len(label), maps):
        of_these = (pixels // (size * maps) == first // maps).nonzero()[:, 0]
        hidden = F.pad(layer.shared(label[first : first + maps]), (1, 1, 1, 1))
        hidden = hidden.permute(0, 2, 3, 1).flatten(0, 2)
        for mine in of_these.split(ROWS_AT_ONCE):
            at = pixels[mine] - first * size
            # the window's first pixel, in maps with a margin of one
            line = at // size * (height + 2) + at % size // width
            at = line * (width + 2) + at % width
            seen = hidden[at[:, None] + window].flatten(1)
            gamma, beta = F.linear(seen, kernel, layer.gamma_beta.bias).chunk(2, dim=1)
            if rows is None:
                rows = gamma.new_empty(2, len(pixels), gamma.shape[1])
            rows[0, mine], rows[1, mine] = 1 + gamma, beta
    assert rows is not None
    return rows
