"""Grids that differ by rounding are turned alike."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medpair.data.check import check_dataset
from medpair.data.cohort import read_cohort
from medpair.data.dataset import write_dataset_json
from medpair.data.orientation import axis_codes, ras_axes, to_ras


def turned(degrees: float, axis: str = "z") -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
    return affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PSR", "SRA"])
@pytest.mark.parametrize("degrees", [0.0, 20.0, -44.0, 46.0, 89.0])
def test_it_is_nibabels_choice_away_from_ties(codes: str, degrees: float) -> None:
    start = nib.orientations.axcodes2ornt("RAS")
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt(codes), start)
    affine = turned(degrees) @ nib.orientations.inv_ornt_aff(turn, (4, 5, 6))
    assert axis_codes(affine) == "".join(nib.aff2axcodes(affine))
    np.testing.assert_array_equal(ras_axes(affine), nib.orientations.io_orientation(affine))
    array = np.arange(120).reshape(4, 5, 6)
    image = nib.as_closest_canonical(nib.Nifti1Image(array.astype(np.int16), affine))
    found, canonical = to_ras(array, affine)
    np.testing.assert_array_equal(found, np.asarray(image.dataobj))
    np.testing.assert_allclose(canonical, image.affine)


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("degrees", [45.0, -45.0, 135.0])
def test_rounding_does_not_turn_a_label_away_from_its_image(
    axis: str, degrees: float, tmp_path: Path
) -> None:
    """The image and the label of a cube, their headers a rounding apart at 45 degrees."""
    drawn = np.random.default_rng(0).integers(0, 2, (4, 4, 4)).astype(np.uint8)
    nibabels, ours = set(), []
    for step in (-1e-7, 1e-7):
        affine = turned(degrees, axis)
        affine[:3, :3] += step * np.array([[1, -1, 1], [-1, 1, -1], [1, -1, 1]])
        nibabels.add("".join(nib.aff2axcodes(affine)))
        ours.append(axis_codes(affine))
        role = "labels" if step < 0 else "images"
        (tmp_path / role).mkdir()
        image = nib.Nifti1Image(drawn * (1 if step < 0 else 90), affine)
        image.set_sform(affine, 1)
        nib.save(image, tmp_path / role / "a.nii.gz")
    assert ours[0] == ours[1]
    paths = {"image": "images/a.nii.gz", "label": "labels/a.nii.gz"}
    write_dataset_json(tmp_path, "tie", {"background": 0, "a": 1}, {"training": [paths]})
    assert [fault for fault in check_dataset(tmp_path) if fault.level == "error"] == []
    (volume,) = read_cohort(tmp_path)[1]
    np.testing.assert_array_equal(volume.image > 0, volume.label == 1)
