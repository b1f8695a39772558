"""The fused upsampling convolution is the plain one; widths that no network has are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from medpair.networks.blocks import UpsampleConv3d
from medpair.networks.diffusion_unet import DiffusionUNet
from medpair.networks.segmenters import segmenter
from medpair.networks.vid2vid import ImageSequenceGenerator

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
GRIDS = [(1, 1, 1), (3, 5, 7), (2, 1, 9), (4, 6, 8)]


def plain(conv: nn.Conv3d, x: Tensor) -> Tensor:
    """Nearest upsampling, then ``conv``: two operations of PyTorch's own."""
    upsampled = F.interpolate(x, scale_factor=2.0, mode="nearest")
    return F.conv3d(upsampled, conv.weight, conv.bias, padding=1)


@pytest.fixture
def conv() -> UpsampleConv3d:
    torch.manual_seed(0)
    return UpsampleConv3d(3, 4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("grid", GRIDS)
def test_fused_equals_plain(conv: UpsampleConv3d, grid: tuple[int, ...], layout) -> None:
    conv = conv.to(memory_format=layout)
    x = torch.randn(2, 3, *grid).to(memory_format=layout).requires_grad_(True)
    expected = plain(conv, x)
    assert expected.shape == (2, 4, *(2 * size for size in grid))
    torch.testing.assert_close(conv(x), expected, **CLOSE)
    torch.testing.assert_close(UpsampleConv3d.forward(unfused(conv), x), expected, **CLOSE)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("grid", GRIDS)
def test_fused_gradients_equal_plain_ones(conv: UpsampleConv3d, grid, layout) -> None:
    conv = conv.to(memory_format=layout)
    x = torch.randn(2, 3, *grid).to(memory_format=layout).requires_grad_(True)
    # weighs every output differently, so that no two gradients can stand in for each other
    weight = torch.randn(2, 4, *(2 * size for size in grid)) / 10
    inputs = [x, conv.weight, conv.bias]
    expected = torch.autograd.grad((plain(conv, x) * weight).sum(), inputs)
    found = torch.autograd.grad((conv(x) * weight).sum(), inputs)
    assert len(found) == 3
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-2
        torch.testing.assert_close(one, other, **CLOSE)


def test_one_voxel_by_hand() -> None:
    """A lone voxel x fills eight outputs, each seeing the eight taps that lie on the copies."""
    conv = UpsampleConv3d(1, 1)
    taps = torch.arange(27.0).view(3, 3, 3)
    with torch.no_grad():
        conv.weight.copy_(taps[None, None])
        conv.bias.fill_(0.5)
    out = conv(torch.full((1, 1, 1, 1, 1), 2.0))[0, 0]
    # the output at one end sees centre and far taps (1, 2), the other one near and centre (0, 1)
    for i, a in enumerate((slice(1, 3), slice(0, 2))):
        for j, b in enumerate((slice(1, 3), slice(0, 2))):
            for k, c in enumerate((slice(1, 3), slice(0, 2))):
                assert out[i, j, k].item() == pytest.approx(2 * taps[a, b, c].sum().item() + 0.5)


def test_weights_load_in_either_form(conv: UpsampleConv3d) -> None:
    ordinary = nn.Conv3d(3, 4, kernel_size=3, padding=1)
    assert list(conv.state_dict()) == list(ordinary.state_dict()) == ["weight", "bias"]
    ordinary.load_state_dict(conv.state_dict())
    back = UpsampleConv3d(3, 4)
    back.load_state_dict(ordinary.state_dict())
    x = torch.randn(1, 3, 2, 3, 4)
    torch.testing.assert_close(back(x), conv(x), rtol=0, atol=0)
    torch.testing.assert_close(plain(ordinary, x), conv(x), **CLOSE)


@pytest.mark.parametrize("fused", [True, False])
def test_torchscript(fused: bool) -> None:
    conv = UpsampleConv3d(3, 4, fused=fused)
    x = torch.randn(1, 3, 3, 2, 4)
    torch.testing.assert_close(torch.jit.script(conv)(x), conv(x), rtol=0, atol=1e-6)


def unfused(conv: UpsampleConv3d) -> UpsampleConv3d:
    """The same weights, computed in the plain form."""
    other = UpsampleConv3d(conv.in_channels, conv.out_channels, fused=False)
    other.load_state_dict(conv.state_dict())
    return other


@pytest.mark.parametrize(
    "channels", [[], [0, 8], [8, -4], 32, [8.5, 16], ["8", "16"], [True, 8], None]
)
def test_what_is_no_width_for_each_level_is_refused(channels: Any) -> None:
    levels = (False,) * 2
    with pytest.raises(ValueError, match="channels: expected a whole number of at least 4 for"):
        DiffusionUNet(1, 1, channels, attention_levels=levels)
    with pytest.raises(ValueError, match="channels: expected a whole number of at least 1 for"):
        ImageSequenceGenerator(3, channels=channels)
    with pytest.raises(ValueError, match="channels: expected a whole number of at least 1 for"):
        segmenter("unet3d", 3, (32, 32, 32), channels=channels)
