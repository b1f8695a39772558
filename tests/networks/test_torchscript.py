"""Variants of the networks that the bundles' defaults do not show, as TorchScript."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.conftest import randomized
from torch import Tensor, nn

from medpair.networks.mcdpm import MaskSequenceDenoiser
from medpair.networks.segmenters import segmenter
from medpair.networks.semantic_diffusion import SemanticDenoiser
from medpair.networks.vid2vid import ImageSequenceGenerator
from medpair.networks.wgan import Generator

UNET: dict[str, Any] = {
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def codes(**options: Any) -> Callable[[], nn.Module]:
    return lambda: MaskSequenceDenoiser(4, 3, **UNET, **options)


WINDOW = (draw(2, 3, 4, 16, 16), torch.tensor([3.0, 40.0]), torch.eye(4)[:2], torch.rand(2))
LABELS = torch.randint(0, 4, (2, 3, 16, 24)).float()
PAST = (draw(2, 2, 16, 24), torch.tensor([[0.0, 1.0], [1.0, 1.0]]))
VARIANTS: dict[str, tuple[Callable[[], nn.Module], tuple[Any, ...]]] = {
    "learned variance": (codes(output_factor=2), WINDOW),
    "classes": (codes(classes=5, neighbourhood=8, patch=2), (*WINDOW, draw(2, 5, 4, 16, 16))),
    "told what was said, and sizes": (
        codes(classes=5, neighbourhood=8, patch=2, self_conditioning=True, sizes=4),
        (*WINDOW, draw(2, 5, 4, 16, 16), draw(2, 3, 4, 16, 16), draw(2, 4)),
    ),
    "separate views": (
        lambda: SemanticDenoiser(3, 2, "separate", **UNET, hidden=8),
        (draw(2, 1, 16, 16), torch.tensor([3.0, 40.0]), None, "coronal", draw(2, 3, 16, 16)),
    ),
    "no positions": (
        lambda: ImageSequenceGenerator(4, channels=(8, 16), hidden=8),
        (LABELS, *PAST),
    ),
    "told the contrast": (
        lambda: ImageSequenceGenerator(4, channels=(8, 16), hidden=8, contrast=True),
        (LABELS, *PAST, None, draw(2, 3)),
    ),
    "paper's stem": (lambda: Generator([16, 16, 16], 2, 8, 16, num_upsamples=3), (draw(2, 8),)),
    "plain upsampling": (lambda: Generator([16, 16, 16], 1, 8, 16, fused=False), (draw(2, 8),)),
    "unet2d": (
        lambda: segmenter("unet2d", 3, [16, 16, 16], [4, 8, 16, 16]),
        (draw(1, 1, 16, 16, 12),),
    ),
    "unetr": (lambda: segmenter("unetr", 3, [16] * 3, hidden_size=24), (draw(1, 1, 16, 16, 16),)),
    "swin_unetr": (
        lambda: segmenter("swin_unetr", 3, [64, 32, 32], feature_size=12),
        (draw(1, 1, 64, 32, 32),),
    ),
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_torchscript_equals_the_network(name: str) -> None:
    make, inputs = VARIANTS[name]
    network = randomized(make()).eval()
    with torch.no_grad():
        # MONAI's Swin UNETR calls activation checkpointing, which the script compiler refuses
        traced = name == "swin_unetr"
        script = torch.jit.trace(network, inputs) if traced else torch.jit.script(network)
        buffer = io.BytesIO()
        torch.jit.save(script, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        expected = network(*inputs)
        assert expected.std() > 1e-3
        for _ in range(1 if traced else 2):  # the second call is an optimised one
            torch.testing.assert_close(loaded(*inputs), expected, rtol=0, atol=1e-5)
