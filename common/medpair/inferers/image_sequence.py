"""From label volumes to image volumes, slice by slice, many volumes at once (Han et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medpair.data.card import SliceOrder, network_of, part_of
from medpair.data.memory import Parts
from medpair.data.patches import PAD_IMAGE
from medpair.data.sampling import torch_generator
from medpair.data.traits import Traits, traits_of, wanted_scores
from medpair.networks.vid2vid import ImageSequenceGenerator, Slice

Direction = Literal["forward", "backward"]
# Fixes the meaning of (seed, index): the volume's contrast
CONTRAST_STREAM = 1


def sequence_generator_from_card(card: dict[str, Any]) -> ImageSequenceGenerator:
    """Rebuild the network that a card describes."""
    return network_of(card, "network", ImageSequenceGenerator)


class ImageSequenceInferer:
    """Draw image volumes: slice z of every volume of the batch in one evaluation.

    Args:
        card: what lies beside the weights.
        direction: ``forward`` from the first slice to the last, or ``backward``.
        seed: of the volumes' contrasts, for a network that is told them.
        contrast: those wanted, {class: standard deviations of its mean intensity from the
            cohort's}. The others, all by default, are drawn for each volume as they vary in the
            cohort.
    """

    def __init__(
        self,
        card: dict[str, Any],
        direction: Direction = "forward",
        seed: int = 0,
        contrast: Mapping[str, float] | None = None,
    ) -> None:
        if direction not in ("forward", "backward"):
            raise ValueError(f"direction: expected forward or backward, found {direction!r}")
        self.axis = part_of(card, "sequence", SliceOrder).axis
        self.direction: Direction = direction
        self.traits: Traits | None = None
        if card.get("network", {}).get("contrast"):
            self.traits = traits_of(card, "contrast_traits")
        self.contrast = wanted_scores(self.traits, contrast, "contrast", "contrast_conditioning")
        self.seed = seed
        self.parts = Parts("volumes")

    def origin(self) -> dict[str, Any]:
        """Return the options that decide what a sample is, for its sidecar."""
        told = {} if self.traits is None else {"seed": self.seed}
        wanted = {"wanted_contrast": self.contrast} if self.contrast else {}
        return {"direction": self.direction, **told, **wanted}

    @torch.no_grad()
    def __call__(
        self,
        inputs: Tensor,
        network: nn.Module,
        inside: Tensor | None = None,
        index: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        """Return images (B, 1, W, H, D) in -1..1 for class indices (B, 1, W, H, D).

        Where ``inside`` (B, 1, W, H, D) is 0 a volume is padded. As in training, padding is dark,
        and a padded slice is neither a past image nor a neighbour. A batch that does not fit into
        memory is drawn in parts. ``index`` (B,) says which random streams to use, 0.. by default.
        """
        assert isinstance(network, ImageSequenceGenerator)
        box = torch.ones_like(inputs, dtype=torch.float32) if inside is None else inside

        numbers = list(range(len(inputs))) if index is None else index.tolist()

        def volumes(part: slice) -> Tensor:
            contrast = self._contrast(numbers[part], inputs.device)
            return self._draw(inputs[part], box[part], network, contrast)

        return torch.cat(self.parts(volumes, len(inputs), inputs))

    def _contrast(self, indices: list[int], device: torch.device) -> Tensor | None:
        """Return the scores (B, K) of each class's brightness, if the network is told them."""
        if self.traits is None:
            return None
        generators = [torch_generator(self.seed, index, CONTRAST_STREAM) for index in indices]
        drawn = [self.traits.draw(generator, self.contrast) for generator in generators]
        return torch.stack(drawn).to(device)

    def _draw(
        self,
        inputs: Tensor,
        box: Tensor,
        network: ImageSequenceGenerator,
        contrast: Tensor | None = None,
    ) -> Tensor:
        """Return images (B, 1, W, H, D), all volumes of the batch in step."""
        stack, box = (x[:, 0].movedim(self.axis + 1, 1) for x in (inputs, box))
        if self.direction == "backward":
            stack, box = stack.flip(1), box.flip(1)
        steps = stack.shape[1]
        there = box.flatten(2).amax(dim=2)
        first, last = there.argmax(dim=1), steps - 1 - there.flip(1).argmax(dim=1)
        # beyond the ends, the end slices go on
        rows = torch.arange(-network.radius, steps + network.radius, device=stack.device)
        rows = rows.clamp(first[:, None], last[:, None])
        stack = torch.stack([volume[row] for volume, row in zip(stack, rows, strict=True)])
        past = torch.zeros(len(stack), network.past, *stack.shape[2:], device=stack.device)
        available = torch.zeros(len(stack), network.past, device=stack.device)
        place = torch.arange(steps, device=stack.device) / steps
        if self.direction == "backward":
            place = place.flip(0)
        images = []
        for step in range(steps):
            window = stack[:, step : step + 2 * network.radius + 1]
            now = slice(step, step + 1)
            drawn = network(window, past, available, place[now].expand(len(stack)), contrast)
            image = Slice.of(drawn).image.to(past)
            images.append(torch.where(box[:, now] > 0, image, PAD_IMAGE))
            past = torch.cat([past[:, 1:], images[-1]], dim=1)
            available = torch.cat([available[:, 1:], there[:, now]], dim=1)
        volume = torch.cat(images, dim=1)
        if self.direction == "backward":
            volume = volume.flip(1)
        return volume.movedim(1, self.axis + 1)[:, None].clamp(-1, 1)
