"""What the segmenter's own random transforms do to image and label, which must stay a pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import gaussian_filter

from medpair.data.segmentation import KeepPiecesd, RandFlipAxesd, RandRotateSheard

KEYS = ("image", "label")


def pair() -> dict[str, torch.Tensor]:
    """Return an image (1, 24, 20, 16) that is its own label: a smooth shape of value 3."""
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(24, 20, 16)), 3)
    shape = torch.from_numpy(3.0 * (noise > np.quantile(noise, 0.7)))[None].float()
    return {"image": shape, "label": shape.clone()}


@pytest.mark.parametrize("axes", [(0,), (0, 2), (0, 1, 2)])
def test_flips_are_alike_of_these_axes_and_all_combinations_come(axes: tuple[int, ...]) -> None:
    transform = RandFlipAxesd(KEYS, axes)
    found = set()
    for seed in range(60):
        before = pair()
        after = transform.set_random_state(seed=seed)(before)
        assert torch.equal(after["image"], after["label"])
        turned = [
            chosen
            for number in range(2 ** len(axes))
            if torch.equal(
                after["image"],
                before["image"].flip(
                    chosen := tuple(1 + a for i, a in enumerate(axes) if number >> i & 1)
                ),
            )
        ]
        assert len(turned) == 1
        found.add(turned[0])
    assert len(found) == 2 ** len(axes)


def test_without_axes_nothing_is_flipped() -> None:
    before = pair()
    after = RandFlipAxesd(KEYS, ()).set_random_state(seed=1)(before)
    assert torch.equal(after["image"], before["image"])


@pytest.mark.parametrize(("rotation", "shear"), [(30.0, 0.0), (0.0, 20.0), (30.0, 20.0)])
def test_turned_and_sheared_image_and_label_stay_a_pair(rotation: float, shear: float) -> None:
    transform = RandRotateSheard(KEYS, rotation, shear, prob=1.0)
    largest = np.zeros(2)
    for seed in range(12):
        before = pair()
        after = transform.set_random_state(seed=seed)(before)
        image, label = (torch.as_tensor(after[key]) for key in KEYS)
        assert set(label.unique().tolist()) <= {0.0, 3.0}  # nearest: no class between two
        assert not torch.equal(label, before["label"])
        # the border's image goes on outside, labels do not: compare inside
        inner = (slice(None), slice(4, -4), slice(4, -4), slice(4, -4))
        assert ((image[inner] > 1.5) == (label[inner] > 1.5)).float().mean() > 0.95
        grid = transform.rand_affine.rand_affine_grid
        for kind, values in enumerate((grid.rotate_params, grid.shear_params)):
            largest[kind] = max(largest[kind], np.abs(values).max())
    limits = np.array([np.deg2rad(rotation), np.tan(np.deg2rad(shear))])
    assert (largest <= limits).all()
    assert (largest >= 0.7 * limits).all()


def scattered() -> torch.Tensor:
    """Return classes (1, 12, 12, 12) in pieces of 64 and 35 voxels, two classes each, and of 8."""
    label = torch.zeros(1, 12, 12, 12)
    label[0, :4, :4, :4] = 1
    label[0, 1:3, 1:3, 1:3] = 2
    label[0, 6:9, 6:9, 6:9] = 1
    label[0, 9:11, 9:11, 9:11] = 3  # touches the one before by a corner
    label[0, 10:12, :2, :2] = 2
    return label


@pytest.mark.parametrize(("pieces", "voxels"), [(0, 107), (1, 64), (2, 99), (3, 107), (9, 107)])
def test_the_largest_pieces_are_kept_whatever_their_classes(pieces: int, voxels: int) -> None:
    label = scattered()
    kept = KeepPiecesd("pred", pieces)({"pred": label})["pred"]
    assert int((kept > 0).sum()) == voxels
    assert torch.equal(kept[kept > 0], label[kept > 0])
    assert int((label > 0).sum()) == 107  # what came in is as it was


def test_nothing_is_a_piece_of_an_empty_label_map() -> None:
    assert not KeepPiecesd("pred", 2)({"pred": torch.zeros(1, 4, 4, 4)})["pred"].any()


def test_kept_pieces_still_know_where_they_lie() -> None:
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    label = MetaTensor(scattered(), affine=affine)
    kept = KeepPiecesd("pred", 1)({"pred": label})["pred"]
    assert isinstance(kept, MetaTensor)
    np.testing.assert_array_equal(kept.affine, affine)


@pytest.mark.parametrize("pieces", [-1, 1.0, True, "1", None])
def test_a_number_of_pieces_that_is_none_is_refused(pieces: object) -> None:
    with pytest.raises(ValueError, match="keep_pieces: expected a whole number"):
        KeepPiecesd("pred", pieces)  # type: ignore[arg-type]
