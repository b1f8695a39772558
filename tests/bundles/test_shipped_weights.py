"""The weights that come with the bundles: small enough, and of what their cards say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

from medpair.data.card import TRAINING, card_path
from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import file_sha256, load_torch, read_json, read_volume
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
