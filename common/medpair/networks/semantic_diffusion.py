"""The semantic diffusion refiner of three views (Han et al. 2023; semantic diffusion model)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medpair.networks.diffusion_unet import DiffusionUNet
from medpair.networks.spade import Modulation

VIEWS = ("axial", "coronal", "sagittal")


class SemanticDenoiser(nn.Module):
    """Denoise slices of any view under their label maps.

    Args:
        num_classes: of the label maps, background included.
        output_factor: 2 with learned variance.
        views: ``separate`` has one network for each view, as the paper; ``shared`` one network
            that is told its view, a third of the weights and three times the training slices.
        channels: width of each level.
        num_res_blocks: blocks per level.
        attention_levels: which levels have attention.
        hidden: SPADE's inner width (128 in SDM).

    Raises:
        ValueError: on another ``views``.
    """

    def __init__(
        self,
        num_classes: int,
        output_factor: int = 1,
        views: Literal["separate", "shared"] = "shared",
        channels: Sequence[int] = (64, 128, 192),
        num_res_blocks: int = 2,
        attention_levels: Sequence[bool] = (False, False, True),
        hidden: int = 64,
    ) -> None:
        super().__init__()
        if views not in ("separate", "shared"):
            raise ValueError(f"views: expected separate or shared, found {views!r}")
        self.settings: dict[str, Any] = {
            "num_classes": num_classes,
            "output_factor": output_factor,
            "views": views,
            "channels": list(channels),
            "num_res_blocks": num_res_blocks,
            "attention_levels": list(attention_levels),
            "hidden": hidden,
        }
        self.num_classes = num_classes
        self.view_names = list(VIEWS)
        shared = views == "shared"
        self.networks: Any = nn.ModuleDict(
            {
                name: DiffusionUNet(
                    in_channels=1,
                    out_channels=output_factor,
                    channels=channels,
                    num_res_blocks=num_res_blocks,
                    attention_levels=attention_levels,
                    label_channels=num_classes,
                    hidden=hidden,
                    num_views=len(VIEWS) if shared else 0,
                )
                for name in (("shared",) if shared else VIEWS)
            }
        )

    __jit_unused_properties__ = ("factor",)

    @property
    def factor(self) -> int:
        """Sizes of slices must be multiples of this."""
        return self.network_of("axial").factor

    def network_of(self, view: str) -> DiffusionUNet:
        """Return the network that denoises a view."""
        name = "shared" if "shared" in self.networks else view
        network = self.networks[name]
        assert isinstance(network, DiffusionUNet)
        return network

    def one_hot(self, label: Tensor) -> Tensor:
        """(B, H, W) class indices -> (B, num_classes, H, W)."""
        classes = torch.arange(self.num_classes, device=label.device)[:, None, None]
        return (label[:, None] == classes.to(label.dtype)).float()

    def modulations(self, one_hot: Tensor, view: str) -> list[Modulation]:
        """Return what label maps contribute to each SPADE layer: the same at every step.

        An all-zero ``one_hot`` stands for no label map (guidance).
        """
        return self.network_of(view).modulations(one_hot)

    def compact_modulations(self, one_hot: Tensor, view: str) -> list[Modulation]:
        """Return the same in the form that a sampler can keep for all steps."""
        return self.network_of(view).compact_modulations(one_hot)

    def forward(
        self,
        x: Tensor,
        time: Tensor | None = None,
        modulations: list[Modulation] | None = None,
        view: str = "axial",
        label: Tensor | None = None,
    ) -> Tensor:
        """Return the prediction (B, output_factor, H, W) for slices of a view.

        Args:
            x: (B, 1, H, W) noisy slices.
            time: (B,) t * timesteps; default 0, no noise.
            modulations: of the label maps; default computed from ``label``, layer by layer.
            view: axial, coronal or sagittal.
            label: (B, num_classes, H, W) one-hot; default zeros, no label map.
        """
        time = x.new_zeros(len(x)) if time is None else time
        number = torch.full((len(x),), self.view_names.index(view), device=x.device)
        for name, network in self.networks.items():
            if name == "shared" or name == view:
                if modulations is None and label is None:
                    label = x.new_zeros(len(x), self.num_classes, x.shape[2], x.shape[3])
                return network(x, time, modulations, None, number, label)
        raise ValueError(f"view: expected another, found {view}")
