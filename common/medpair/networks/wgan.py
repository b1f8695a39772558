"""Generator and critic of Subramaniam et al. 2022 (Medical Image Analysis 78:102396, Fig. 2).

A latent vector becomes an image and its label in one volume of ``1 + num_labels`` channels::

    z -> Linear -> (filters, grid) -> [upsample x2, conv 3, BN, ReLU] x 3 -> conv 3 -> tanh
    pair -> [conv 3 stride 2, norm, LeakyReLU] x 4 -> Linear -> score

The paper's settings are ``filters=512, num_upsamples=3``: its first Linear layer then holds 97 %
of the generator's parameters. One more upsampling block (``num_upsamples=4``) shrinks that layer
eightfold per block and is what the ``compact`` preset does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from medpair.networks.blocks import UpsampleConv3d

Norm = Literal["instance", "spectral", "none"]


class Generator(nn.Module):
    """Map latent vectors to paired volumes: channel 0 the image, the others the label channels.

    Shapes: (B, latent_size) or (B, latent_size, 1, 1, 1) -> (B, 1 + num_labels, H, W, D), in -1..1.

    Args:
        patch_size: (H, W, D), each divisible by ``2 ** num_upsamples``.
        num_labels: number of label channels, one per foreground class.
        latent_size: length of the latent vector (128 in the paper's code).
        filters: channels of the first grid; halved by every upsampling block (512; doubled: 1024).
        num_upsamples: upsampling blocks (3 in the paper).
        paper_init: draw convolution weights and BatchNorm scales from N(0, 0.05), as the paper's
            code does. A scale of mean zero starts the generator almost silent; the default
            keeps BatchNorm scales near 1 (the two have not been compared).
        label_bias: first bias of the label channels. Most voxels are background: starting there
            (-1.5 is tanh -0.9) makes the critic's first difference small.
        fused: see ``UpsampleConv3d``.
        channels_last: compute in the channels-last layout; on a CPU half as fast again.

    Raises:
        ValueError: if ``patch_size`` is not divisible as said, or ``filters`` cannot be halved.
    """

    def __init__(
        self,
        patch_size: Sequence[int] = (128, 128, 64),
        num_labels: int = 1,
        latent_size: int = 128,
        filters: int = 512,
        num_upsamples: int = 3,
        paper_init: bool = False,
        label_bias: float = 0.0,
        fused: bool = True,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.channels_last = channels_last
        if num_upsamples < 1 or latent_size < 1:
            found = f"{num_upsamples} and {latent_size}"
            raise ValueError(f"num_upsamples, latent_size: expected at least 1, found {found}")
        factor = 2**num_upsamples
        check_patch_size(patch_size, factor)
        if filters < 1 or filters % factor:
            raise ValueError(f"filters: expected a multiple of {factor}, found {filters}")
        # plain arguments, stored beside the weights so that inference can rebuild the network
        self.settings = {
            "patch_size": [int(size) for size in patch_size],
            "num_labels": int(num_labels),
            "latent_size": int(latent_size),
            "filters": int(filters),
            "num_upsamples": int(num_upsamples),
        }
        self.latent_size = latent_size
        self.patch_size = tuple(patch_size)
        self.num_labels = num_labels
        grid = [size // factor for size in patch_size]
        self.stem = nn.Sequential(
            nn.Linear(latent_size, filters * grid[0] * grid[1] * grid[2]),
            nn.Unflatten(1, (filters, *grid)),
            nn.BatchNorm3d(filters),
            nn.ReLU(inplace=True),
        )
        widths = [filters // 2**level for level in range(num_upsamples + 1)]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    UpsampleConv3d(wide, narrow, fused=fused),
                    nn.BatchNorm3d(narrow),
                    nn.ReLU(inplace=True),
                )
                for wide, narrow in pairwise(widths)
            )
        )
        self.head = nn.Conv3d(widths[-1], 1 + num_labels, kernel_size=3, padding=1)
        initialize(self, norm_mean=0.0 if paper_init else 1.0)
        if label_bias and self.head.bias is not None:
            nn.init.constant_(self.head.bias[1:], label_bias)

    def largest_activation(self) -> int:
        """Return the bytes of the largest tensor that one sample makes in fp32."""
        return 4 * self.head.in_channels * math.prod(self.patch_size)

    def forward(self, latent: Tensor) -> Tensor:
        """Return (B, 1 + num_labels, H, W, D) in -1..1 for (B, latent_size[, 1, 1, 1])."""
        grid = self.stem(latent.flatten(1))
        if self.channels_last:
            # the layers keep the layout of what they are given
            grid = grid.contiguous(memory_format=torch.channels_last_3d)
        return torch.tanh(self.head(self.blocks(grid)))


class Critic(nn.Module):
    """Score paired volumes; the higher, the more real (Wasserstein critic).

    Shapes: (B, 1 + num_labels, H, W, D) -> (B, 1).

    Args:
        patch_size: (H, W, D), each divisible by 8.
        num_labels: number of label channels.
        filters: channels of the last convolution; the first has an eighth of them.
        norm: ``instance`` (the paper's GP model), ``spectral`` (its SN models: convolutions only,
            the Linear layer is free), ``none``.

    Raises:
        ValueError: if a size is not divisible by 8, ``norm`` is unknown, or the patch is too small
            for instance norm.
    """

    def __init__(
        self,
        patch_size: Sequence[int] = (128, 128, 64),
        num_labels: int = 1,
        filters: int = 512,
        norm: Norm = "spectral",
    ) -> None:
        super().__init__()
        check_patch_size(patch_size, 8)
        if filters < 1 or filters % 8:
            raise ValueError(f"filters: expected a multiple of 8, found {filters}")
        if norm not in ("instance", "spectral", "none"):
            raise ValueError(f"norm: expected instance, spectral or none, found {norm!r}")
        # four halvings, rounded up: a patch size divisible by 8 need not be divisible by 16
        grid = [-(-size // 16) for size in patch_size]
        if norm == "instance" and max(grid) == 1:
            raise ValueError(
                f"patch_size: instance norm expects an axis over 16, found {list(patch_size)}"
            )
        widths = [1 + num_labels, filters // 8, filters // 4, filters // 2, filters]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(widths):
            layers.append(nn.Conv3d(narrow, wide, kernel_size=3, stride=2, padding=1))
            if norm == "instance":
                layers.append(nn.InstanceNorm3d(wide))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        self.features = nn.Sequential(*layers)
        self.score = nn.Linear(filters * grid[0] * grid[1] * grid[2], 1)
        initialize(self)
        if norm == "spectral":
            for layer in self.features:
                if isinstance(layer, nn.Conv3d):
                    spectral_norm(layer, eps=1e-12)

    def forward(self, pair: Tensor) -> Tensor:
        """Return the score (B, 1) of each pair (B, 1 + num_labels, H, W, D)."""
        return self.score(self.features(pair).flatten(1))


def initialize(network: nn.Module, std: float = 0.05, norm_mean: float = 1.0) -> None:
    """Draw convolution weights from N(0, std) and BatchNorm scales from N(norm_mean, std).

    ``std`` is the paper's code's. Linear layers keep PyTorch's default, as there.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.normal_(module.weight, 0.0, std)
        elif isinstance(module, nn.BatchNorm3d):
            nn.init.normal_(module.weight, norm_mean, std)
            nn.init.zeros_(module.bias)


def check_patch_size(patch_size: Sequence[int], multiple: int) -> None:
    """Raise ValueError unless ``patch_size`` is three positive multiples of ``multiple``."""
    if len(patch_size) != 3 or any(size < multiple or size % multiple for size in patch_size):
        raise ValueError(
            f"patch_size: expected three positive multiples of {multiple}, found {list(patch_size)}"
        )
