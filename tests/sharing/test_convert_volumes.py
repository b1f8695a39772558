"""Volumes of other tools, as they lie in the world."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from medpair.data.labels import LabelMap
from medpair.sharing.convert_volumes import from_lps, on_grid, read_image, read_label

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.mark.parametrize("axis", ["x", "y", "z"])
@pytest.mark.parametrize("degrees", [45.0, -45.0, 135.0])
def test_rounding_does_not_turn_a_label_away_from_its_image(
    axis: str, degrees: float, tmp_path: Path
) -> None:
    """Two files of ITK's whose directions are a rounding apart at 45 degrees."""
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    drawn = np.random.default_rng(0).integers(0, 2, (5, 6, 7)).astype(np.uint8)
    nibabels = set()
    for name, step in (("image", 1e-7), ("label", -1e-7)):
        direction = Rotation.from_euler(axis, degrees, degrees=True).as_matrix()
        direction += step * np.array([[1, -1, 1], [-1, 1, -1], [1, -1, 1]])
        affine = np.eye(4)
        affine[:3, :3] = direction
        nibabels.add(nib.aff2axcodes(LPS @ affine))
        image = sitk.GetImageFromArray(drawn.transpose(2, 1, 0))
        image.SetDirection(direction.ravel().tolist())
        sitk.WriteImage(image, str(tmp_path / f"{name}.mha"))
    assert len(nibabels) == 2
    names = (tmp_path / "label.mha", tmp_path / "image.mha")
    image = read_image(names[1])
    label = read_label(names[0], LabelMap(("background", "a"), ((0,), (1,))), [0, 1])
    placed = on_grid(label, image, names)
    np.testing.assert_array_equal(placed.array, image.array)
    assert label.orientation == image.orientation


def test_voxels_keep_their_places_in_the_world() -> None:
    rng = np.random.default_rng(0)
    array = np.arange(120, dtype=np.int16).reshape(4, 5, 6)
    for _ in range(20):
        affine = np.eye(4)
        affine[:3, :3] = Rotation.random(random_state=rng).as_matrix() * [0.7, 0.8, 2.5]
        affine[:3, 3] = rng.uniform(-99, 99, 3)
        volume = from_lps(array, affine)
        for index in ((0, 0, 0), (3, 1, 5), (2, 4, 0)):
            (there,) = np.argwhere(volume.array == array[index])
            np.testing.assert_allclose(
                volume.affine @ [*there, 1], LPS @ affine @ [*index, 1], atol=1e-9
            )
        assert volume.array.dtype == np.int16
