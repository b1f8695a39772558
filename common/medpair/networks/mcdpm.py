"""The multi-condition diffusion model's denoiser of label sequences (Han et al. 2023, MC-DPM)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medpair.networks.diffusion_unet import DiffusionUNet, embedding, groups_for


class Neighbourhood(nn.Module):
    """Correct each voxel's class by the voxels around it, in three dimensions.

    The U-Net decides what is where, on squares of pixels and through a narrow width; a boundary,
    or a cortex of one voxel, is decided here: what it says and what the noisy code of each voxel
    says are one probability per class, and two convolutions at full size, the same for every
    slice of the window, look at those of the neighbours.

    Args:
        classes: K.
        channels: width.
        emb_channels: of the time's embedding.
    """

    def __init__(self, classes: int, channels: int, emb_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(classes, channels, 3, padding=1)
        self.film = nn.Linear(emb_channels, 2 * channels)
        self.norm = nn.GroupNorm(groups_for(channels), channels)
        self.conv2 = nn.Conv3d(channels, channels, 3, padding=1)
        self.conv_out = nn.Conv3d(channels, classes, 1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, logits: Tensor, emb: Tensor) -> Tensor:
        """Return the correction (B, K, m, H, W) of posterior logits (B, K, m, H, W)."""
        if torch.jit.is_scripting():
            return self._correction(logits, emb)
        if logits.device.type != "cpu":
            return self._correction(logits, emb)
        # oneDNN's bfloat16 gradient of a thin window's 3D convolution, eight slices of 96 x 120 and
        # more, writes past its end on processors with AMX (PyTorch 2.13: "double free", or NaN)
        with torch.autocast("cpu", enabled=False):
            return self._correction(logits.float(), emb.float())

    def _correction(self, logits: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(logits.softmax(dim=1).contiguous(memory_format=torch.channels_last_3d))
        scale, shift = self.film(functional.silu(emb))[..., None, None, None].chunk(2, dim=1)
        h = functional.silu(self.norm(h) * (1 + scale) + shift)
        return self.conv_out(functional.silu(h + self.conv2(h)))


class MaskSequenceDenoiser(nn.Module):
    """Denoise a window of m label slices at once, some of which may be given clean.

    The slices of a window are the channels of a 2D U-Net: every convolution, from the first to the
    last, sees all m slices, so that mixing across slices costs nothing beyond mixing within them.
    A space-time network would compute m feature maps where this computes one. What it gives up,
    the same weights for every slice, matters little: a slice's place in the window is fixed, and
    labels change slowly from slice to slice.

    Each slice comes with an indicator plane, 1 where it is given clean and 0 where it is to be
    generated; the window's position in the volume is embedded like the time.

    Args:
        window: m, slices per window.
        code_channels: channels of the label code per slice.
        output_factor: predicted channels per code channel: 2 with learned variance.
        channels: width of each level of the U-Net.
        num_res_blocks: blocks per level.
        attention_levels: which levels have attention.
        classes: predict logits of so many classes per voxel instead of code channels; 0 for codes.
        patch: the U-Net works on squares of so many pixels a side, whose pixels are channels too:
            2 does without the costly level of full size.
        neighbourhood: with ``classes``, width of the correction by neighbours; 0 for none.
        self_conditioning: the network may be told what it said of x_0 a step before (Chen et al.
            2023, "Analog bits", section 3.2): what is decided once need not be found again in the
            noise. Its layer is zero at first: a network without can be trained on with it.
        sizes: the network is told the sizes of so many classes in the whole volume; 0 for none.
            Its last layer is zero at first, likewise.
    """

    def __init__(
        self,
        window: int,
        code_channels: int,
        output_factor: int = 1,
        channels: Sequence[int] = (64, 128, 192),
        num_res_blocks: int = 2,
        attention_levels: Sequence[bool] = (False, False, True),
        patch: int = 1,
        classes: int = 0,
        neighbourhood: int = 0,
        self_conditioning: bool = False,
        sizes: int = 0,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "window": window,
            "code_channels": code_channels,
            "output_factor": output_factor,
            "channels": list(channels),
            "num_res_blocks": num_res_blocks,
            "attention_levels": list(attention_levels),
            "patch": patch,
            "classes": classes,
            "neighbourhood": neighbourhood if classes else 0,
            "self_conditioning": self_conditioning,
            "sizes": sizes,
        }
        self.patch = patch
        self.window = window
        self.output_channels = classes or code_channels * output_factor
        self.unet = DiffusionUNet(
            in_channels=window * (code_channels + 1) * patch**2,
            out_channels=window * self.output_channels * patch**2,
            channels=channels,
            num_res_blocks=num_res_blocks,
            attention_levels=attention_levels,
            positions=True,
        )
        self.previous: nn.Conv2d | None = None
        if self_conditioning:
            numbers = window * code_channels * patch**2
            self.previous = nn.Conv2d(numbers, self.unet.base, 3, padding=1, bias=False)
            nn.init.zeros_(self.previous.weight)
        self.num_sizes = sizes
        self.sizes: nn.Sequential | None = None
        if sizes:
            width = 4 * self.unet.base
            last = nn.Linear(width, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.sizes = nn.Sequential(nn.Linear(sizes, width), nn.SiLU(), last)
        # what the noisy input contributes to each predicted channel directly, by time: noise in
        # many channels does not fit through the U-Net's width, and need not; classes have no noise
        self.direct: nn.Sequential | None = None
        if not classes:
            self.direct = nn.Sequential(
                nn.SiLU(), nn.Linear(4 * self.unet.base, window * code_channels)
            )
            for parameter in self.direct.parameters():
                nn.init.zeros_(parameter)

        self.neighbourhood: Neighbourhood | None = None
        if classes and neighbourhood:
            self.neighbourhood = Neighbourhood(classes, neighbourhood, 4 * self.unet.base)

    @property
    def factor(self) -> int:
        """In-plane sizes must be multiples of this."""
        return self.unet.factor * self.patch

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        known: Tensor | None = None,
        position: Tensor | None = None,
        evidence: Tensor | None = None,
        previous: Tensor | None = None,
        sizes: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction for every slice.

        Args:
            x: (B, C, m, H, W) codes: clean where known, noisy elsewhere.
            time: (B,) t * timesteps; default 0, no noise.
            known: (B, m) 1 for slices given clean; default none is.
            position: (B,) first slice of the window relative to the volume's height; default 0.
            evidence: (B, classes, m, H, W) log-likelihood of each class given the voxel's own code,
                for the correction by neighbours.
            previous: (B, C, m, H, W) what was said of x_0 a step before, for a network with
                self-conditioning; default nothing was.
            sizes: (B, K) of the classes in the whole volume, as scores of ``Traits``, for a network
                that is told them; default the cohort's means.

        Returns:
            (B, C * output_factor, m, H, W), or logits (B, classes, m, H, W).
        """
        b, _, m, h, w = x.shape
        # before the patches are packed: the U-Net would name sizes that nobody typed
        if h % self.factor or w % self.factor:
            raise ValueError(
                f"volume_size: expected slices whose sides are multiples of {self.factor}, "
                f"found ({h}, {w})"
            )
        time = x.new_zeros(b) if time is None else time
        position = x.new_zeros(b) if position is None else position
        known = x.new_zeros(b, m) if known is None else known
        planes = known.to(x)[:, :, None, None].expand(b, m, h, w)
        packed = functional.pixel_unshuffle(torch.cat([x.flatten(1, 2), planes], dim=1), self.patch)
        extra: Tensor | None = None
        if self.previous is not None and previous is not None:
            extra = self.previous(functional.pixel_unshuffle(previous.flatten(1, 2), self.patch))
        traits: Tensor | None = None
        emb = self.unet.time(embedding(time, self.unet.base))
        if self.sizes is not None:
            mean = x.new_zeros(b, self.num_sizes)
            traits = self.sizes(mean if sizes is None else sizes.to(x))
            emb = emb + traits
        out = self.unet(packed, time, position=position, extra=extra, traits=traits)
        out = functional.pixel_shuffle(out, self.patch)
        out = out.view(b, self.output_channels, m, h, w)
        if self.neighbourhood is not None and evidence is not None:
            out = out + self.neighbourhood(out + evidence, emb)
        if self.direct is None:
            return out
        direct = self.direct(emb).view(b, -1, m, 1, 1) * x
        if self.output_channels == x.shape[1]:
            return out + direct
        mean, variance = out.chunk(2, dim=1)
        return torch.cat([mean + direct, variance], dim=1)
