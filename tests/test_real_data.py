"""Real volumes: the folder that MEDPAIR_DATA names (hippocampus_mr, brain_t1, thorax_ct)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medpair.data.check import check_dataset
from medpair.data.cohort import read_card, read_cohort
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import read_json, read_volume
from tests.bundles.conftest import (
    BUNDLES,
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    run,
)

pytestmark = pytest.mark.skipif(
    "MEDPAIR_DATA" not in os.environ, reason="MEDPAIR_DATA names no folder of real volumes"
)


@pytest.fixture(scope="module")
def data() -> Path:
    return Path(os.environ["MEDPAIR_DATA"])


def test_real_folders_are_free_of_errors(data: Path) -> None:
    assert errors_of(check_dataset(data / "hippocampus_mr")) == []
    for name, group in (("brain_t1", "four_tissues"), ("thorax_ct", "seven_organs")):
        assert errors_of(check_dataset(data / name, group, quick=True)) == []


def test_hippocampus_cohort_is_read_as_it_is(data: Path) -> None:
    cohort, volumes = read_cohort(data / "hippocampus_mr")
    assert cohort.labels == ("background", "anterior", "posterior")
    assert len(volumes) == 168
    sizes = np.asarray(cohort.sizes)
    assert sizes.min(axis=0).tolist() >= [31, 40, 24]
    assert sizes.max(axis=0).tolist() <= [43, 59, 47]


def test_the_job_on_real_hippocampi(data: Path, tmp_path: Path) -> None:
    folder = str(data / "hippocampus_mr")
    run(
        "wgan_sn_mp",
        ["train", "compact"],
        dataset_dir=folder,
        output_dir=str(tmp_path / "wgan"),
        max_epochs=1,
        iterations_per_epoch=2,
        filters=32,
        critic_filters=32,
        batch_size=2,
    )
    run(
        "wgan_sn_mp",
        ["inference"],
        "infer",
        ckpt_path=str(tmp_path / "wgan" / "model.pt"),
        output_dir=str(tmp_path / "synthetic"),
        num_samples=3,
    )
    assert errors_of(check_dataset(tmp_path / "synthetic")) == []
    sizes = {tuple(s) for s in read_card(tmp_path / "wgan" / "model.pt")["cohort"]["sizes"]}
    for case in load_dataset(tmp_path / "synthetic").split("training"):
        volume = read_volume(case.image)
        assert volume.array.shape in sizes
        np.testing.assert_allclose(volume.spacing, 1.0)
    small = {**SMALL_UNET, "largest_patch": [48, 64, 48], "max_epochs": 1, "val_interval": 9}
    run(
        "unet_segmentation",
        ["train"],
        dataset_dir=str(tmp_path / "synthetic"),
        output_dir=str(tmp_path / "unet"),
        **small,
    )
    run(
        "unet_segmentation",
        ["inference", "evaluate"],
        "infer",
        ckpt_path=str(tmp_path / "unet" / "model.pt"),
        dataset_dir=folder,
        output_dir=str(tmp_path / "scores"),
    )
    summary = read_json(tmp_path / "scores" / "scores.json")["summary"]["volume"]
    assert summary["anterior"]["dsc"]["n"] == 40


def test_a_brain_stored_as_psr_is_predicted_as_psr(data: Path, tmp_path: Path) -> None:
    folder = str(data / "brain_t1")
    common = {"dataset_dir": folder, "label_group": "four_tissues"}
    run(
        "unet_segmentation",
        ["train"],
        output_dir=str(tmp_path / "unet"),
        **{**SMALL_UNET, "cache_rate": 0.0, "max_epochs": 1, "val_interval": 9},
        **common,
        spacing=[8.0, 8.0, 8.0],
    )
    run(
        "unet_segmentation",
        ["inference"],
        "infer",
        ckpt_path=str(tmp_path / "unet" / "model.pt"),
        output_dir=str(tmp_path / "labels"),
        split="validation",
        **common,
    )
    for case in load_dataset(folder).split("validation"):
        image = nib.load(case.image)
        label = nib.load(tmp_path / "labels" / "labels" / f"{case.name}.nii.gz")
        assert nib.aff2axcodes(label.affine) == ("P", "S", "R")
        assert label.shape == image.shape
        np.testing.assert_allclose(label.affine, image.affine, atol=1e-4)


def test_a_thorax_keeps_its_ct_numbers_and_organs(data: Path) -> None:
    """Hounsfield units are kept, and the seven organs are there at a coarse grid."""
    cohort, volumes = read_cohort(data / "thorax_ct", "seven_organs", spacing=(6.0, 6.0, 6.0))
    assert cohort.num_labels == 7
    assert set(np.unique(volumes[0].label)) == set(range(8))
    low, high = cohort.intensity
    assert low <= -1000
    assert high > 100


@pytest.mark.parametrize(
    ("name", "group", "spacing", "axis"),
    [
        ("thorax_ct", "seven_organs", [12.0, 12.0, 12.0], "axial"),
        ("brain_t1", "four_tissues", [10.0, 10.0, 10.0], "coronal"),
    ],
)
def test_real_cohorts_go_through_every_stage(
    data: Path, tmp_path: Path, name: str, group: str, spacing: list[float], axis: str
) -> None:
    """Three stages, each trained for a moment: whole folders on the right scale, no quality."""
    common = {"dataset_dir": str(data / name), "label_group": group, "spacing": spacing}
    small: dict[str, dict[str, Any]] = {
        "medgen3d_mcdpm": {**SMALL_MCDPM, "slicing_axis": axis},
        "medgen3d_vid2vid": {**SMALL_VID2VID, "slicing_axis": axis},
        "medgen3d_semantic_refiner": SMALL_REFINER,
    }
    steps: dict[str, dict[str, Any]] = {
        "medgen3d_mcdpm": {"num_samples": 2, "steps": 2},
        "medgen3d_vid2vid": {},
        "medgen3d_semantic_refiner": {"refine_steps": 2, "grid_steps": 20},
    }
    source = ""
    for bundle, knobs in small.items():
        model = tmp_path / "models" / bundle
        run(bundle, ["train"], output_dir=str(model), **{**knobs, "max_epochs": 1}, **common)
        target = str(tmp_path / bundle)
        steps[bundle] |= {"dataset_dir": source} if source else {}
        weights = str(model / "model.pt")
        run(bundle, ["inference"], "infer", ckpt_path=weights, output_dir=target, **steps[bundle])
        assert errors_of(check_dataset(target)) == []
        source = target
    card = read_card(tmp_path / "models" / "medgen3d_vid2vid" / "model.pt")
    low, high = card["cohort"]["intensity"]
    # padding of -2048 is not part of the scale
    assert low >= -1024
    for case in load_dataset(source).split("training"):
        assert case.image is not None
        image, label = read_volume(case.image), read_volume(case.label)
        np.testing.assert_allclose(image.spacing, spacing, rtol=1e-3)
        assert image.array.shape == label.array.shape
        assert low - 1 <= image.array.min()
        assert image.array.max() <= high + 1
        assert set(np.unique(label.array)) <= set(range(len(card["cohort"]["labels"])))


def test_the_shipped_generator_draws_hippocampi(tmp_path: Path) -> None:
    run(
        "wgan_sn_mp",
        ["inference"],
        "infer",
        bundle_root=str(BUNDLES / "wgan_sn_mp"),
        output_dir=str(tmp_path),
        num_samples=4,
    )
    for case in load_dataset(tmp_path).split("training"):
        label = read_volume(case.label).array
        # real ones: 800 to 2,900 voxels each
        assert all(600 < (label == value).sum() < 3600 for value in (1, 2))
