"""The 2D U-Net of both diffusion stages, plain or steered by a label map.

Residual blocks as in guided diffusion (Dhariwal & Nichol 2021): the time scales and shifts the
second normalisation (FiLM), resampling happens inside blocks, attention at the coarse levels.

Plain, it is MC-DPM's denoiser. With ``label_channels`` it is the semantic diffusion network (SDM):
the noisy image alone enters the encoder, and the label map acts through SPADE in the middle and in
every decoder block, the upsampling ones included. ``modulations`` computes what the label map
contributes; given back to ``forward``, it need not be computed again at every step.

Activations are most of the memory: without gradients they are changed in place, and in training
``recompute`` keeps only what enters each block.

Written so that ``torch.jit.script`` reads it: lists instead of iterators, types that it knows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from medpair.networks.blocks import require_widths
from medpair.networks.spade import SPADE, Modulation, compact_modulations, modulated

# Relative positions (0..1) are embedded like times, on this scale
POSITION_SCALE = 1000.0
Resample = Literal["none", "down", "up"]


def embedding(values: Tensor, channels: int) -> Tensor:
    """Return (B, channels) sines and cosines of (B,) numbers, wavelengths 2 pi to 20000 pi."""
    half = channels // 2
    rates = torch.exp(-math.log(10000.0) / half * torch.arange(half, device=values.device))
    angles = values.float()[:, None] * rates[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def groups_for(channels: int, most: int = 32) -> int:
    """Return the largest number of groups up to ``most`` with four channels each or more.

    Raises:
        ValueError: fewer than four channels.
    """
    if channels < 4:
        raise ValueError(f"channels: expected at least 4 in every level, found {channels}")
    return max(g for g in range(1, most + 1) if channels % g == 0 and channels // g >= 4)


def zeroed(convolution: nn.Conv2d) -> None:
    """Set the weights and biases of a convolution to zero, in place."""
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)


class ResidualBlock(nn.Module):
    """Two convolutions; FiLM by time in the second; SPADE where there are ``label_channels``.

    Attributes:
        recompute: in training keep only the inputs, and compute the block again for gradients.
    """

    __constants__ = ("steered",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        resample: Resample = "none",
        label_channels: int = 0,
        hidden: int = 64,
        scale: int = 1,
    ) -> None:
        super().__init__()
        self.resample: str = resample
        self.steered = label_channels > 0
        self.recompute = False

        def norm(channels: int, level: int) -> nn.Module:
            group = nn.GroupNorm(groups_for(channels), channels, affine=not label_channels)
            return (
                SPADE(channels, label_channels, hidden, group, level) if label_channels else group
            )

        self.norm1: Any = norm(in_channels, scale * 2 if resample == "up" else scale)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.film = nn.Linear(emb_channels, 2 * out_channels)
        self.norm2: Any = norm(out_channels, scale)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        # a block begins as the identity
        zeroed(self.conv2)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def modulations(self, label: Tensor) -> list[Modulation]:
        """Return what a label map contributes to the block's two SPADE layers; [] without them."""
        if self.steered:
            return [self.norm1.modulation(label), self.norm2.modulation(label)]
        return []

    def forward(
        self, x: Tensor, emb: Tensor, modulations: list[Modulation], label: Tensor | None = None
    ) -> Tensor:
        """Return (B, out_channels, H, W), half or twice the size where the block resamples.

        A steered block is given ``modulations`` or the ``label`` map that it computes them from.
        """
        if not torch.jit.is_scripting() and self.recompute and torch.is_grad_enabled():
            given = (x, emb, modulations, label)
            found = checkpoint(self.evaluated, *given, use_reentrant=False)
            assert isinstance(found, Tensor)
            return found
        return self.evaluated(x, emb, modulations, label)

    def evaluated(
        self, x: Tensor, emb: Tensor, modulations: list[Modulation], label: Tensor | None
    ) -> Tensor:
        """Return what ``forward`` does."""
        sampling = not torch.is_grad_enabled()
        if self.steered:
            steering = modulations[0] if label is None else self.norm1.modulation(label)
            h = self.norm1(x, steering, True)
        else:
            h = F.silu(self.norm1(x), inplace=sampling)
        if self.resample == "down":
            h = F.avg_pool2d(h, 2)
        elif self.resample == "up":
            h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        h = self.conv1(h)
        scale, shift = self.film(F.silu(emb))[..., None, None].chunk(2, dim=1)
        if self.steered:
            steering = modulations[1] if label is None else self.norm2.modulation(label)
            h = self.norm2(h, steering)
        else:
            h = self.norm2(h)
        h = self.conv2(F.silu(modulated(h, 1 + scale, shift), inplace=sampling))
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2.0, mode="nearest")
        x = self.skip(x)
        return h.add_(x) if sampling and h.dtype == x.dtype else x + h


class Attention(nn.Module):
    """Self-attention over all pixels of a feature map (B, C, H, W)."""

    def __init__(self, channels: int, head_channels: int = 32) -> None:
        super().__init__()
        most = max(1, channels // head_channels)
        self.heads = max(h for h in range(1, most + 1) if channels % h == 0)
        self.norm = nn.GroupNorm(groups_for(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        zeroed(self.out)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, C, H, W)."""
        shape = x.shape
        qkv = self.qkv(self.norm(x)).reshape(shape[0], 3, self.heads, -1, shape[2] * shape[3])
        # fused attention wants each token's numbers side by side; without them (N, N) is kept
        q, k, v = qkv.transpose(-1, -2).contiguous().unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(shape)
        return x + self.out(h)


class DiffusionUNet(nn.Module):
    """A denoiser of 2D maps.

    Args:
        in_channels: of the noisy input.
        out_channels: of the prediction.
        channels: width of each level; each is half the size of the one before.
        num_res_blocks: blocks per level.
        attention_levels: which levels have attention.
        label_channels: of the label map that steers the network; 0 for none.
        hidden: SPADE's inner width.
        positions: whether a position in 0..1 is given.
        num_views: how many views there are to tell apart; 0 for one only.

    Raises:
        ValueError: on widths below 4, an odd first one (times are told by pairs of sine and
            cosine), or another number of ``attention_levels``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: Sequence[int] = (64, 128, 192),
        num_res_blocks: int = 2,
        attention_levels: Sequence[bool] = (False, False, True),
        label_channels: int = 0,
        hidden: int = 64,
        positions: bool = False,
        num_views: int = 0,
    ) -> None:
        super().__init__()
        require_widths(channels, least=4)
        if channels[0] % 2:
            raise ValueError(f"channels: expected an even first width, found {list(channels)}")
        if len(attention_levels) != len(channels):
            raise ValueError(
                f"attention_levels: expected {len(channels)} entries, one per level, "
                f"found {len(attention_levels)}"
            )
        self.factor = 2 ** (len(channels) - 1)
        self.position_scale = POSITION_SCALE
        self.base = channels[0]
        width = 4 * channels[0]
        self.time = nn.Sequential(nn.Linear(self.base, width), nn.SiLU(), nn.Linear(width, width))
        self.position = (
            nn.Sequential(nn.Linear(self.base, width), nn.SiLU(), nn.Linear(width, width))
            if positions
            else None
        )
        self.view = nn.Embedding(num_views, width) if num_views else None
        self.conv_in = nn.Conv2d(in_channels, channels[0], 3, padding=1)

        def attention(level: int) -> nn.Module:
            return Attention(channels[level]) if attention_levels[level] else nn.Identity()

        current, skips = channels[0], [channels[0]]
        self.down: Any = nn.ModuleList()
        for level, out in enumerate(channels):
            for _ in range(num_res_blocks):
                self.down.append(
                    nn.ModuleList([ResidualBlock(current, out, width), attention(level)])
                )
                current = out
                skips.append(current)
            if level < len(channels) - 1:
                shrink = ResidualBlock(current, current, width, "down")
                self.down.append(nn.ModuleList([shrink, nn.Identity()]))
                skips.append(current)

        def steered(
            in_c: int, out_c: int, level: int, resample: Resample = "none"
        ) -> ResidualBlock:
            return ResidualBlock(in_c, out_c, width, resample, label_channels, hidden, 2**level)

        coarsest = len(channels) - 1
        self.middle: Any = nn.ModuleList(
            [
                steered(current, current, coarsest),
                Attention(current) if any(attention_levels) else nn.Identity(),
                steered(current, current, coarsest),
            ]
        )
        self.up: Any = nn.ModuleList()
        for level, out in reversed(list(enumerate(channels))):
            for _ in range(num_res_blocks + 1):
                block = steered(current + skips.pop(), out, level)
                self.up.append(nn.ModuleList([block, attention(level)]))
                current = out
            if level:
                grow = steered(current, current, level - 1, "up")
                self.up.append(nn.ModuleList([grow, nn.Identity()]))
        self.norm_out = nn.GroupNorm(groups_for(current), current)
        self.conv_out = nn.Conv2d(current, out_channels, 3, padding=1)
        zeroed(self.conv_out)

    def modulations(self, label: Tensor) -> list[Modulation]:
        """Return what the label map (B, label_channels, H, W) contributes to every SPADE layer."""
        found = self.middle[0].modulations(label) + self.middle[2].modulations(label)
        for pair in self.up:
            found += pair[0].modulations(label)
        return found

    def compact_modulations(self, label: Tensor) -> list[Modulation]:
        """Return the same for one-hot label maps, in less memory (``medpair.networks.spade``)."""
        blocks = [self.middle[0], self.middle[2], *(pair[0] for pair in self.up)]
        layers = [layer for block in blocks for layer in (block.norm1, block.norm2)]
        return compact_modulations(layers, label)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        modulations: list[Modulation] | None = None,
        position: Tensor | None = None,
        view: Tensor | None = None,
        label: Tensor | None = None,
        extra: Tensor | None = None,
        traits: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction.

        Args:
            x: (B, in_channels, H, W); sizes are multiples of ``factor``.
            time: (B,) t * timesteps.
            modulations: of the label map, where the network is steered by one.
            position: (B,) in 0..1.
            view: (B,) index of the view.
            label: (B, label_channels, H, W), where there are no ``modulations``.
            extra: (B, channels[0], H, W) features added to those of the first layer.
            traits: (B, 4 channels[0]) features added to the time's embedding.

        Returns:
            (B, out_channels, H, W).
        """
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"volume_size: expected slices whose sides are multiples of {self.factor}, "
                f"found ({x.shape[2]}, {x.shape[3]})"
            )
        emb = self.time(embedding(time, self.base))
        if self.position is not None and position is not None:
            emb = emb + self.position(embedding(position * self.position_scale, self.base))
        if self.view is not None and view is not None:
            emb = emb + self.view(view)
        if traits is not None:
            emb = emb + traits
        h = self.conv_in(x)
        if extra is not None:
            h = h + extra
        if torch.is_grad_enabled() and not h.requires_grad:
            # a frozen first layer: PyTorch 2.13's group norm crashes on a CPU where its weights
            # need a gradient, its input none, in the channels-last layout
            h.requires_grad_()
        kept = [h]
        for pair in self.down:
            h = pair[1](pair[0](h, emb, []))
            kept.append(h)
        steering: list[Modulation] = []
        if modulations is not None:
            steering = modulations
        h = self.middle[1](self.middle[0](h, emb, steering[:2], label))
        h = self.middle[2](h, emb, steering[2:4], label)
        at = 4
        for pair in self.up:
            if pair[0].resample != "up":
                h = torch.cat([h, kept.pop()], dim=1)
            h = pair[1](pair[0](h, emb, steering[at : at + 2], label))
            at += 2
        h = F.silu(self.norm_out(h), inplace=not torch.is_grad_enabled())
        return self.conv_out(h)
