"""A whole MedGen3D pair, by the inferers of all three stages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import Row, Setting, Sides
from rows_refiner import (
    CLASSES,
    PUBLISHED,
    Size,
    drawn_anew,
    plain,
    refined,
    refiner_network,
    regions,
)
from torch import Tensor

from medpair.data.cohort import Cohort, LabelledVolume
from medpair.data.label_codes import LabelCode
from medpair.diffusion.process import Diffusion
from medpair.engines.checkpoint import plain as plain_data
from medpair.inferers.image_sequence import ImageSequenceInferer
from medpair.inferers.label_volume import LabelVolumeInferer, reference_of
from medpair.networks.mcdpm import MaskSequenceDenoiser
from medpair.networks.semantic_diffusion import SemanticDenoiser
from medpair.networks.vid2vid import ImageSequenceGenerator


def label_stage(size: Size, setting: Setting) -> Callable[[], Tensor]:
    """Return what generates one label volume."""
    code = LabelCode(CLASSES)
    channels = (16, 16, 16, 16) if setting.small else (64, 128, 256, 384)
    network = MaskSequenceDenoiser(8, code.channels, 1, channels, 2, (False, False, True, True))
    names = tuple(f"class_{number}" for number in range(CLASSES))
    cohort = Cohort("cohort", names, (1.0, 1.0, 2.0), (size,), (0.0, 1000.0))
    label = regions(size, "cpu").numpy().astype(np.uint8)
    volume = LabelledVolume(np.zeros(size, np.float32), label)
    card = {
        "diffusion": Diffusion().settings,
        "code": code.settings,
        "network": network.settings,
        "sequence": {"axis": 2, "frame": list(size), "window": 8, "overlap": 4},
        "cohort": cohort.to_json(),
        "label_reference": reference_of([volume], cohort, size, axis=2),
    }
    inferer = LabelVolumeInferer(plain_data(card))
    network = drawn_anew(network, setting.device)
    index = torch.zeros(1, 1, dtype=torch.long, device=setting.device)
    return lambda: inferer(index, network)


def pair(setting: Setting) -> Sides:
    """Label, image and refined image, one after the other."""
    size, steps = ((8, 8, 8), 1) if setting.small else ((320, 320, 96), 10)
    network = refiner_network(setting)
    published = plain(network)
    torch.manual_seed(0)
    channels = (16, 16, 16) if setting.small else (64, 128, 256, 512)
    drawer = drawn_anew(
        ImageSequenceGenerator(CLASSES, channels=channels, hidden=16 if setting.small else 128),
        setting.device,
    )
    images = ImageSequenceInferer({"sequence": {"axis": 2}})
    labels = label_stage(size, setting)
    # random weights make no anatomy: the stages that follow are given regions instead
    label = regions(size, setting.device)

    def made(refiner: SemanticDenoiser, **options: Any) -> Tensor:
        with torch.autocast(setting.device, torch.bfloat16, enabled=setting.device == "cuda"):
            assert labels().shape == (1, 1, *size)
            image = images(label[None, None], drawer)[0, 0].float()
            amp = setting.device == "cuda"
            return refined(refiner, (image, label), amp, refine_steps=steps, **options)

    def check() -> str:
        rough = (made(published, cached=False) - made(network)).abs().mean().item()
        told = f"mean difference {rough:.1e}"
        assert rough <= 0.01, f"{told}, more than 0.01"
        return f"{told} (limit 0.01)"

    return Sides(
        lambda: made(published, cached=False),
        lambda: made(network),
        check,
        "bfloat16",
        limit=10.0,
        notes="random weights; stages 2 and 3 are given smooth regions as labels",
    )


ROWS: list[Row] = [
    Row(
        "MedGen3D: label, image and refined image, 96 x 320 x 320, in at most 10 s",
        f"the refiner with {PUBLISHED}",
        {"cuda": 1.2},
        pair,
    ),
]
