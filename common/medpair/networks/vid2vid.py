"""The image sequence generator and its critics (Han et al. 2023, after video-to-video synthesis).

A volume's slices are drawn one after the other. For slice z the generator sees the label slices
around z and the last tau images, and gives::

    image = w * raw + (1 - w) * warp(last image, flow)

``raw`` is drawn anew from the labels by SPADE blocks, ``flow`` says where in the last image each
pixel comes from, ``w`` (occlusion) where the last image is of no use. Where there is no last image,
w is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn import functional

from medpair.networks.blocks import require_widths
from medpair.networks.spade import SPADE, Modulation


@dataclass(frozen=True)
class Slice:
    """What the generator gives for one slice, each (B, C, H, W).

    The network itself returns them as the channels of one tensor, in this order, so that every
    tool that expects a network from tensor to tensor understands it.

    Attributes:
        image: (B, 1, H, W) the slice, in -1..1.
        flow: (B, 2, H, W) from each pixel to where it was in the last image; pixels, (row, column).
        occlusion: (B, 1, H, W) weight of what is drawn anew, 1 where there is no last image.
        warped: (B, 1, H, W) the last image, moved by the flow.
    """

    image: Tensor
    flow: Tensor
    occlusion: Tensor
    warped: Tensor

    @classmethod
    def of(cls, output: Tensor) -> Slice:
        """Return the parts of the network's output (B, 5, H, W)."""
        return cls(*output.split([1, 2, 1, 1], dim=1))


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Return ``image`` (B, C, H, W) sampled at each pixel plus ``flow`` (B, 2, H, W) pixels.

    Outside, the border's values go on. (MONAI's ``Warp`` keeps a grid of its last batch and warns
    at every construction.)
    """
    height, width = image.shape[2:]
    rows = torch.arange(height, device=image.device, dtype=flow.dtype)[:, None] + flow[:, 0]
    columns = torch.arange(width, device=image.device, dtype=flow.dtype) + flow[:, 1]
    grid = torch.stack(
        [2 * columns / max(width - 1, 1) - 1, 2 * rows / max(height - 1, 1) - 1], dim=-1
    )
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=True)


class SpadeBlock(nn.Module):
    """Two SPADE-steered convolutions with a skip."""

    def __init__(
        self, in_channels: int, out_channels: int, label_channels: int, hidden: int, scale: int
    ) -> None:
        super().__init__()

        def spade(channels: int) -> SPADE:
            norm = nn.InstanceNorm2d(channels, affine=False)
            return SPADE(channels, label_channels, hidden, norm, scale)

        self.spade1, self.spade2 = spade(in_channels), spade(out_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def modulations(self, label: Tensor) -> list[Modulation]:
        """Return gamma, beta of both layers for a label map at full size."""
        return [self.spade1.modulation(label), self.spade2.modulation(label)]

    def forward(self, x: Tensor, modulations: list[Modulation]) -> Tensor:
        """Return (B, out_channels, H, W)."""
        h = self.conv1(functional.leaky_relu(self.spade1(x, modulations[0]), 0.2))
        h = self.conv2(functional.leaky_relu(self.spade2(h, modulations[1]), 0.2))
        return self.skip(x) + h


def _encoder_block(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1),
        nn.InstanceNorm2d(out_channels, affine=True),
        nn.LeakyReLU(0.2),
    )


class ImageSequenceGenerator(nn.Module):
    """Draw the next image slice from label slices and past images.

    Args:
        num_classes: of the label maps, background included.
        radius: label slices seen before and after the current one.
        past: tau, past images seen.
        channels: width of each level; each is half the size of the one before.
        hidden: SPADE's inner width.
        positions: also tell the slice's place in the volume, as a plane beside the labels. What has
            no label (the face behind a labelled brain) has no other way to know where it is.
        contrast: also tell how bright each foreground class is in this volume, in deviations from
            the cohort's mean, painted onto the current label slice as one more plane: contrast
            varies between scanners and patients, and labels do not say it.

    Raises:
        ValueError: on widths below 1, if there is no past image to warp, or ``radius`` is negative.
    """

    def __init__(
        self,
        num_classes: int,
        radius: int = 1,
        past: int = 2,
        channels: Sequence[int] = (32, 64, 128),
        hidden: int = 64,
        positions: bool = False,
        contrast: bool = False,
    ) -> None:
        super().__init__()
        require_widths(channels)
        if past < 1 or radius < 0:
            raise ValueError(
                f"past, radius: expected at least 1 and 0 slices, found {past} and {radius}"
            )
        self.settings: dict[str, Any] = {
            "num_classes": num_classes,
            "positions": positions,
            "contrast": contrast,
            "radius": radius,
            "past": past,
            "channels": list(channels),
            "hidden": hidden,
        }
        self.num_classes = num_classes
        self.radius = radius
        self.past = past
        self.factor = 2 ** (len(channels) - 1)
        self.positions = positions
        self.contrast = contrast
        labels = (2 * radius + 1) * num_classes + int(positions) + int(contrast)
        # the encoder sees everything; its coarsest features are where both decoders begin
        inputs = labels + 2 * past
        self.encoder: Any = nn.ModuleList(
            _encoder_block(before, after, 1 if level == 0 else 2)
            for level, (before, after) in enumerate(
                zip([inputs, *channels[:-1]], channels, strict=True)
            )
        )
        levels = range(len(channels))
        self.draw: Any = nn.ModuleList(
            SpadeBlock(
                channels[min(level + 1, len(channels) - 1)],
                channels[level],
                labels,
                hidden,
                2**level,
            )
            for level in reversed(levels)
        )
        self.to_image = nn.Conv2d(channels[0], 1, 3, padding=1)
        self.move: Any = nn.ModuleList(
            _encoder_block(channels[level + 1] + channels[level], channels[level], 1)
            for level in reversed(levels[:-1])
        )
        self.to_flow = nn.Conv2d(channels[0], 3, 3, padding=1)
        # training begins without movement
        for parameter in self.to_flow.parameters():
            nn.init.zeros_(parameter)

    def labels(self, label: Tensor) -> Tensor:
        """(B, S, H, W) class indices -> (B, S num_classes, H, W) one-hot, S = 2 radius + 1."""
        classes = torch.arange(self.num_classes, device=label.device)[:, None, None]
        return (label[:, :, None] == classes.to(label.dtype)).flatten(1, 2).float()

    def forward(
        self,
        label: Tensor,
        past: Tensor | None = None,
        available: Tensor | None = None,
        position: Tensor | None = None,
        contrast: Tensor | None = None,
    ) -> Tensor:
        """Return the next slice; of a label alone, the first slice of a volume.

        Args:
            label: (B, 2 radius + 1, H, W) class indices, the current slice in the middle; sizes are
                multiples of ``factor``.
            past: (B, tau, H, W) the images before, the last one at the end; default there is none.
            available: (B, tau) 0 where there is no such image; default as ``past``.
            position: (B,) place of the slice, relative to the volume's height.
            contrast: (B, K) mean intensity of the first K foreground classes in the volume, as
                scores of ``Traits``, for a network that is told it; default the cohort's means.

        Returns:
            (B, 5, H, W), see ``Slice.of``.
        """
        b, _, height, width = label.shape
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"volume_size: expected slices whose sides are multiples of {self.factor}, "
                f"found ({height}, {width})"
            )
        if past is None:
            # weights, not labels, say which floats are used
            like = self.to_image.weight
            past = like.new_zeros(b, self.past, height, width)
            available = like.new_zeros(b, self.past)
            position = like.new_zeros(b) if position is None else position
        if available is None:
            available = past.new_ones(b, self.past)
        labels = self.labels(label)
        if self.positions:
            if position is None:
                raise ValueError("position: expected the slice's place in the volume, found none")
            # -1..1, like the other inputs
            place = (2 * position - 1).to(labels).view(-1, 1, 1, 1)
            labels = torch.cat([labels, place.expand_as(labels[:, :1])], dim=1)
        if self.contrast:
            scores = labels.new_zeros(b, self.num_classes)  # 0 in the background
            if contrast is not None:
                scores[:, 1 : 1 + contrast.shape[1]] = contrast.to(labels)
            now = label[:, self.radius].long().flatten(1)
            painted = scores.gather(1, now).view(b, 1, height, width)
            labels = torch.cat([labels, painted], dim=1)
        there = available.to(past)[:, :, None, None]
        h = torch.cat([labels, past * there, there.expand_as(past)], dim=1)
        features = []
        for block in self.encoder:
            h = block(h)
            features.append(h)
        drawn, moved = features[-1], features[-1]
        for number, block in enumerate(self.draw):
            drawn = block(drawn, block.modulations(labels))
            if number < len(self.draw) - 1:
                drawn = functional.interpolate(drawn, scale_factor=2.0, mode="nearest")
        for number, block in enumerate(self.move):
            wider = functional.interpolate(moved, scale_factor=2.0)
            moved = block(torch.cat([wider, features[-2 - number]], dim=1))
        raw = torch.tanh(self.to_image(functional.leaky_relu(drawn, 0.2)).float())
        flow, weight = self.to_flow(moved).float().split([2, 1], dim=1)
        last = there[:, -1:].float()
        occlusion = torch.sigmoid(weight) * last + (1 - last)
        warped = warp(past[:, -1:].float(), flow)
        return torch.cat([torch.lerp(warped, raw, occlusion), flow, occlusion, warped], dim=1)


class MultiScaleCritic(nn.Module):
    """Patch critics that see the same picture at full and at reduced sizes.

    Args:
        in_channels: image and condition together.
        channels: width of the first layer.
        num_layers: strided layers of each critic.
        num_scales: how many critics; each sees half the size of the one before.
    """

    def __init__(
        self, in_channels: int, channels: int = 32, num_layers: int = 2, num_scales: int = 2
    ) -> None:
        super().__init__()
        self.critics = nn.ModuleList(
            PatchDiscriminator(
                spatial_dims=2,
                channels=channels,
                in_channels=in_channels,
                num_layers_d=num_layers,
                norm="INSTANCE",
            )
            for _ in range(num_scales)
        )
        # the smallest critic's last features are then 2 x 2: fewer cannot be normalised
        self.least = 3 * 2 ** (num_layers + num_scales - 1)

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the score maps and all inner features of (B, in_channels, H, W).

        Raises:
            ValueError: if the picture is too small for so many layers and scales.
        """
        if min(x.shape[2:]) < self.least:
            raise ValueError(
                f"volume_size: expected slices of at least {self.least} pixels a side, "
                f"found {tuple(x.shape[2:])} (fewer critic_layers or critic_scales need less)"
            )
        scores, features = [], []
        for critic in self.critics:
            *inner, score = critic(x)
            scores.append(score)
            features += inner
            x = functional.avg_pool2d(x, 2)
        return scores, features


class SliceSegmenter(nn.Module):
    """A small 2D segmenter: its features are the perceptual distance, its answer the alignment.

    It is trained beside the generator, on real slices alone, so that nothing need be downloaded.

    Args:
        num_classes: background included.
        channels: width of each level.
    """

    def __init__(self, num_classes: int, channels: Sequence[int] = (16, 32, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            nn.Sequential(
                _encoder_block(before, after, 1 if level == 0 else 2),
                _encoder_block(after, after, 1),
            )
            for level, (before, after) in enumerate(zip([1, *channels[:-1]], channels, strict=True))
        )
        self.up = nn.ModuleList(
            _encoder_block(channels[level + 1] + channels[level], channels[level], 1)
            for level in reversed(range(len(channels) - 1))
        )
        self.head = nn.Conv2d(channels[0], num_classes, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return logits (B, num_classes, H, W) and the encoder's features."""
        features, h = [], image
        for block in self.down:
            h = block(h)
            features.append(h)
        for block, skip in zip(self.up, reversed(features[:-1]), strict=True):
            h = block(torch.cat([functional.interpolate(h, scale_factor=2), skip], dim=1))
        return self.head(h), features
