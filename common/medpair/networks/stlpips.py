"""The AlexNet of shift-tolerant LPIPS (Ghildyal and Liu 2022, ECCV, arXiv 2207.13686).

LPIPS is a weighted squared distance of normalised activations (Zhang et al. 2018, equation 1). The
shift-tolerant AlexNet strides nowhere: it blurs with reflected borders and takes every second
sample, after the first convolution and after both max-pools.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

# output channels of the five levels that are compared
CHANNELS = (64, 192, 384, 256, 256)
EPSILON = 1e-10


class Blur(nn.Module):
    """Blur each channel with a stored 3 x 3 filter and keep every second sample."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        binomial = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = torch.outer(binomial, binomial)
        self.register_buffer("filt", kernel.expand(channels, 1, 3, 3).clone())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H / 2 + 1, W / 2 + 1)."""
        padded = functional.pad(x, (2, 2, 2, 2), mode="reflect")
        return functional.conv2d(padded, self.filt, stride=2, groups=len(self.filt))


class Scaling(nn.Module):
    """Shift and scale of each colour, stored with the weights."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) -> the same shape."""
        return (x - self.shift) / self.scale


class ShiftTolerantAlexNet(nn.Module):
    """Distance of two batches of pictures (B, 3, H, W) in -1..1 -> (B,).

    Its state dict has the names of the published weights (``alex_shift_tolerant.pth``).
    """

    def __init__(self) -> None:
        super().__init__()
        one, two, three, four, five = CHANNELS
        # the published names count the layers through all levels
        levels = [
            {0: nn.Conv2d(3, one, 11, padding=2), 1: Blur(one), 2: nn.ReLU()},
            {
                3: nn.MaxPool2d(3, stride=1),
                4: Blur(one),
                5: nn.Conv2d(one, two, 5, padding=2),
                6: nn.ReLU(),
            },
            {
                7: nn.MaxPool2d(3, stride=1),
                8: Blur(two),
                9: nn.Conv2d(two, three, 3, padding=1),
                10: nn.ReLU(),
            },
            {11: nn.Conv2d(three, four, 3, padding=1), 12: nn.ReLU()},
            {13: nn.Conv2d(four, five, 3, padding=1), 14: nn.ReLU()},
        ]
        self.net = nn.ModuleDict()
        for number, layers in enumerate(levels, start=1):
            level = nn.Sequential()
            for index, layer in layers.items():
                level.add_module(str(index), layer)
            self.net[f"slice{number}"] = level
        for number, channels in enumerate(CHANNELS):
            head = nn.Module()
            head.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))
            self.add_module(f"lin{number}", head)
        self.scaling_layer = Scaling()
        self.eval()

    def _levels(self, x: Tensor) -> list[Tensor]:
        """Return the activations of the five levels, each voxel's of length 1."""
        x = self.scaling_layer(x)
        found = []
        for level in self.net.values():
            x = level(x)
            length = x.square().sum(dim=1, keepdim=True).sqrt()
            found.append(x / (length + EPSILON))
        return found

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Sum over the levels the mean over the pixels of the weighted squared difference."""
        total = first.new_zeros(len(first))
        for number, (a, b) in enumerate(
            zip(self._levels(first), self._levels(second), strict=True)
        ):
            head = self.get_submodule(f"lin{number}.model")
            total = total + head((a - b).square()).mean(dim=(1, 2, 3))
        return total
