"""The refiner.

Networks are the bundles' default ones, with random weights; half as wide where a CPU would take
too long, and the row's name says so. Label maps are smooth regions, as anatomy is: what SPADE can
keep depends on how much of a map is boundary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness import Row, Setting, Sides, largest_difference
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import convert_conv2d_weight_memory_format

from medpair.data.sampling import torch_generator
from medpair.diffusion.process import Diffusion
from medpair.engines.diffusion import SemanticTask, recompute_activations
from medpair.inferers.three_views import ThreeViewRefiner, refiner_from_card
from medpair.networks.semantic_diffusion import VIEWS, SemanticDenoiser
from medpair.networks.spade import SPADE, Modulation

CLASSES = 5
DIFFUSION = Diffusion(learn_variance=True)
CARD = {"diffusion": DIFFUSION.settings}
Size = tuple[int, int, int]


class PlainSPADE(SPADE):
    """SPADE as it is published: gamma and beta whenever features are modulated."""

    def modulation(self, label: Tensor) -> Modulation:
        return label, label

    def forward(self, x: Tensor, modulation: Modulation, silu: bool = False) -> Tensor:
        gamma, beta = self.gamma_beta(self.shared(self.scaled(modulation[0]))).chunk(2, dim=1)
        h = self.norm(x) * (1 + gamma) + beta
        return functional.silu(h) if silu else h


def plain(network: SemanticDenoiser) -> SemanticDenoiser:
    """Return a network of the same weights with plain SPADE."""
    other = copy.deepcopy(network)
    for module in other.modules():
        if isinstance(module, SPADE):
            module.__class__ = PlainSPADE
    return other


def drawn_anew(network: nn.Module, device: str) -> Any:
    """Return a network whose layers that begin at zero, and hide all others, are as the others."""
    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Conv3d)) and not module.weight.any():
            module.reset_parameters()
    return network.to(device).eval()


def refiner_network(setting: Setting, half: bool = True) -> SemanticDenoiser:
    """Return the default network; on a CPU half as wide unless told otherwise."""
    torch.manual_seed(0)
    channels, hidden = (64, 128, 256, 256), 128
    if setting.device == "cpu" and half:
        channels, hidden = (32, 64, 128, 128), 64
    if setting.small:
        channels, hidden = (16, 16, 32, 32), 16
    attention = (False, False, True, True)
    network = SemanticDenoiser(CLASSES, 2, "shared", channels, 2, attention, hidden)
    network = drawn_anew(network, setting.device)
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def regions(size: Size, device: str) -> Tensor:
    """Return a label volume (W, H, D): smooth regions of all classes."""
    coarse = torch.randn(1, CLASSES, 6, 6, 6, generator=torch_generator(1))
    fine = functional.interpolate(coarse.to(device), size, mode="trilinear", align_corners=True)
    return fine.argmax(1)[0]


def image_and_label(size: Size, device: str) -> tuple[Tensor, Tensor]:
    image = torch.rand(size, generator=torch_generator(2)) * 2 - 1
    return image.to(device), regions(size, device)


def exactly(work: Callable[[], Tensor]) -> Tensor:
    """Return what ``work`` gives in fp32: convolutions of a GPU round to 10 bits otherwise."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False), torch.no_grad():
        return work()


def evaluation(setting: Setting) -> Sides:
    """One evaluation of the network, gamma and beta at hand or not."""
    side, count = (320, 16) if setting.device == "cuda" else (64, 4)
    side, count = (32, 2) if setting.small else (side, count)
    network = refiner_network(setting, half=False)
    published = plain(network)
    x, label = image_and_label((side, side, count), setting.device)
    x = x.permute(2, 0, 1)[:, None].contiguous(memory_format=torch.channels_last)
    one_hot = network.one_hot(label.permute(2, 0, 1))
    time = torch.full((count,), 50.0, device=setting.device)

    @torch.no_grad()
    def baseline() -> Tensor:
        return published(x, time, None, "axial", one_hot)

    with torch.no_grad():
        kept = network.compact_modulations(one_hot, "axial")

    @torch.no_grad()
    def ours() -> Tensor:
        return network(x, time, kept, "axial")

    def check() -> str:
        return largest_difference(exactly(baseline), exactly(ours), 1e-4)

    return Sides(baseline, ours, check, "tf32")


def layout(setting: Setting) -> Sides:
    """One evaluation in the layout that a bundle samples in; as wide as the weights that ship."""
    size = (24, 32, 2) if setting.small else (96, 120, 16)
    settings = {
        "num_classes": CLASSES,
        "output_factor": 2,
        "channels": [24, 48, 72],
        "num_res_blocks": 1,
        "attention_levels": [False, False, True],
        "hidden": 32,
    }
    torch.manual_seed(0)
    network = drawn_anew(refiner_from_card({"network": settings}), setting.device)
    planes = convert_conv2d_weight_memory_format(copy.deepcopy(network), torch.contiguous_format)
    x, label = (a.permute(2, 0, 1) for a in image_and_label(size, setting.device))
    time = torch.full((len(x),), 50.0, device=setting.device)
    with torch.no_grad():
        kept = network.compact_modulations(network.one_hot(label), "axial")

    @torch.no_grad()
    def evaluated(network: SemanticDenoiser) -> Tensor:
        return network(x[:, None].contiguous(), time, kept, "axial")

    def check() -> str:
        return largest_difference(
            exactly(lambda: evaluated(planes)), exactly(lambda: evaluated(network)), 1e-4
        )

    return Sides(lambda: evaluated(planes), lambda: evaluated(network), check, "tf32")


def refined(
    network: SemanticDenoiser, pair: tuple[Tensor, Tensor], amp: bool, **options: Any
) -> Tensor:
    """Return a refined volume."""
    with torch.autocast(pair[0].device.type, torch.bfloat16, enabled=amp), torch.no_grad():
        return ThreeViewRefiner(CARD, **options).refine(*pair, 0, network)


def volume(setting: Setting) -> Sides:
    """A whole volume, in batches and with what is kept, against neither."""
    cuda = setting.device == "cuda"
    size = (128, 128, 48) if cuda else (32, 32, 16)
    size, steps = ((8, 16, 8), 2) if setting.small else (size, 10)
    network, pair = refiner_network(setting), image_and_label(size, setting.device)
    published = plain(network)
    one: dict[str, Any] = {"slice_batch": 1, "cached": False, "refine_steps": steps}

    def check() -> str:
        slow = exactly(lambda: refined(published, pair, False, **one))
        fast = exactly(lambda: refined(network, pair, False, refine_steps=steps))
        return largest_difference(slow, fast, 1e-3)

    return Sides(
        lambda: refined(published, pair, cuda, **one),
        lambda: refined(network, pair, cuda, refine_steps=steps),
        check,
        "bfloat16" if cuda else "float32",
        notes="both sides in bfloat16, compared in float32" if cuda else "",
    )


def large_volume(setting: Setting) -> Sides:
    """The size of the paper's CT, against the same batches without anything kept."""
    size, steps = ((8, 16, 8), 2) if setting.small else ((320, 320, 96), 10)
    network, pair = refiner_network(setting), image_and_label(size, setting.device)
    published = plain(network)
    options = {"refine_steps": steps}
    part = (pair[0][:64, :64, :16], pair[1][:64, :64, :16])

    def check() -> str:
        slow = exactly(lambda: refined(published, part, False, cached=False, **options))
        fast = exactly(lambda: refined(network, part, False, **options))
        return largest_difference(slow, fast, 1e-3)

    amp = setting.device == "cuda"
    return Sides(
        lambda: refined(published, pair, amp, cached=False, **options),
        lambda: refined(network, pair, amp, **options),
        check,
        "bfloat16",
        limit=4.0,
        notes="both sides in bfloat16; compared in float32 on a part of 64 x 64 x 16",
    )


def sampling_memory(setting: Setting) -> Sides:
    """Slices of a sampler, as many at a time on both sides."""
    size: Size = (48, 48, 1) if setting.small else (320, 320, 8 if setting.device == "cuda" else 1)
    network, pair = refiner_network(setting), image_and_label(size, setting.device)
    published = plain(network)
    # more steps take more time, not more memory
    options: dict[str, Any] = {"views": ["axial"], "refine_steps": 2}

    def check() -> str:
        slow = exactly(lambda: refined(published, pair, False, cached=False, **options))
        fast = exactly(lambda: refined(network, pair, False, **options))
        return largest_difference(slow, fast, 1e-3)

    return Sides(
        lambda: refined(published, pair, False, cached=False, **options),
        lambda: refined(network, pair, False, **options),
        check,
        memory=True,
        notes="what SPADE keeps counts as ours",
    )


def training_memory(setting: Setting) -> Sides:
    """Gradients of a training step of one slice of each view."""
    side = 320 if setting.device == "cuda" else 32 if setting.small else 160
    network = refiner_network(setting).train()
    image, label = image_and_label((side, side, 3), setting.device)
    batch = {}
    for number, view in enumerate(VIEWS):
        batch[f"image_{view}"] = image[None, None, ..., number]
        batch[f"label_{view}"] = label[None, ..., number]
        batch[f"inside_{view}"] = torch.ones_like(image[None, None, ..., number])
    task = SemanticTask(DIFFUSION)

    def gradients(recompute: bool) -> Tensor:
        recompute_activations(network, recompute)
        network.zero_grad(set_to_none=True)
        task(network, batch, torch_generator(3))["loss"].backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    def check() -> str:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            plainly, again = gradients(False), gradients(True)
        # of the largest gradient
        return largest_difference(plainly / plainly.abs().max(), again / plainly.abs().max(), 1e-4)

    def step(recompute: bool) -> None:
        gradients(recompute)
        network.zero_grad(set_to_none=True)  # they would count as there before the next step

    return Sides(partial(step, False), partial(step, True), check, count_flops=False, memory=True)


PUBLISHED = "SPADE at every evaluation, as published"

ROWS: list[Row] = [
    Row(
        "refiner: one evaluation, SPADE kept for each neighbourhood",
        PUBLISHED,
        {"cpu": 2.0, "cuda": 1.7},
        evaluation,
    ),
    Row(
        "refiner: one evaluation, channels last",
        "a plane for each channel",
        {"cpu": 1.3, "cuda": 1.0},
        layout,
    ),
    Row(
        "refiner: a volume, 10 steps, 3 views (on a CPU at half width)",
        f"slice by slice, {PUBLISHED}",
        {"cpu": 2.0, "cuda": 4.0},
        volume,
    ),
    Row(
        "refiner: 96 x 320 x 320, 10 steps, 3 views, in at most 4 s",
        PUBLISHED,
        {"cuda": 1.5},
        large_volume,
    ),
    Row(
        "refiner: memory of sampling slices of 320 x 320 (on a CPU one, at half width)",
        PUBLISHED,
        {"cpu": 0.7, "cuda": 0.7},
        sampling_memory,
    ),
    Row(
        "refiner: memory of a training step, `recompute`, 320 x 320 (on a CPU 160 x 160)",
        "the same step, all activations kept",
        {"cpu": 0.7, "cuda": 0.7},
        training_memory,
    ),
]
