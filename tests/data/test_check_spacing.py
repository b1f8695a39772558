"""Voxel sizes far apart are told, and beyond the limit refused; oblique grids are no fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medpair.data.check import check_dataset
from medpair.data.cohort import read_cohort


def rescale(folder: Path, case: int, axis: int, spacing: float) -> None:
    """Give a pair another voxel size along a RAS axis; its files are stored as they were."""
    for path in (f"imagesTr/case_{case:03d}_0000.nii.gz", f"labelsTr/case_{case:03d}.nii.gz"):
        old = nib.load(folder / path)
        scale = np.ones(3)
        stored = nib.orientations.io_orientation(old.affine)[:, 0].tolist().index(axis)
        scale[stored] = spacing / np.linalg.norm(old.affine[:3, stored])
        affine = old.affine @ np.diag([*scale, 1.0])
        nib.save(nib.Nifti1Image(np.asarray(old.dataobj), affine), folder / path)


@pytest.mark.fault(16)
@pytest.mark.parametrize(
    ("spacing", "level", "limit"), [(1.9, None, ""), (3.0, "warning", "2"), (60.0, "error", "50")]
)
def test_volumes_far_apart_are_reported_with_the_range(
    tiny_dataset: Callable[..., Path], tmp_path: Path, spacing: float, level: str, limit: str
) -> None:
    # coarse along every other axis too, so that no single volume is beyond the limit
    spacings = (8.0, 8.0, 1.0)
    folder = tiny_dataset(tmp_path / "set", 3, (9, 8, 7), 1, spacings, "PSR", tilt=10.0)
    rescale(folder, 1, 2, spacing)
    for quick in (True, False):
        faults = check_dataset(folder, quick=quick)
        assert [fault.level for fault in faults] == ([level] if level else [])
        for fault in faults:
            assert (fault.file, fault.key) == (str(folder / "dataset.json"), "spacing")
            assert fault.expected.endswith(f"by a factor of {limit} at most")
            assert fault.found == f"1 to {spacing:g} mm foot-head"


@pytest.mark.fault(16)
def test_a_volume_of_needles_is_refused(tiny_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 1, (9, 8, 7), 1, (0.1, 1.0, 4.9), validation=0)
    assert check_dataset(folder) == []
    rescale(folder, 0, 2, 5.1)
    (fault,) = check_dataset(folder, quick=True)
    assert fault.file == str(folder / "imagesTr/case_000_0000.nii.gz")
    assert (fault.level, fault.key, fault.found) == ("error", "spacing", "[0.1, 1, 5.1] mm")


@pytest.mark.fault(16)
def test_oblique_volumes_keep_their_spacing(
    tiny_dataset: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_dataset(tmp_path / "set", 2, (9, 8, 7), 1, (0.5, 0.6, 3.0), "LPI", tilt=30.0)
    assert check_dataset(folder) == []
    np.testing.assert_allclose(read_cohort(folder)[0].spacing, (0.5, 0.6, 3.0), rtol=1e-5)


@pytest.mark.fault(16)
@pytest.mark.parametrize("spacing", [0.0005, 2000.0])
def test_voxels_of_other_units_are_refused(
    tiny_dataset: Callable[..., Path], tmp_path: Path, spacing: float
) -> None:
    folder = tiny_dataset(tmp_path / "set", 1, (9, 8, 7), 1, [spacing] * 3, validation=0)
    (fault,) = check_dataset(folder, quick=True)
    assert (fault.level, fault.key) == ("error", "spacing")
    assert fault.expected == "voxel sizes from 0.001 to 1000 mm"
