"""From weights to files of pairs: the paper's generate loop against the bundle's inference.

Both load the same weights, make the same pairs and write them. The paper's way: plain layers, one
batch after the other in fp32, then each pair's arrays as ``.npy.gz`` of fp32 at gzip's level 9
(NumPy's and gzip's defaults). Here: ``configs/inference.json`` of the bundle as the runner runs it.
"""

from __future__ import annotations

import gzip
import itertools
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from harness import Setting, Sides, synchronize
from monai.bundle import ConfigWorkflow
from paper_wgan import PaperGenerator, copy_weights
from torch import nn

from medpair.data.files import save_torch, write_json
from medpair.engines.averaging import recalibrate_batch_norm
from medpair.inferers.pairs import LatentDataset
from medpair.networks.wgan import Generator

CONFIGS = Path(__file__).parents[2] / "bundles" / "wgan_sn_mp" / "configs"
LATENT_SIZE, SEED, BATCH, THRESHOLD = 128, 0, 8, 0.4
INTENSITY = (0.0, 1000.0)
# Rounding of the networks before that to whole steps, in steps; and how near to the threshold it
# may turn a label
ROUNDING = 0.02
GPU_GOAL, GPU_PAIRS = 300.0, 2048


@dataclass
class Task:
    """How many pairs of what, and where."""

    count: int
    patch_size: tuple[int, int, int]
    filters: int
    device: str
    workers: int
    root: tempfile.TemporaryDirectory = field(default_factory=tempfile.TemporaryDirectory)

    def __post_init__(self) -> None:
        self.folders = (Path(self.root.name) / str(number) for number in itertools.count())
        self.weights = Path(self.root.name) / "model.pt"
        generator = smooth_generator(self.patch_size, self.filters)
        save_torch(self.weights, generator.state_dict())
        cohort = {
            "name": "benchmark",
            "labels": ["background", "vessel"],
            "spacing": [0.5, 0.5, 0.7],
            "sizes": [list(self.patch_size)],
            "intensity": list(INTENSITY),
        }
        card = {"medpair_version": "0", "cohort": cohort, "generator": generator.settings}
        card["label_channels"] = {"num_labels": 1, "off": 0.0, "on": 1.0, "threshold": THRESHOLD}
        write_json(self.weights.with_suffix(".json"), card)

    def bundle(self, count: int | None = None) -> tuple[ConfigWorkflow, Path]:
        """Return the bundle's inference, initialized, and where it will write."""
        folder = next(self.folders)
        workflow = ConfigWorkflow(
            config_file=str(CONFIGS / "inference.json"),
            meta_file=str(CONFIGS / "metadata.json"),
            logging_file=False,
            workflow_type="infer",
            ckpt_path=str(self.weights),
            output_dir=str(folder),
            device=torch.device(self.device),
            num_samples=count or self.count,
            num_workers=self.workers,
            batch_size=BATCH,
            seed=SEED,
        )
        workflow.initialize()
        return workflow, folder

    def ours(self) -> Path:
        """Run the bundle; returns its folder."""
        workflow, folder = self.bundle()
        workflow.run()
        workflow.finalize()
        return folder

    @torch.no_grad()
    def papers(self) -> Path:
        """Run the paper's loop; returns its folder."""
        network = PaperGenerator(self.patch_size, 1, LATENT_SIZE, self.filters, num_upsamples=4)
        state = torch.load(self.weights, weights_only=True).values()
        network.load_state_dict(dict(zip(network.state_dict(), state, strict=True)))
        network = network.to(self.device).eval()
        folder = next(self.folders)
        folder.mkdir()
        latents = LatentDataset(LATENT_SIZE, SEED)  # the same as the bundle's
        for first in range(0, self.count, BATCH):
            indices = range(first, min(self.count, first + BATCH))
            latent = torch.stack([latents[index]["image"] for index in indices])
            pairs = network(latent.to(self.device)).cpu().numpy()
            for index, (image, label) in zip(indices, pairs, strict=True):
                arrays = {"image": image, "label": (label > THRESHOLD).astype(np.float32)}
                for name, array in arrays.items():
                    with gzip.open(folder / f"{name}_{index}.npy.gz", "wb") as file:
                        np.save(file, array)
        return folder

    def check(self) -> str:
        """Compare all files; on a GPU with the goal, also the rate of a longer run."""
        allowed = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        try:
            ours, papers = self.ours(), self.papers()
        finally:
            torch.backends.cudnn.allow_tf32 = allowed
        scale = 0.5 * (INTENSITY[1] - INTENSITY[0])
        away, turned, shares = 0.0, 0, []
        for index in range(self.count):
            image, label = (load_gzip(papers / f"{n}_{index}.npy.gz") for n in ("image", "label"))
            expected = (image.astype(np.float64) + 1) * scale + INTENSITY[0]
            name = f"pair_{index:06d}"
            found = np.asanyarray(nib.load(ours / "imagesTr" / f"{name}_0000.nii.gz").dataobj)
            away = max(away, float(np.abs(found - expected).max()))
            classes = np.asanyarray(nib.load(ours / "labelsTr" / f"{name}.nii.gz").dataobj)
            turned += int((classes != label).sum())
            shares.append(label.mean())
        voxels = self.count * image.size
        told = f"intensities {away:.3f} steps apart at most, {turned} of {voxels:.1e} label voxels"
        assert 0 < np.mean(shares) < 1, f"labels are empty or full: {shares}"
        assert away <= 0.5 + ROUNDING, f"{told}: more than rounding to whole steps"
        assert turned <= 1e-6 * voxels, f"{told}: more than one in a million"
        if self.device == "cuda":
            told += self.rate()
        return told

    def rate(self) -> str:
        """Return the pairs per second of a run that is long enough for its start not to count."""
        workflow, _ = self.bundle(GPU_PAIRS)
        synchronize(self.device)
        start = time.perf_counter()
        workflow.run()
        rate = GPU_PAIRS / (time.perf_counter() - start)
        assert rate >= GPU_GOAL, f"{rate:.0f} pairs/s, fewer than {GPU_GOAL:.0f}"
        return f"; {rate:.0f} pairs/s (goal {GPU_GOAL:.0f})"


def smooth_generator(patch_size: tuple[int, int, int], filters: int) -> Generator:
    """Return a generator whose volumes compress like images, not like noise.

    As drawn, its convolutions make white noise. Here most of each is the mean of its neighbourhood.
    """
    torch.manual_seed(SEED)
    generator = Generator(patch_size, 1, LATENT_SIZE, filters, num_upsamples=4)
    with torch.no_grad():
        for module in generator.modules():
            if isinstance(module, nn.Conv3d):
                mean = module.weight.mean((2, 3, 4), keepdim=True)
                module.weight.copy_(5 * mean + 0.1 * module.weight)
    # statistics as of a trained network: without them rounding would grow from layer to layer
    plain = PaperGenerator(patch_size, 1, LATENT_SIZE, filters, num_upsamples=4)
    copy_weights(generator, plain)
    recalibrate_batch_norm(plain, [torch.randn(2, LATENT_SIZE)])
    copy_weights(plain, generator)
    return generator


def load_gzip(path: Path) -> np.ndarray:
    """Return the array of a ``.npy.gz`` file."""
    with gzip.open(path) as file:
        return np.load(file)


def pairs_to_disk(setting: Setting) -> Sides:
    """Build the row."""
    workers = 16 if setting.device == "cuda" else 2
    sizes = ((32, 32, 16), 32) if setting.small else ((128, 128, 64), 256)
    count = 3 if setting.small else 128 if setting.device == "cuda" else 8
    task = Task(count, *sizes, setting.device, workers)
    return Sides(
        task.papers,
        task.ours,
        task.check,
        count_flops=False,
        notes=f"{count} pairs in batches of {BATCH}, loading the weights included; ours with "
        f"{workers} writing threads.",
    )
