"""From label volumes to image volumes, slice by slice, many volumes at once (Han et al. 2023)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from medpair.networks.vid2vid import ImageSequenceGenerator

Direction = Literal["forward", "backward"]


def sequence_generator_from_card(card: dict[str, Any]) -> ImageSequenceGenerator:
    """Rebuild the network that a card describes."""
    return ImageSequenceGenerator(**card["network"])


class ImageSequenceInferer:
    """Draw image volumes: slice z of every volume of the batch in one evaluation.

    Args:
        card: what lies beside the weights.
        direction: ``forward`` from the first slice to the last, or ``backward``.
    """

    def __init__(self, card: dict[str, Any], direction: Direction = "forward") -> None:
        if direction not in ("forward", "backward"):
            raise ValueError(f"direction: expected forward or backward, found {direction!r}")
        self.axis = int(card["sequence"]["axis"])
        self.direction: Direction = direction

    def origin(self) -> dict[str, Any]:
        """Return the options that decide what a sample is, for its sidecar."""
        return {"direction": self.direction}

    @torch.no_grad()
    def __call__(self, inputs: Tensor, network: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Return images (B, 1, W, H, D) in -1..1 for class indices (B, 1, W, H, D)."""
        assert isinstance(network, ImageSequenceGenerator)
        stack = inputs[:, 0].movedim(self.axis + 1, 1)
        if self.direction == "backward":
            stack = stack.flip(1)
        # beyond the ends, the end slices go on
        ends = [
            stack[:, i : i + 1].expand(-1, network.radius, -1, -1) for i in (0, -1 % stack.shape[1])
        ]
        stack = torch.cat([ends[0], stack, ends[1]], dim=1)
        steps = stack.shape[1] - 2 * network.radius
        past = torch.zeros(len(stack), network.past, *stack.shape[2:], device=stack.device)
        available = torch.zeros(len(stack), network.past, device=stack.device)
        images = []
        for step in range(steps):
            window = stack[:, step : step + 2 * network.radius + 1]
            image = network(window, past, available).image
            images.append(image)
            past = torch.cat([past[:, 1:], image.to(past)], dim=1)
            available = torch.cat([available[:, 1:], torch.ones_like(available[:, :1])], dim=1)
        volume = torch.cat(images, dim=1)
        if self.direction == "backward":
            volume = volume.flip(1)
        return volume.movedim(1, self.axis + 1)[:, None].clamp(-1, 1)
