"""Bundles run in this process, as ``python -m monai.bundle run`` runs them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow

from tests.conftest import tiny_dataset

BUNDLES = Path(__file__).parents[2] / "bundles"

# WGAN and segmenter small enough for a second of training
SMALL_WGAN = {
    "patch_size": [32, 16, 16],
    "filters": 16,
    "critic_filters": 16,
    "latent_size": 8,
    "batch_size": 2,
    "iterations_per_epoch": 3,
    "max_epochs": 2,
    "random_patches": 2,
    "log_interval": 1,
    "seed": 3,
}
SMALL_UNET = {
    "largest_patch": [16, 16, 16],
    "channels": [4, 8, 16, 16],
    "hidden_size": 24,
    "feature_size": 12,
    "batch_size": 2,
    "max_epochs": 2,
    "iterations_per_epoch": 2,
    "val_interval": 1,
    "log_interval": 1,
}

SMALL_MCDPM = {
    "window": 4,
    "overlap": 2,
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "timesteps": 50,
    "batch_size": 2,
    "iterations_per_epoch": 3,
    "max_epochs": 2,
    "val_interval": 1,
    "log_interval": 1,
    "seed": 3,
}

SMALL_VID2VID = {
    "sequence_lengths": [2, 4],
    "grow_every": 1,
    "channels": [8, 16],
    "hidden": 8,
    "critic_channels": 8,
    "critic_layers": 1,
    "batch_size": 2,
    "iterations_per_epoch": 3,
    "max_epochs": 2,
    "val_interval": 1,
    "log_interval": 1,
    "seed": 3,
}
SMALL_REFINER = {
    "channels": [8, 16],
    "num_res_blocks": 1,
    "attention_levels": [False, True],
    "hidden": 8,
    "batch_size": 2,
    "iterations_per_epoch": 3,
    "max_epochs": 2,
    "val_interval": 1,
    "log_interval": 1,
    "seed": 3,
}


def workflow(bundle: str, configs: list[str], kind: str = "train", **overrides: Any) -> Any:
    """Return an initialized workflow of a bundle."""
    folder = BUNDLES / bundle / "configs"
    result = ConfigWorkflow(
        config_file=[str(folder / f"{name}.json") for name in configs],
        meta_file=str(folder / "metadata.json"),
        logging_file=False,
        workflow_type=kind,
        **{"device": torch.device("cpu"), **overrides},
    )
    result.initialize()
    return result


def run(bundle: str, configs: list[str], kind: str = "train", **overrides: Any) -> Any:
    """Run a bundle to its end."""
    result = workflow(bundle, configs, kind, **overrides)
    result.run()
    result.finalize()
    return result


def volumes(folder: Path) -> dict[str, np.ndarray]:
    """Return the voxels of all volumes in a folder, by path."""
    return {
        path.relative_to(folder).as_posix(): np.asanyarray(nib.load(path).dataobj)
        for path in sorted(folder.rglob("*.nii.gz"))
    }


def assert_same_run(one: Path, two: Path) -> None:
    """Both folders hold bit-identical weights and the same log, times aside."""
    first, second = (torch.load(f / "model.pt", weights_only=True) for f in (one, two))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    logs = [
        [
            {k: v for k, v in json.loads(line).items() if k != "seconds_per_iteration"}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (one, two)
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six training and two validation cases, two classes, stored in another orientation."""
    return str(
        tiny_dataset(
            tmp_path_factory.mktemp("data") / "set",
            count=6,
            validation=2,
            orientation="PSR",
            roi=True,
        )
    )


@pytest.fixture(scope="session")
def trained_wgan(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that trains a variant once and gives the folder of its weights."""
    done: dict[str, Path] = {}

    def train(variant: str = "compact") -> Path:
        if variant not in done:
            folder = tmp_path_factory.mktemp("wgan") / variant
            small = {**SMALL_WGAN, **({"filters": 32} if "_c_" in variant else {})}
            if variant != "compact":  # every patch once
                small["iterations_per_epoch"] = None
            run(
                "wgan_sn_mp",
                ["train", variant],
                dataset_dir=dataset,
                output_dir=str(folder),
                **small,
            )
            done[variant] = folder
        return done[variant]

    return train
