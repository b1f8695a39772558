"""What one cell of the growth tables is, and how it is measured in the process that it is given."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from harness import resident
from ignite.engine import Events
from torch import nn

from medpair.data.dataset import entry, write_dataset_json
from medpair.data.files import Volume, write_volume

BUNDLES = Path(__file__).parents[2] / "bundles"
UNET = "unet_segmentation"
# Networks and steps of a second, to see that all works
SMALL: dict[str, dict[str, Any]] = {
    "wgan_sn_mp": {"filters": 16, "critic_filters": 16, "latent_size": 8},
    "medgen3d_mcdpm": {"channels": [8, 16], "attention_levels": [False, True], "window": 4},
    "medgen3d_vid2vid": {"channels": [8, 16], "hidden": 8, "critic_channels": 8},
    "medgen3d_semantic_refiner": {"channels": [8, 16], "attention_levels": [False, True]},
    UNET: {"channels": [4, 8, 16, 16]},
}
SMALL["medgen3d_mcdpm"]["overlap"] = 2


@dataclass(frozen=True)
class Cell:
    """One number of a table, with its peak memory.

    Attributes:
        subject: a bundle.
        phase: ``train`` (a step), ``make`` (a volume) or ``work``.
        preset: ``compact`` or ``train``.
        size: edge of the volumes, voxels.
        classes: foreground classes.
        batch: 0 is the preset's own.
        samples: how many are made.
        encoding: of the label diffusion; its default where empty.
        device, threads: where.
        small: networks that show nothing but that all works.
    """

    subject: str
    phase: str
    preset: str = "compact"
    size: int = 64
    classes: int = 2
    batch: int = 0
    samples: int = 1
    encoding: str = ""
    device: str = "cpu"
    threads: int = 1
    small: bool = False

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Enough(BaseException):
    """So much was done that the rest can be told from it; an Exception would be wrapped."""


def clock(device: str) -> float:
    """Return seconds: of the processor on a CPU, so that other work on it does not count."""
    if device == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def cohort(folder: Path, size: int, classes: int, cases: int = 2) -> Path:
    """Write training cases and one test case of cubes with a ball for each class, once."""
    if (folder / "dataset.json").exists():
        return folder
    splits: dict[str, list[dict[str, str]]] = {"training": [], "test": []}
    per_axis = math.ceil(classes ** (1 / 3))
    grid = np.indices((size,) * 3, dtype=np.float32)
    step = size / per_axis
    cell = np.minimum(grid // step, per_axis - 1).astype(int)
    number = 1 + (cell[0] * per_axis + cell[1]) * per_axis + cell[2]
    away = np.sqrt(sum(((grid[k] + 0.5) / step - cell[k] - 0.5) ** 2 for k in range(3)))
    for index in range(cases + 1):
        split = "training" if index < cases else "test"
        paths = entry(f"case_{index:03d}", split)
        ball = (away < 0.35 + 0.03 * index) & (number <= classes)
        label = np.where(ball, number, 0).astype(np.uint8)
        rng = np.random.default_rng(index)
        image = 10 * label + rng.normal(200, 20, label.shape)
        for role, array in (("image", np.rint(image).astype(np.int16)), ("label", label)):
            write_volume(folder / paths[role], Volume(array, np.eye(4)))
        splits[split].append(paths)
    names = {"background": 0} | {f"class_{k}": k for k in range(1, classes + 1)}
    write_dataset_json(folder, folder.name, names, splits)
    return folder


def workflow(cell: Cell, kind: str, knobs: dict[str, Any]) -> Any:
    """Return a bundle's workflow, initialized."""
    from monai.bundle import ConfigWorkflow

    configs = BUNDLES / cell.subject / "configs"
    names = [kind]
    if kind == "train" and cell.preset != "train" and cell.subject != UNET:
        names.append(cell.preset)
    result = ConfigWorkflow(
        config_file=[str(configs / f"{name}.json") for name in names],
        meta_file=str(configs / "metadata.json"),
        logging_file=False,
        workflow_type="train" if kind == "train" else "infer",
        device=torch.device(cell.device),
        **knobs,
    )
    result.initialize()
    return result


def train(cell: Cell, data: Path, weights: Path, steps: int) -> dict[str, Any]:
    """Take some training steps and leave the weights; the first step does not count."""
    knobs: dict[str, Any] = {
        "dataset_dir": str(data),
        "output_dir": str(weights),
        "resume": False,
        "max_epochs": 1,
        "val_interval": 1,
        "log_interval": 1,
        "iterations_per_epoch": steps,
        **({"batch_size": cell.batch} if cell.batch else {}),
        **({"encoding": cell.encoding} if cell.encoding else {}),
        **(SMALL[cell.subject] if cell.small else {}),
    }
    if cell.subject == "wgan_sn_mp":  # the whole volume, whatever the preset's largest patch
        knobs["patch_size"] = [cell.size] * 3
    if cell.subject == "medgen3d_vid2vid":  # sequences as long as they become
        knobs["sequence_lengths"] = [16, 16] if cell.preset == "train" else [8, 8]
        if cell.small:
            knobs["sequence_lengths"] = [2, 2]
    run = workflow(cell, "train", knobs)
    trainer = run.parser.get_parsed_content("train#trainer")
    ends: list[float] = []

    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: ends.append(clock(cell.device)))
    run.run()
    found = {"peak": peak(cell.device), "batch": run.parser.get_parsed_content("batch_size")}
    run.finalize()
    return {**found, "seconds": median(np.diff(ends).tolist()) if steps > 1 else None}


class Count:
    """Counts a network's evaluations, and stops after some seconds where a part tells the whole.

    Args:
        network: whose evaluations.
        every: the run may be stopped after so many; 0: never.
        limit: seconds.
        device: whose clock.
    """

    def __init__(self, network: nn.Module, every: int, limit: float, device: str) -> None:
        self.calls, self.rows, self.every, self.limit = 0, 0, every, limit
        self.device = device
        self.began = self.last = clock(device)
        network.register_forward_hook(self)

    def __call__(self, network: nn.Module, inputs: Any, output: Any) -> None:
        self.calls += 1
        self.rows += len(inputs[0])
        if self.every and self.calls % self.every == 0:
            self.last = clock(self.device)
            if self.last - self.began > self.limit:
                raise Enough


def make(cell: Cell, data: Path, weights: Path, output: Path, limit: float) -> dict[str, Any]:
    """Generate or predict; a part, where the whole would take longer than ``limit`` seconds."""
    knobs: dict[str, Any] = {
        "ckpt_path": str(weights / "model.pt"),
        "output_dir": str(output),
        **({"batch_size": cell.batch} if cell.batch else {}),
    }
    if cell.subject == UNET:
        knobs |= {"dataset_dir": str(data), "split": "test"}
    else:
        knobs["num_samples"] = cell.samples
    if cell.subject in ("medgen3d_vid2vid", "medgen3d_semantic_refiner"):
        knobs["dataset_dir"] = str(data)
    if cell.small and cell.subject == "medgen3d_mcdpm":
        knobs["steps"] = 2
    if cell.subject == "medgen3d_semantic_refiner":  # the paper's, whatever a preset says
        steps = {"refine_steps": 1, "grid_steps": 10} if cell.small else {"refine_steps": 10}
        knobs |= {"combine": "mean", **steps}
    run = workflow(cell, "inference", knobs)
    every, rows = part_rule(cell, run)
    rows *= cell.samples
    network = run.parser.get_parsed_content("network")
    evaluator = run.parser.get_parsed_content("evaluator")
    count = Count(network, every, limit, cell.device)
    evaluator.add_event_handler(Events.STARTED, lambda: setattr(count, "began", clock(cell.device)))
    begun = clock(cell.device)
    try:
        run.run()
        share, seconds = 1.0, clock(cell.device) - begun
        run.finalize()
    except Enough:
        share, seconds = count.rows / rows, count.last - count.began
    return {
        "peak": peak(cell.device),
        "batch": run.parser.get_parsed_content("batch_size"),
        "seconds": seconds / share / cell.samples,
        "share": share,
        "counted": count.rows / rows if rows else None,
    }


def part_rule(cell: Cell, run: Any) -> tuple[int, int]:
    """Return after how many evaluations a part ends, and what a volume has of their rows.

    Both are 0 where a volume is always made whole.
    """
    inferer = run.parser.get_parsed_content("inferer")
    if cell.subject == "medgen3d_mcdpm":  # a row is a window
        new, steps = inferer.window - inferer.overlap, inferer.sampler.steps
        # always equally many, also where a volume has fewer windows to be computed
        once = inferer.windows_at_once(torch.device(cell.device))
        first, height = inferer._begin(0, 0).low, inferer.frame[inferer.axis]
        sides = math.ceil(first / new), math.ceil((height - first - inferer.window) / new)
        return 2 * steps, once * (1 + max(sides)) * steps
    if cell.subject == "medgen3d_vid2vid":
        return 8, cell.size
    if cell.subject == "medgen3d_semantic_refiner":
        return inferer.refine_steps, len(inferer.views) * cell.size * inferer.refine_steps
    return 0, 0


def peak(device: str) -> int | None:
    """Return the most bytes in use: tensors' on a GPU, else the whole process's."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resident("VmHWM")
