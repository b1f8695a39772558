"""What the segmenter's own random transforms do to image and label, which must stay a pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medpair.data.segmentation import RandFlipAxesd, RandRotateSheard

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
