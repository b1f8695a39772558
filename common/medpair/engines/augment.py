"""Augmentation of what the critic sees, real and generated alike (Zhao et al. 2020, DiffAugment).

A critic that sees a few hundred volumes learns them by heart. Shifting and re-scaling both real and
generated pairs, differentiably, makes that harder without teaching the generator to draw shifted
volumes: the augmented distributions agree only if the plain ones do.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


@dataclass(frozen=True)
class CriticAugmentation:
    """Random shift of the pair, random gain and offset of its image channel.

    Attributes:
        shift: largest shift in voxels, per axis.
        gain: the image is multiplied about -1, its dark end, by a factor of up to 1 -+ this.
        offset: and moved by up to this much (the image's range is -1..1).
    """

    shift: int = 0
    gain: float = 0.0
    offset: float = 0.0

    def __call__(self, pair: Tensor, fill: Tensor, generator: torch.Generator) -> Tensor:
        """Augment (B, C, H, W, D); ``fill`` (C,) is what comes in from outside.

        Every sample has its own draw; ``generator`` lives on the CPU.
        """
        if self.shift:
            pair = self._shift(pair, fill, generator)
        if self.gain or self.offset:
            draw = torch.rand(2, len(pair), generator=generator) * 2 - 1
            draw = draw.to(pair.device, non_blocking=True)
            factor = (1 + self.gain * draw[0]).view(-1, 1, 1, 1, 1)
            offset = (self.offset * draw[1]).view(-1, 1, 1, 1, 1)
            image = (pair[:, :1] + 1) * factor - 1 + offset
            pair = torch.cat([image, pair[:, 1:]], dim=1)
        return pair

    def _shift(self, pair: Tensor, fill: Tensor, generator: torch.Generator) -> Tensor:
        """Move each sample by its own whole number of voxels."""
        reach = self.shift
        moves = torch.randint(0, 2 * reach + 1, (len(pair), 3), generator=generator).tolist()
        height, width, depth = pair.shape[2:]
        fill = fill.view(1, -1, 1, 1, 1).to(pair)
        # zero padding of (pair - fill) is padding of pair with fill, channel by channel
        padded = F.pad(pair - fill, [reach] * 6)
        cut = [
            padded[i, :, a : a + height, b : b + width, c : c + depth]
            for i, (a, b, c) in enumerate(moves)
        ]
        return torch.stack(cut) + fill
