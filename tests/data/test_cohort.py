"""What is read of a cohort: scale, grid, classes."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.conftest import tiny_dataset

from medpair.data.cohort import (
    Cohort,
    from_unit,
    read_card,
    read_cohort,
    resample,
    robust_range,
    to_unit,
)
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError


def test_orientation_on_disk_does_not_matter(tmp_path: Path) -> None:
    first, volumes = read_cohort(tiny_dataset(tmp_path / "a", orientation="RAS"))
    second, others = read_cohort(tiny_dataset(tmp_path / "b", orientation="PSL"))
    assert first.sizes == second.sizes == ((16, 14, 12),) * 4
    for one, two in zip(volumes, others, strict=True):
        np.testing.assert_allclose(one.image, two.image, atol=1e-6)
        np.testing.assert_array_equal(one.label, two.label)


def test_intensity_scale_survives_the_round_trip(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set")
    cohort, volumes = read_cohort(folder)
    ranges = [
        robust_range(nib.load(case.image).get_fdata())
        for case in load_dataset(folder).split("training")
    ]
    assert cohort.intensity == pytest.approx(tuple(np.median(ranges, axis=0)))
    assert all(np.abs(volume.image).max() <= 1 for volume in volumes)


def test_unit_range_is_inverted() -> None:
    image = np.linspace(10, 50, 100)
    np.testing.assert_allclose(from_unit(to_unit(image, 10, 50), 10, 50), image, atol=1e-4)
    assert to_unit(np.array([0.0, 99.0]), 10, 50).tolist() == [-1, 1]


def test_a_constant_image_maps_to_the_dark_end() -> None:
    image = np.full((4, 4, 4), 3.0)
    assert robust_range(image) == (3.0, 4.0)
    assert (to_unit(image, *robust_range(image)) == -1).all()


def test_other_spacings_are_resampled_to_the_cohorts(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", spacing=(1.0, 1.0, 2.0))
    cohort, volumes = read_cohort(folder, spacing=(1.0, 1.0, 1.0))
    assert cohort.spacing == (1.0, 1.0, 1.0)
    assert volumes[0].image.shape == volumes[0].label.shape == (16, 14, 24)
    native = read_cohort(folder)[1][0]
    assert volumes[0].label.sum() == pytest.approx(2 * native.label.sum(), rel=0.01)


def test_nearly_equal_spacing_is_left_alone() -> None:
    array = np.random.default_rng(0).normal(size=(5, 5, 5))
    assert resample(array, (1, 1, 1), (1.01, 1, 1), order=1) is array


def test_json_round_trip(tmp_path: Path) -> None:
    cohort, _ = read_cohort(tiny_dataset(tmp_path / "set"))
    assert Cohort.from_json(json.loads(json.dumps(cohort.to_json()))) == cohort


def test_missing_card_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.json: expected a JSON file"):
        read_card(tmp_path / "model.pt")


def test_nan_is_refused_with_the_file(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set")
    path = folder / "imagesTr" / "case_002_0000.nii.gz"
    image = nib.load(path)
    data = image.get_fdata().astype(np.float32)
    data[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), path)
    with pytest.raises(DataError, match="case_002_0000"):
        read_cohort(folder)
