"""What the image sequence generator's training step is made of: sequences, drawn and judged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from medpair.networks.vid2vid import ImageSequenceGenerator, MultiScaleCritic, Slice


@dataclass(frozen=True)
class Sequence:
    """A batch of real sequences and what was drawn for them, time at dimension 1.

    Attributes:
        real: (B, tau + L, 1, H, W) images; the first tau are the past.
        label: (B, L, 2 radius + 1, H, W) label slices around each drawn slice.
        inside: (B, tau + L, 1, H, W) 0 where the volume is padded.
        available: (B, tau) which of the past there is.
        drawn: what the generator gave, L slices.
    """

    real: Tensor
    label: Tensor
    inside: Tensor
    available: Tensor
    drawn: list[Slice]

    @property
    def past(self) -> int:
        """Images of the past, tau."""
        return self.available.shape[1]

    def fake(self) -> Tensor:
        """Return the drawn images (B, L, 1, H, W), padded like the real ones."""
        real = self.real[:, self.past :]
        images = torch.stack([slice_.image for slice_ in self.drawn], dim=1)
        return torch.lerp(real, images, self.inside[:, self.past :])


class SequenceDrawing(nn.Module):
    """The generator drawing a whole sequence: one call, as data parallelism needs it."""

    def __init__(self, generator: ImageSequenceGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(
        self,
        real: Tensor,
        windows: Tensor,
        inside: Tensor,
        available: Tensor,
        position: Tensor,
        contrast: Tensor | None = None,
    ) -> list[Slice]:
        """Draw slice after slice from the past that there is; shapes as in ``Sequence``."""
        tau = available.shape[1]
        past, there = real[:, :tau, 0], available
        drawn = []
        for step in range(windows.shape[1]):
            given = (windows[:, step], past, there, position[:, step], contrast)
            slice_ = Slice.of(self.generator(*given))
            drawn.append(slice_)
            shown = torch.lerp(real[:, tau + step], slice_.image.detach(), inside[:, tau + step])
            past = torch.cat([past[:, 1:], shown], dim=1)
            there = torch.cat([there[:, 1:], torch.ones_like(there[:, :1])], dim=1)
        return drawn


class CriticsLoss(nn.Module):
    """Both critics with their loss: one call, as data parallelism needs it."""

    def __init__(self, critics: list[MultiScaleCritic], adversarial: nn.Module) -> None:
        super().__init__()
        self.critics = nn.ModuleList(critics)
        self.adversarial = adversarial

    def forward(self, judged: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Return the loss for what each critic sees: real and drawn, (n, C, H, W); n may be 0."""
        loss = torch.zeros((), device=judged[0][0].device)
        for critic, (of_real, of_fake) in zip(self.critics, judged, strict=True):
            if len(of_real):
                scores, _ = critic(torch.cat([of_real, of_fake]))
                real_scores, fake_scores = zip(*(s.float().chunk(2) for s in scores), strict=True)
                loss = loss + 0.5 * (
                    self.adversarial(list(real_scores), True, True)
                    + self.adversarial(list(fake_scores), False, True)
                )
        return loss
