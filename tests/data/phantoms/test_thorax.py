"""The simulated CT of the thorax: organs, CT numbers, sides, and what differs between volumes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medpair.data.phantoms import Phantom
from medpair.data.phantoms.lung_vessels import TWIG, grow_tree
from medpair.data.phantoms.thorax import THORAX_LABELS, thorax_phantom

SIZE, SPACING = (64, 64, 48), (6.0, 6.0, 6.0)
ORGANS = [name for name in THORAX_LABELS if name not in ("background", "body")]


@pytest.fixture(scope="module")
def default() -> Phantom:
    return thorax_phantom(seed=1)


@pytest.fixture(scope="module")
def coarse() -> list[Phantom]:
    return [thorax_phantom(SIZE, seed, SPACING) for seed in range(5)]


def voxels(phantom: Phantom, name: str) -> np.ndarray:
    """Where an organ is: (N, 3) indices."""
    return np.argwhere(phantom.label == THORAX_LABELS[name])


def inner(phantom: Phantom, name: str, steps: int = 1) -> np.ndarray:
    """CT numbers of an organ, its edge left out."""
    mask = phantom.label == THORAX_LABELS[name]
    return phantom.image[ndimage.binary_erosion(mask, iterations=steps)]


def test_default_grid(default: Phantom) -> None:
    assert default.image.shape == default.label.shape == default.roi.shape == (128, 128, 96)
    assert default.spacing == (3.0, 3.0, 3.0)
    assert (default.image.dtype, default.label.dtype, default.roi.dtype) == (
        np.int16,
        np.uint8,
        np.uint8,
    )
    np.testing.assert_array_equal(default.roi, default.label > 0)


def test_every_organ_is_there_in_one_piece(default: Phantom, coarse: list[Phantom]) -> None:
    coarser = [thorax_phantom((48, 48, 32), seed, (8.0, 8.0, 9.0)) for seed in range(5)]
    for phantom in (default, *coarse, *coarser):
        assert set(np.unique(phantom.label)) == set(THORAX_LABELS.values())
        for name in ORGANS:
            mask = phantom.label == THORAX_LABELS[name]
            assert ndimage.label(mask)[1] == 1, name


def test_tubes_are_whole_on_a_coarse_grid(coarse: list[Phantom]) -> None:
    for phantom in coarse:
        cord = set(voxels(phantom, "spinal_cord")[:, 2])
        assert cord == set(range(SIZE[2]))
        for name, share in (("oesophagus", 0.8), ("trachea", 0.25)):
            heights = set(voxels(phantom, name)[:, 2])
            assert heights == set(range(min(heights), SIZE[2]))
            assert len(heights) > share * SIZE[2]


def test_ct_numbers(default: Phantom) -> None:
    assert -1010 < np.median(default.image[default.label == 0]) < -990
    for side in ("left_lung", "right_lung"):
        assert -900 < np.median(inner(default, side)) < -780
        assert (inner(default, side, 3) > -600).mean() > 0.002  # vessels
    assert 25 < inner(default, "heart").mean() < 65
    assert 20 < np.median(inner(default, "oesophagus")) < 45
    assert inner(default, "trachea").mean() < -900
    assert 20 < inner(default, "spinal_cord").mean() < 55
    body = default.image[default.label == THORAX_LABELS["body"]]
    assert 0.02 < (body > 250).mean() < 0.2  # bone
    assert 0.05 < ((body > -140) & (body < -60)).mean() < 0.7  # fat
    assert default.image[default.label == THORAX_LABELS["heart"]].max() < 250


def test_lung_is_denser_behind(default: Phantom) -> None:
    lung = ndimage.binary_erosion(np.isin(default.label, (1, 2)), iterations=2)
    depth = np.argwhere(lung)[:, 1]
    values = default.image[lung]
    behind, before = depth < np.quantile(depth, 0.2), depth > np.quantile(depth, 0.8)
    assert np.median(values[behind]) > np.median(values[before]) + 15


def test_sides_and_heights(coarse: list[Phantom]) -> None:
    for phantom in coarse:
        at = {name: voxels(phantom, name).mean(0) for name in ORGANS}
        # x grows to the patient's right, y to the front, z to the top.
        assert at["left_lung"][0] < at["trachea"][0] < at["right_lung"][0]
        assert at["heart"][0] < at["trachea"][0]
        assert at["spinal_cord"][1] < at["oesophagus"][1] < at["heart"][1]
        # Behind the trachea lies the oesophagus: compare where both are.
        carina = voxels(phantom, "trachea")[:, 2].min()
        upper = voxels(phantom, "oesophagus")
        upper = upper[upper[:, 2] > carina + 2]
        assert upper[:, 1].mean() < at["trachea"][1]
        assert at["heart"][2] < SIZE[2] / 2 < at["trachea"][2]
        assert 0.3 * SIZE[2] < carina < 0.75 * SIZE[2]


def test_lungs_have_an_apex_and_a_concave_base(coarse: list[Phantom]) -> None:
    for phantom in coarse:
        for side in ("left_lung", "right_lung"):
            mask = phantom.label == THORAX_LABELS[side]
            area = mask.sum((0, 1))
            heights = np.flatnonzero(area)
            assert area[heights[-3]] < 0.4 * area.max()
            # Seen from below, its middle is higher than its rim.
            lowest = np.where(mask.any(2), mask.argmax(2), SIZE[2])
            shadow = ndimage.binary_erosion(mask.any(2), iterations=1)
            rim = shadow & ~ndimage.binary_erosion(shadow, iterations=2)
            core = ndimage.binary_erosion(shadow, iterations=4)
            assert np.median(lowest[core]) > np.quantile(lowest[rim], 0.25) + 1


@pytest.mark.parametrize(
    ("size", "spacing"),
    [((64, 64, 48), (6.0, 6.0, 6.0)), ((96, 96, 64), (2.0, 2.0, 2.0)), ((80, 48, 24), (5, 6, 9))],
)
def test_the_field_of_view_is_filled(size: tuple, spacing: tuple) -> None:
    phantom = thorax_phantom(size, 3, spacing)
    extent = np.multiply(size, spacing)
    spread = np.ptp(np.argwhere(phantom.label > 0), axis=0) * spacing / extent
    assert spread[:2].max() > 0.7
    assert spread[2] > 0.95
    lungs = np.argwhere(np.isin(phantom.label, (1, 2)))
    assert np.ptp(lungs[:, 2]) > 0.6 * size[2]
    assert set(np.unique(phantom.label)) == set(THORAX_LABELS.values())


def test_same_seed_same_volume_other_seed_other_volume(coarse: list[Phantom]) -> None:
    again = thorax_phantom(SIZE, 2, SPACING)
    np.testing.assert_array_equal(again.image, coarse[2].image)
    np.testing.assert_array_equal(again.label, coarse[2].label)
    counts = np.array([np.bincount(p.label.ravel(), minlength=8)[1:] for p in coarse])
    spread = counts.std(0) / counts.mean(0)
    assert np.all(spread > 0.03)
    assert np.all(spread < 0.5)
    first, other = coarse[0].label, coarse[1].label
    assert (first != other).mean() > 0.05


def test_trees_of_the_lung() -> None:
    rng = np.random.default_rng(0)
    ends = rng.uniform(-50, 50, (120, 3))
    points, parent, radius = grow_tree(np.zeros(3), ends, rng)
    assert np.all(parent[1:] < np.arange(1, len(parent)))
    # Every end is reached, and Murray's law holds wherever vessels part.
    gap = np.linalg.norm(points[None] - ends[:, None], axis=2).min(1)
    assert gap.max() < 1e-9
    flow = np.zeros(len(parent))
    np.add.at(flow, parent[1:], radius[1:] ** 3)
    np.testing.assert_allclose(radius[flow > 0] ** 3, flow[flow > 0])
    assert TWIG[0] <= radius[flow == 0].min() <= radius[flow == 0].max() <= TWIG[1]


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": (64, 64)},
        {"size": (64, 64, 8)},
        {"spacing": (3.0, 0.0, 3.0)},
        {"seed": -1},
    ],
)
def test_what_cannot_be_used_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        thorax_phantom(**wrong)
