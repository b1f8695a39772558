"""The weights that come with the bundles: small enough, and of what their cards say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from medpair.data.card import TRAINING, Sampling, card_path
from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import file_sha256, load_torch, read_json, read_volume
from medpair.inferers.refinement import Refinement
from tests.bundles.conftest import BUNDLES, run

WEIGHTS = sorted(BUNDLES.glob("*/models/*.pt"))
MIB = 2**20


def test_all_weights_fit_into_a_repository() -> None:
    sizes = {str(path.relative_to(BUNDLES)): path.stat().st_size for path in WEIGHTS}
    assert max(sizes.values()) <= 8 * MIB, sizes
    assert sum(sizes.values()) <= 24 * MIB, sizes


@pytest.mark.parametrize("path", WEIGHTS, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_weights_are_in_half_precision_with_a_card_and_true_records(path: Path) -> None:
    state = load_torch(path)
    floats = [t for t in state.values() if t.is_floating_point() and t.dtype != torch.float64]
    assert floats
    assert {tensor.dtype for tensor in floats} == {torch.float16}
    assert card_path(path).exists()
    record_path = path.with_suffix(TRAINING)
    if record_path.exists():
        record = read_json(record_path)
        assert record["sha256"] == file_sha256(path)
        assert record["bytes"] == path.stat().st_size
        assert record["steps"] > 0
        assert record["metrics"]
        sums = [value for case in record["data"].values() for value in case.values()]
        assert sums
        assert all(re.fullmatch("[0-9a-f]{64}", value) for value in sums)


def test_brains_are_sampled_as_their_figures_were() -> None:
    cards = {
        name: read_json(BUNDLES / name / "models" / "model.json")
        for name in ("medgen3d_mcdpm", "medgen3d_semantic_refiner")
    }
    told = Sampling.of(cards["medgen3d_mcdpm"])
    assert (told.evidence, told.size_offsets) == (0.85, {"csf": 0.9})
    refinement = Refinement.of(cards["medgen3d_semantic_refiner"])
    assert refinement == Refinement(3, 30, "alternate")


def test_vessels_are_brighter_than_around_them(tmp_path: Path) -> None:
    """What the simulated angiograms taught: few voxels, brighter than what is around them."""
    run(
        "wgan_sn_mp",
        ["inference"],
        "infer",
        ckpt_path=str(BUNDLES / "wgan_sn_mp" / "models" / "vessels.pt"),
        output_dir=str(tmp_path),
        num_samples=8,
    )
    assert errors_of(check_dataset(tmp_path)) == []
    shares, brighter = [], []
    for case in load_dataset(tmp_path).split("training"):
        image, label = read_volume(case.image).array, read_volume(case.label).array > 0
        assert image.shape == (64, 64, 48)
        shell = ndimage.binary_dilation(label, iterations=3) & ~ndimage.binary_dilation(label)
        shares.append(label.mean())
        brighter.append(np.median(image[label]) - np.median(image[shell]))
    # of the simulated volumes 0.65 % are arteries
    assert 0.003 < np.mean(shares) < 0.015
    assert min(brighter) > 0


def test_a_brain_has_the_sizes_of_one_and_a_segmenter_of_real_brains_finds_it(
    tmp_path: Path,
) -> None:
    """The chain as it ships, at its default sampling; not refined, which would take a minute."""
    labels, images, scores = tmp_path / "labels", tmp_path / "images", tmp_path / "scores"
    for bundle, output, knobs in (
        ("medgen3d_mcdpm", labels, {"num_samples": 1}),
        ("medgen3d_vid2vid", images, {"dataset_dir": str(labels), "batch_size": 1}),
    ):
        weights = str(BUNDLES / bundle / "models" / "model.pt")
        run(bundle, ["inference"], "infer", ckpt_path=weights, output_dir=str(output), **knobs)
    folder = load_dataset(images)
    case = folder.split("training")[0]
    assert case.image is not None
    assert case.label is not None
    label = read_volume(case.label)
    assert np.allclose(label.spacing, 2)
    millilitres = np.bincount(label.array.astype(int).ravel(), minlength=5)[1:] * 0.008
    # of the 26 real ones: 60 to 91, 407 to 740, 82 to 250, 489 to 857
    assert ((millilitres > (40, 300, 50, 350)) & (millilitres < (110, 900, 350, 1000))).all()
    run(
        "unet_segmentation",
        ["inference", "evaluate"],
        "infer",
        ckpt_path=str(BUNDLES / "unet_segmentation" / "models" / "brain.pt"),
        dataset_dir=str(images),
        split="training",
        output_dir=str(scores),
    )
    dice = read_json(scores / "scores.json")["summary"]["volume"]["mean"]["dsc"]["mean"]
    assert dice > 0.75  # of held-out real brains 0.87
