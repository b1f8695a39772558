"""Label volumes: sampling, training, connected components.

The environment variable MEDPAIR_LABEL_WEIGHTS names the `model.pt` of a label diffusion to sample
from; without it, the weights are those of the bundle, if it has any.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, Setting, Sides
from label_samples import FirstWindow, open_model, swapped, window_statistics
from scipy.ndimage import label as scipy_label
from torch import nn
from torch.utils.data import default_collate

from medpair.data.card import Card
from medpair.data.cohort import LabelledVolume
from medpair.data.files import read_json
from medpair.data.label_codes import LabelCode
from medpair.data.phantoms.brain import BRAIN_LABELS, brain_phantom
from medpair.data.phantoms.thorax import thorax_phantom
from medpair.data.sampling import numpy_generator
from medpair.data.slices import LabelWindows
from medpair.diffusion.process import Diffusion
from medpair.engines.diffusion import MaskSequenceTask
from medpair.inferers.label_growth import Growth, Window
from medpair.inferers.label_volume import LabelVolumeInferer
from medpair.metrics.components import component_sizes
from medpair.metrics.label_shape import MIN_COMPONENT, label_shape
from medpair.networks.mcdpm import MaskSequenceDenoiser

BUNDLE = Path(__file__).parents[2] / "bundles" / "medgen3d_mcdpm"
# Chance that a sampler as good as the paper's is taken for a worse one, all statistics together
LEVEL = 0.05
# Steps at which volumes do get worse: were they not found to, the check would prove nothing
TOO_FEW = 2


class WindowByWindow(LabelVolumeInferer):
    """The paper's way: a volume's windows one after the other."""

    def _round(
        self,
        network: nn.Module,
        volumes: Sequence[Growth],
        windows: Sequence[Window],
        device: torch.device,
    ) -> np.ndarray:
        made = []
        for window in windows:
            made.append(self._denoise(network, volumes, [window], 0, device))
        return np.concatenate(made)


def sampling(setting: Setting) -> Sides:
    """A volume: the bundle's sampler on a batch, against 1000 ancestral steps, one by one."""
    card, network, trained = model_of(setting)
    config = read_json(BUNDLE / "configs" / "inference.json")
    usual = {key: config[key] for key in ("solver", "steps", "log_snr", "guidance", "evidence")}
    few = LabelVolumeInferer(card, **usual)
    full_steps = few.diffusion.schedule.timesteps
    device = torch.device(setting.device)
    volumes = 2 if setting.small else 4 if setting.device == "cpu" else 32
    together = torch.arange(volumes, device=device)[:, None]
    # every step costs the same, and so does every window: a part of one volume tells the whole
    part = full_steps if setting.device == "cuda" or setting.small else full_steps // 4
    beyond = few.volume_size[few.axis] - few.frame[few.axis]  # where labels never are
    window = WindowByWindow(
        card, solver="ancestral", steps=part, evidence=few.evidence, height=few.window + beyond
    )
    counting = LabelVolumeInferer(card, steps=1)
    with torch.no_grad():
        grown = counting.grow(network, range(volumes), 0, device)
    windows = sum(1 + len(growth.seams) for growth in grown) / volumes

    def check() -> str:
        told = same_in_a_batch(card, network, device)
        if trained and not setting.small:
            told += "; " + same_statistics(card, network, setting, usual, full_steps)
        return told

    sampler = few.sampler
    notes = (
        f"seconds a volume. The baseline, {full_steps} ancestral steps, is timed on {part} of "
        f"them in one window, and multiplied up to the {windows:.1f} windows that a volume has; "
        f"ours, {sampler.steps} steps of {sampler.solver}, makes {volumes} whole volumes in a "
        f"batch. Evaluations of the network a volume: {windows * full_steps:.0f} against "
        f"{windows * sampler.steps:.0f}, the latter in {counting.evaluations * sampler.steps} "
        "calls for the whole batch"
    )
    if not trained:
        notes += ". No trained weights: there are no statistics to compare"
    return Sides(
        baseline=lambda: window(together[:1], network),
        ours=lambda: few(together, network),
        check=check,
        count_flops=setting.device == "cuda",
        scale=(full_steps / part * windows, 1 / volumes),
        notes=notes,
    )


def model_of(setting: Setting) -> tuple[Card, nn.Module, bool]:
    """Return card and network, and whether it is trained; a small one of noise where none is."""
    named = os.environ.get("MEDPAIR_LABEL_WEIGHTS")
    checkpoint = Path(named) if named else BUNDLE / "models" / "model.pt"
    if not setting.small and (named or checkpoint.exists()):
        card, network = open_model(checkpoint)
        return card, network.to(setting.device), True
    torch.manual_seed(0)
    frame, channels = ([16, 24, 16], (8, 16)) if setting.small else ([48, 64, 64], (64, 128, 192))
    attention = [False] * (len(channels) - 1) + [True]
    network = MaskSequenceDenoiser(8, 3, 1, channels, 1, attention, 2, 5, 4)
    for parameter in network.parameters():  # layers that begin at zero would hide differences
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    none = [None] * 4
    card = Card(
        {
            "diffusion": Diffusion("classes", "cosine", 20 if setting.small else 1000).settings,
            "network": network.settings,
            "code": {"num_classes": 5, "encoding": "bits"},
            "sequence": {"axis": 1, "frame": frame, "window": 8, "overlap": 4},
            "cohort": {
                "name": "none",
                "labels": list(BRAIN_LABELS),
                "spacing": [4.0, 4.0, 4.0],
                "sizes": [frame],
                "intensity": [0.0, 1.0],
            },
            "label_reference": {
                "volumes": 0,
                "presence": [0.0] * 4,
                **dict.fromkeys(("volume", "largest_share", "components"), none),
            },
        }
    )
    return card, network.eval().to(setting.device), False


def same_in_a_batch(card: Card, network: nn.Module, device: torch.device) -> str:
    """Say how many voxels depend on what else is in the batch: one solver, all seeds the same.

    Raises:
        AssertionError: if it is one in 10,000 or more.
    """
    indices = torch.arange(2, device=device)[:, None]
    together = LabelVolumeInferer(card)(indices, network)
    alone = [LabelVolumeInferer(card)(index[None], network) for index in indices]
    share = (torch.cat(alone) != together).double().mean().item()
    told = f"a batch against one by one: {share:.1e} of the voxels differ"
    assert share < 1e-4, f"{told}, limit 1e-4"
    return told


def same_statistics(
    card: Card, network: nn.Module, setting: Setting, usual: dict[str, Any], full_steps: int
) -> str:
    """Compare windows of 1000 ancestral steps with ours at the same places of the volume.

    For each class, the share of the voxels and the number of pieces must not differ in the mean by
    more than chance: no p of a test that swaps the two of a pair is below LEVEL divided by the
    number of tests. It must be below where ours has TOO_FEW steps. Windows at the ends of a volume,
    which may be empty whoever makes them, are left out: too few pairs that differ prove nothing.

    Raises:
        AssertionError: if they differ, or ``TOO_FEW`` do not.
    """
    count = 10 if setting.device == "cpu" else 64

    plan = FirstWindow(card, **usual)
    height = plan.frame[plan.axis]
    first = min(height // 4, height - plan.window)
    last = max(first, 3 * height // 4 - plan.window)
    begun = ((index, plan._begin(index, 0).low) for index in itertools.count())
    middle = (i for i, low in begun if first <= low <= last)
    indices = list(itertools.islice(middle, count))

    def measured(**options: Any) -> np.ndarray:
        inferer = FirstWindow(card, **options)
        return window_statistics(inferer, network, indices, torch.device(setting.device))

    classes = len(card["cohort"]["labels"]) - 1
    paper = measured(solver="ancestral", steps=full_steps, evidence=usual["evidence"])
    ours = measured(**usual)
    least, largest = swapped(ours, paper).min(), np.abs((ours - paper).mean(axis=0)[:classes]).max()
    worse = swapped(measured(**{**usual, "steps": TOO_FEW}), paper).min()
    limit = LEVEL / (2 * classes)
    told = (
        f"{count} windows of each: shares of classes and pieces differ by chance (least p "
        f"{least:.2g}, limit {limit:.2g}), largest difference of a share {largest:.1%}"
    )
    assert least >= limit, told.replace("by chance", "by more than chance")
    assert worse < limit, f"{TOO_FEW} steps are not told from {full_steps}: p {worse:.2g}"
    return f"{told}; with {TOO_FEW} steps p is {worse:.2g}"


def training_step(setting: Setting) -> Sides:
    """A step of the trained network: most classes are certain, and their gradients tiny."""
    torch.set_num_threads(1)  # threads count as the one that began them did, then
    card, network, trained = model_of(setting)
    order = card["sequence"]
    spacing = tuple(192.0 / n for n in order["frame"])
    brains = [brain_phantom(order["frame"], spacing=spacing, seed=seed) for seed in range(2)]
    volumes = [LabelledVolume(np.zeros(brain.label.shape), brain.label) for brain in brains]
    windows = LabelWindows(volumes, order["frame"], order["axis"], order["window"])
    batch = default_collate([windows[index] for index in range(2 if setting.small else 16)])
    if sizes := card["network"].get("sizes"):
        batch["sizes"] = torch.zeros(len(batch["label"]), sizes)
    batch = {key: value for key, value in batch.items() if isinstance(value, torch.Tensor)}
    task = MaskSequenceTask(Diffusion(**card["diffusion"]), LabelCode(**card["code"]))

    def step(flushed: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        torch.set_flush_denormal(flushed)
        network.zero_grad()
        loss = task(network, batch, torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        torch.set_flush_denormal(False)
        return loss.detach(), [p.grad.clone() for p in network.parameters() if p.grad is not None]

    def check() -> str:
        (one, before), (two, after) = step(False), step(True)
        far = max(
            ((a - b).norm() / a.norm().clamp(min=1e-12)).item()
            for a, b in zip(before, after, strict=True)
        )
        told = f"losses {abs(one - two).item():.1e} apart, gradients {far:.1e} of their norm"
        assert abs(one - two) <= 1e-6 * abs(one), told
        assert far <= 1e-5, told
        return told

    notes = "one thread; " + ("the weights of the bundle" if trained else "untrained weights")
    return Sides(
        baseline=lambda: step(False),
        ours=lambda: step(True),
        check=check,
        count_flops=False,
        notes=notes,
    )


def pieces_of_brain(setting: Setting) -> Sides:
    """Four tissues, thin and folded: hardly ten voxels of a class side by side."""
    size, spacing = ((45, 60, 60), 4.0) if setting.small else ((90, 120, 120), 2.0)
    return pieces(brain_phantom(size, spacing=(spacing,) * 3).label)


def pieces_of_thorax(setting: Setting) -> Sides:
    """Seven organs, most of them compact."""
    size, spacing = ((48, 48, 32), 8.0) if setting.small else ((128, 128, 96), 3.0)
    return pieces(thorax_phantom(size, spacing=(spacing,) * 3).label)


def pieces(classes: np.ndarray) -> Sides:
    """The pieces of every class of a label map, as the plausibility check counts them."""
    count = int(classes.max())
    # as sampling leaves them: specks in and around the tissues
    drawn = numpy_generator(0, 1).random(classes.shape)
    specked = np.where(drawn < 0.002, (classes + 1) % (count + 1), classes)

    def check() -> str:
        found = 0
        for volume in (classes, specked, specked[:, :, ::-1]):
            one, two = class_by_class(volume, count), component_sizes(volume, count)
            pairs = [(sorted(a), sorted(b)) for a, b in zip(one, two, strict=True)]
            assert all(a == b for a, b in pairs), "pieces differ"
            found += sum(len(a) for a, _ in pairs)
            large = tuple(sum(size >= MIN_COMPONENT for size in a) for a, _ in pairs)
            shape = label_shape(volume, count, (1, 1, 1))
            assert shape.components == large, "pieces in the plausibility check differ"
        return f"the same sizes of all {found} pieces of 3 volumes"

    return Sides(
        baseline=lambda: class_by_class(classes, count),
        ours=lambda: component_sizes(classes, count),
        check=check,
        count_flops=False,
    )


def class_by_class(classes: np.ndarray, num_labels: int) -> list[np.ndarray]:
    """Return the sizes of each class's 26-connected pieces."""
    sizes = []
    for index in range(1, num_labels + 1):
        parts, count = scipy_label(classes == index, structure=np.ones((3, 3, 3)))
        sizes.append(np.bincount(parts.ravel(), minlength=count + 1)[1:])
    return sizes


ROWS = [
    Row(
        "label volume from noise, seconds a volume",
        "1000-step ancestral sampling, a window at a time",
        {"cpu": 20.0, "cuda": 40.0},
        sampling,
    ),
    Row(
        "label diffusion, a training step of 16 windows",
        "numbers below 1e-38 computed, not zero",
        {"cpu": 1.2},
        training_step,
    ),
    Row(
        "pieces of 7 organs, thorax of 128 x 128 x 96",
        "scipy.ndimage.label, class by class",
        {"cpu": 4.0},
        pieces_of_thorax,
    ),
    Row(
        "pieces of 4 tissues, brain of 90 x 120 x 120",
        "scipy.ndimage.label, class by class",
        {"cpu": 4.0},
        pieces_of_brain,
    ),
]
