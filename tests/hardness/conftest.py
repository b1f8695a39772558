"""The commands of every bundle, each run once without interruption."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
)
from tests.conftest import tiny_dataset
from tests.hardness.processes import Command, Processes

WGAN, MCDPM, VID2VID = "wgan_sn_mp", "medgen3d_mcdpm", "medgen3d_vid2vid"
REFINER, UNET = "medgen3d_semantic_refiner", "unet_segmentation"
BUNDLES = (WGAN, MCDPM, VID2VID, REFINER, UNET)
# a line of the log for every two steps, three steps to an epoch: lines go across checkpoints
TRAINING: dict[str, dict[str, Any]] = {
    WGAN: {**SMALL_WGAN, "iterations_per_epoch": 3, "val_interval": 1},
    MCDPM: SMALL_MCDPM,
    VID2VID: SMALL_VID2VID,
    REFINER: SMALL_REFINER,
    UNET: {**SMALL_UNET, "iterations_per_epoch": 3},
}
SAMPLING: dict[str, dict[str, Any]] = {
    WGAN: {"num_samples": 5, "batch_size": 2, "seed": 5},
    MCDPM: {"num_samples": 4, "batch_size": 2, "seed": 5, "steps": 2},
    VID2VID: {"batch_size": 2},
    REFINER: {"refine_steps": 1, "grid_steps": 20, "slice_batch": 8},
    UNET: {"split": "training"},
}


@dataclass
class Whole:
    """A command that has run without interruption, and what it took."""

    command: Command
    folder: Path
    seconds: float
    changes: int


Reference = Callable[[str, str], Whole]


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    """Give the server that forks processes."""
    server = Processes(tmp_path_factory.mktemp("processes"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def reference(processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """Return a function that runs a bundle's ``train`` or ``inference`` once, uninterrupted."""
    # spaces and letters beyond ASCII, as in the folders of many people
    root = tmp_path_factory.mktemp("Größe 3 ü")
    cohort = tiny_dataset(root / "set", count=4, validation=1, size=(16, 12, 12))
    done: dict[tuple[str, str], Whole] = {}

    def command(bundle: str, kind: str, folder: Path) -> Command:
        if kind == "train":
            knobs = {**TRAINING[bundle], "log_interval": 2, "dataset_dir": str(cohort)}
            preset = ["compact"] if bundle == WGAN else []
            return Command.bundle(bundle, ["train", *preset], folder, knobs)
        knobs = {"ckpt_path": str(of(bundle, "train").folder / "model.pt"), **SAMPLING[bundle]}
        if bundle in (VID2VID, UNET):
            knobs["dataset_dir"] = str(cohort)
        if bundle == REFINER:
            knobs["dataset_dir"] = str(of(VID2VID, "inference").folder)
        return Command.bundle(bundle, ["inference"], folder, knobs)

    def of(bundle: str, kind: str) -> Whole:
        if (bundle, kind) not in done:
            asked = command(bundle, kind, root / f"{bundle} {kind}")
            seconds = processes.finish(asked)
            done[bundle, kind] = Whole(asked, asked.folder, seconds, processes.changes())
        return done[bundle, kind]

    return of
