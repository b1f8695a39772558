"""What feeds a training."""

from __future__ import annotations

import gzip
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Row, Setting, Sides, synchronize
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from wgan_sides import Ours, Task

from medpair.data.cohort import LabelledVolume
from medpair.data.patches import PatchDataset
from medpair.data.sampling import EpochSampler
from medpair.data.workers import TrainersWorkers, loading_workers

SEED, BATCH = 0, 4
# A loader may keep a step waiting for this share of its time
WAITING = 0.05
# Rounding of an image that is stretched to -1..1
TOLERANCE = 1e-6


def volumes(size: tuple[int, int, int], count: int) -> list[LabelledVolume]:
    """Return volumes that compress like images: smooth, with a little noise."""
    made = []
    for number in range(count):
        rng = np.random.default_rng(number)
        smooth = gaussian_filter(rng.standard_normal(size, dtype=np.float32), 2)
        image = smooth / np.abs(smooth).max()
        label = (image > 0.5).astype(np.uint8)
        image += 0.01 * rng.standard_normal(size, dtype=np.float32)
        made.append(LabelledVolume(np.clip(image, -1, 1).astype(np.float32), label, str(number)))
    return made


class PatchFiles(Dataset[dict[str, Tensor]]):
    """The paper's way: a gzip'd array of image and of label for each patch, read when asked for."""

    def __init__(self, folder: Path, patches: PatchDataset) -> None:
        self.folder = folder
        self.count = len(patches)
        for index, (number, start) in enumerate(patches.data):
            box = tuple(slice(a, a + n) for a, n in zip(start, patches.patch_size, strict=True))
            volume = patches.volumes[number]
            for name, array in (("image", volume.image), ("label", volume.label)):
                with gzip.open(folder / f"{name}_{index}.npy.gz", "wb") as file:
                    np.save(file, array[box])

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        image, label = (self.read(name, key[1]) for name in ("image", "label"))
        image = 2 * (image - image.min()) / (image.max() - image.min()) - 1
        return {"image": torch.from_numpy(image)[None], "label": torch.from_numpy(label)[None]}

    def read(self, name: str, index: int) -> np.ndarray:
        with gzip.open(self.folder / f"{name}_{index}.npy.gz") as file:
            return np.load(file)


def loader(dataset: Dataset[Any], length: int, workers: int = 0, **more: Any) -> DataLoader[Any]:
    """Return a data loader as the bundle makes it."""
    return DataLoader(
        dataset,
        sampler=EpochSampler(length, SEED, **more),
        batch_size=BATCH,
        num_workers=workers,
        worker_init_fn=TrainersWorkers(),
        pin_memory=torch.cuda.is_available(),
    )


def patches(setting: Setting) -> Sides:
    """Build an epoch of training input from both kinds of storage, without workers."""
    folder = tempfile.TemporaryDirectory()
    size, patch = (
        ((48, 32, 16), (32, 16, 16)) if setting.small else ((192, 160, 80), (128, 128, 64))
    )
    cached = PatchDataset(volumes(size, 2), patch, random_patches=0, normalize="patch")
    stored = PatchFiles(Path(folder.name), cached)
    count = len(cached)

    def epoch(dataset: Dataset[Any]) -> list[dict[str, Tensor]]:
        return list(loader(dataset, count))

    def check() -> str:
        away = 0.0
        for one, two in zip(epoch(cached), epoch(stored), strict=True):
            assert torch.equal(one["label"], two["label"]), "labels differ"
            assert one["image"].isfinite().all(), "not finite"
            away = max(away, (one["image"] - two["image"]).abs().max().item())
        told = f"largest difference {away:.1e}"
        assert away <= TOLERANCE, f"{told}, more than {TOLERANCE:g}"
        return f"{told} (limit {TOLERANCE:g})"

    def work(dataset: Dataset[Any]) -> Callable[[], int]:
        # one batch after the other, as a training takes them; the folder lives as long
        return lambda: (folder, sum(len(b["image"]) for b in loader(dataset, count)))[1]

    return Sides(
        work(stored), work(cached), check, count_flops=False, notes=f"{count} patches, one process."
    )


def fed_steps(setting: Setting) -> Sides:
    """Build steps on a batch that is there, and steps that take each batch from the loader."""
    task = Task(512, BATCH, device="cuda", bfloat16=True)
    if setting.device == "cpu":
        task = Task(64, BATCH)
    if setting.small:
        task = Task(16, BATCH, (32, 32, 16), setting.device)
    steps = 20 if setting.device == "cuda" else 2
    side = Ours(task)
    size = tuple(n * 3 // 2 for n in task.patch_size)
    dataset = PatchDataset(volumes(size, 4), task.patch_size, normalize="patch")
    workers = loading_workers(setting.device)  # as a training has by default
    # one epoch without end: the start of the workers is not what is measured
    batches = iter(loader(dataset, len(dataset), workers, iterations=10**4, batch_size=BATCH))

    def resident() -> None:
        for _ in range(steps):
            side.step()

    def fed() -> float:
        """Return the share of the time that the steps waited for data."""
        waited, start = 0.0, time.perf_counter()
        for batch in waiting(batches, steps):
            waited += batch.pop("waited")
            side.step(batch)
        synchronize(setting.device)
        return waited / (time.perf_counter() - start)

    def check() -> str:
        fed()  # the workers start
        share = fed()
        told = f"waits for {share:.1%} of the time (limit {WAITING:.0%})"
        assert share <= WAITING or setting.small, told
        return told

    return Sides(
        resident, fed, check, "bfloat16" if task.bfloat16 else "float32", count_flops=False,
        notes=f"{workers} loading processes.",
    )  # fmt: skip


def waiting(batches: Iterator[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    """Yield batches, each with the seconds that it took to come."""
    for _ in range(count):
        start = time.perf_counter()
        batch = next(batches)
        yield {**batch, "waited": time.perf_counter() - start}


ROWS: list[Row] = [
    Row(
        "training input, patches of 128x128x64",
        "a gzip'd array file per patch",
        {"cpu": 5.0},
        patches,
    ),
    Row(
        "training steps fed by the loader, 64 filters, batch 4, 128x128x64",
        "the same steps on a batch that is there",
        {"cpu": 0.95},
        fed_steps,
    ),
    Row(
        "training steps in bf16 fed by the loader, 512 filters, batch 4, 128x128x64",
        "the same steps on a batch that is there",
        {"cuda": 0.95},
        fed_steps,
    ),
]
