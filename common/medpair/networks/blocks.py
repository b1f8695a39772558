"""Building blocks shared by the networks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the field's own name)


def require_widths(channels: Any, least: int = 1) -> None:
    """Refuse what is no width for each of a network's levels.

    Raises:
        ValueError: ``channels`` is no list of whole numbers of at least ``least``.
    """
    whole = isinstance(channels, (list, tuple)) and all(type(width) is int for width in channels)
    if not whole or not channels or min(channels) < least:
        raise ValueError(
            f"channels: expected a whole number of at least {least} for each level, "
            f"found {channels!r}"
        )


class UpsampleConv3d(nn.Conv3d):
    """Nearest-neighbour upsampling by 2, then a 3x3x3 convolution, computed as one operation.

    On an upsampled grid neighbouring voxels are copies, so each output voxel sees at most two
    different inputs per axis and the three taps ``(w0, w1, w2)`` collapse to two. Even outputs
    are ``w0 x[i-1] + (w1+w2) x[i]``, odd ones ``(w0+w1) x[i] + w2 x[i+1]``, which is a transposed
    convolution of stride 2 with the kernel ``(w2, w1+w2, w0+w1, w0)``: 64 taps for eight outputs
    instead of 216, and the upsampled tensor never exists. Parameters and state dict are those of
    ``nn.Conv3d``, so weights trained in either form load in the other.

    Shapes: (B, C_in, H, W, D) -> (B, C_out, 2H, 2W, 2D).

    Args:
        in_channels: C_in.
        out_channels: C_out.
        fused: ``False`` computes the plain form (tests, benchmarks).
    """

    def __init__(self, in_channels: int, out_channels: int, fused: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1)
        self.fused = fused

    def fused_weight(self) -> Tensor:
        """Return the (C_in, C_out, 4, 4, 4) kernel of the equivalent transposed convolution.

        Sums and copies stay in fp32 under autocast, as a matrix product would not.
        """
        return merged_taps(merged_taps(merged_taps(self.weight, 2), 3), 4).transpose(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Upsample (B, C_in, H, W, D) to (B, C_out, 2H, 2W, 2D)."""
        if not self.fused:
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            return self._conv_forward(x, self.weight, self.bias)
        return F.conv_transpose3d(x, self.fused_weight(), self.bias, stride=2, padding=1)


def merged_taps(weight: Tensor, axis: int) -> Tensor:
    """Turn the taps ``(w0, w1, w2)`` along an axis into ``(w2, w1 + w2, w0 + w1, w0)``."""
    first, middle, last = weight.unbind(axis)
    return torch.stack([last, middle + last, first + middle, first], dim=axis)
