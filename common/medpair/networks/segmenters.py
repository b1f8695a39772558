"""The four segmenters that judge a cohort: 2D and 3D U-Net, UNETR, Swin UNETR (all MONAI's)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from monai.networks.nets import UNETR, SwinUNETR, UNet
from torch import Tensor, nn

from medpair.data.card import network_of
from medpair.networks.blocks import require_widths

# patch sizes must be divisible by this
MULTIPLES = {"unet3d": 8, "unet2d": 8, "unetr": 16, "swin_unetr": 32}


class SliceWise(nn.Module):
    """Run a 2D network on every axial slice of a volume: (B, C, H, W, D) -> (B, K, H, W, D)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Fold the slices into the batch, apply the 2D network, unfold."""
        b, c, h, w, d = x.shape
        slices = x.permute(0, 4, 1, 2, 3).reshape(b * d, c, h, w)
        result = self.network(slices)
        return result.reshape(b, d, -1, h, w).permute(0, 2, 3, 4, 1)


def segmenter(
    architecture: str = "unet3d",
    num_classes: int = 2,
    patch_size: Sequence[int] = (96, 96, 64),
    channels: Sequence[int] = (16, 32, 64, 128),
    hidden_size: int = 384,
    feature_size: int = 24,
) -> nn.Module:
    """Build a segmenter: image (B, 1, H, W, D) -> scores (B, num_classes, H, W, D).

    Args:
        architecture: ``unet3d``, ``unet2d``, ``unetr`` or ``swin_unetr``.
        num_classes: classes with the background.
        patch_size: size it trains on; UNETR is bound to it.
        channels: of the U-Nets' levels.
        hidden_size: of UNETR's transformer (768 in its paper, which needs far more data).
        feature_size: of Swin UNETR (48 in its paper), a multiple of 12.

    Raises:
        ValueError: if the architecture is unknown, the patch size does not suit it, or a width is
            below 1.
    """
    if architecture not in MULTIPLES:
        raise ValueError(f"architecture: expected one of {list(MULTIPLES)}, found {architecture!r}")
    multiple = MULTIPLES[architecture]
    if architecture in ("unet3d", "unet2d"):
        require_widths(channels)
        multiple = max(multiple, 2 ** (len(channels) - 1))  # halved from level to level
    checked = patch_size[:2] if architecture == "unet2d" else patch_size
    if any(size < multiple or size % multiple for size in checked):
        raise ValueError(
            f"patch_size: {architecture} expects multiples of {multiple}, found {list(patch_size)}"
        )
    if architecture == "swin_unetr" and max(patch_size) < 64:
        # its deepest level halves the patch five times and normalises what is left
        raise ValueError(
            f"patch_size: swin_unetr expects an axis of 64 or more, found {list(patch_size)}"
        )
    if architecture == "unetr":
        unetr = UNETR(
            1, num_classes, tuple(patch_size), hidden_size=hidden_size, mlp_dim=4 * hidden_size
        )
        # MONAI's blocks have a norm of cross-attention, which UNETR never uses; processes that
        # share a training would wait for its gradients
        for name, parameter in unetr.named_parameters():
            parameter.requires_grad_("norm_cross_attn" not in name)
        return unetr
    if architecture == "swin_unetr":
        return SwinUNETR(1, num_classes, feature_size=feature_size, use_v2=True)
    unet: dict[str, Any] = {
        "in_channels": 1,
        "out_channels": num_classes,
        "channels": tuple(channels),
        "strides": (2,) * (len(channels) - 1),
        "num_res_units": 2,
    }
    if architecture == "unet2d":
        return SliceWise(UNet(spatial_dims=2, **unet))
    return UNet(spatial_dims=3, **unet)


def patch_multiple(architecture: str) -> int:
    """Return what the sides of training patches are multiples of: 16, or what the network needs."""
    return max(16, MULTIPLES[architecture])


def segmenter_from_card(card: dict[str, Any]) -> nn.Module:
    """Rebuild the network that a ``model.json`` describes."""
    return network_of(card, "segmenter", segmenter)
