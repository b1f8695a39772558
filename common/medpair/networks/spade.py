"""SPADE: a normalised feature map, scaled and shifted by what a label map says (Park et al. 2019).

gamma and beta depend on the label map alone, not on the features: a network that is evaluated many
times under one label map (a diffusion sampler) computes them once.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

# gamma and beta of one layer, each (B, C, H, W)
Modulation = tuple[Tensor, Tensor]


class SPADE(nn.Module):
    """``norm(x) (1 + gamma(label)) + beta(label)``.

    Args:
        channels: of the features.
        label_channels: of the label map (or of whatever else steers the layer).
        hidden: width between the label map and gamma, beta (128 in the paper).
        norm: parameter-free normalisation of the features.
        scale: the features are smaller than the label map by this factor.
    """

    def __init__(
        self, channels: int, label_channels: int, hidden: int, norm: nn.Module, scale: int = 1
    ) -> None:
        super().__init__()
        self.norm = norm
        self.scale = scale
        self.shared = nn.Sequential(nn.Conv2d(label_channels, hidden, 3, padding=1), nn.ReLU())
        # one convolution gives both
        self.gamma_beta = nn.Conv2d(hidden, 2 * channels, 3, padding=1)

    def modulation(self, label: Tensor) -> Modulation:
        """Return gamma and beta for a label map (B, label_channels, H, W) at full size."""
        if self.scale > 1:
            size = [n // self.scale for n in label.shape[2:]]
            label = F.interpolate(label, size, mode="nearest-exact")
        gamma, beta = self.gamma_beta(self.shared(label)).chunk(2, dim=1)
        return 1 + gamma, beta

    def forward(self, x: Tensor, modulation: Modulation) -> Tensor:
        """Return (B, C, H, W) normalised and modulated."""
        scale, shift = modulation
        return self.norm(x) * scale + shift
