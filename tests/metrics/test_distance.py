import itertools
import math
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.metrics import compute_dice
from scipy.ndimage import distance_transform_edt

from medpair.engines.scoring import score
from medpair.metrics import distance
from medpair.metrics.distance import balanced_average_hausdorff as bahd
from medpair.metrics.distance import dice

# Every way a sum of distances can be found, forced by the two limits that choose between them.
ROUTES = {"tree": (0, 0), "tree, then transform": (0, 10**9), "transform": (10**9, 0)}


def bahd_by(route, *case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distance, "_VOXELS_PER_QUERY", ROUTES[route][0])
        patch.setattr(distance, "_VOXELS_PER_FAR_QUERY", ROUTES[route][1])
        return bahd(*case)


def two_transforms(prediction, truth, spacing=None):
    """The definition, by a full distance transform of each mask."""
    to_prediction = distance_transform_edt(~prediction, sampling=spacing)[truth].sum()
    to_truth = distance_transform_edt(~truth, sampling=spacing)[prediction].sum()
    return 0.5 * (to_prediction + to_truth) / truth.sum()


def cube(shape, corner, side):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(start, start + side) for start in corner)] = True
    return mask


def voxels(shape, *indices):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(np.transpose(indices))] = True
    return mask


@st.composite
def cases(draw):
    shape = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4).map(tuple))
    prediction, truth = draw(arrays(bool, shape)), draw(arrays(bool, shape))
    assume(prediction.any() and truth.any())
    return prediction, truth, draw(st.tuples(*[st.floats(0.1, 10.0)] * len(shape)))


# Two cubes of side n, one shifted by k: each has k slices of n * n voxels outside the other, at
# distances 1, ..., k; once they are apart, all its n slices, at k - n + 1, ..., k.
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("shift", [0, 1, 3, 6, 9])
def test_shifted_cubes(axis, shift):
    side, corner, spacing = 6, np.array([2, 3, 4]), (0.5, 2.0, 3.0)
    truth = cube((20, 20, 20), corner, side)
    prediction = cube((20, 20, 20), corner + shift * np.eye(3, dtype=int)[axis], side)
    expected = sum(range(max(1, shift - side + 1), shift + 1)) / side
    assert dice(prediction, truth) == pytest.approx(max(0, side - shift) / side)
    assert bahd(prediction, truth) == pytest.approx(expected)
    assert bahd(prediction, truth, spacing) == pytest.approx(expected * spacing[axis])


def test_two_voxels():
    prediction, truth = voxels((9, 9, 9), (8, 5, 1)), voxels((9, 9, 9), (5, 1, 1))
    assert bahd(prediction, truth) == pytest.approx(5.0)
    assert bahd(prediction, truth, (2.0, 0.25, 9.0)) == pytest.approx(math.hypot(6.0, 1.0))


def test_nearest_voxel_depends_on_the_spacing():
    # Prediction two voxels away on the fine axis and one away on the coarse axis.
    truth, prediction = voxels((5, 5, 5), (2, 2, 2)), voxels((5, 5, 5), (4, 2, 2), (2, 2, 3))
    assert bahd(prediction, truth) == pytest.approx((1 + 2 + 1) / 2)
    assert bahd(prediction, truth, (0.5, 0.5, 3.0)) == pytest.approx((1 + 1 + 3) / 2)


def test_both_sums_are_divided_by_the_size_of_the_truth():
    # A voxel, and a line of n voxels from it: the line's voxels are at 0, 1, ..., n - 1.
    n = 7
    line, end = cube((n, 1, 1), (0, 0, 0), n), voxels((n, 1, 1), (0, 0, 0))
    assert bahd(line, end) == pytest.approx(n * (n - 1) / 4)
    assert bahd(end, line) == pytest.approx((n - 1) / 4)


@pytest.mark.fault(41)
def test_full_mask_against_its_centre():
    full, centre = np.ones((3, 3, 3), dtype=bool), voxels((3, 3, 3), (1, 1, 1))
    total = 6 + 12 * math.sqrt(2) + 8 * math.sqrt(3)
    assert bahd(full, centre) == pytest.approx(total / 2)
    assert bahd(centre, full) == pytest.approx(total / 54)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("density", [(0.5, 0.5), (0.9, 0.03), (0.002, 0.002), (1.0, 0.01)])
@pytest.mark.parametrize("spacing", [None, (0.3, 0.3, 0.6), (1.0, 0.05, 8.0)])
def test_equals_two_transforms(route, density, spacing):
    rng = np.random.default_rng(0)
    case = *(rng.random((40, 25, 33)) < d for d in density), spacing
    assert bahd_by(route, *case) == pytest.approx(two_transforms(*case), rel=1e-9)


@pytest.mark.parametrize(("side", "density", "transforms"), [(3, 0, 0), (12, 0, 1), (3, 0.5, 2)])
def test_tree_is_left_when_much_is_far_or_differs(monkeypatch, side, density, transforms):
    spy = Mock(wraps=distance_transform_edt)
    monkeypatch.setattr(distance, "distance_transform_edt", spy)
    truth, prediction = np.random.default_rng(0).random((2, 64, 48, 48)) < density
    truth[4:24, 4:24, 4:24] = True
    prediction[5:25, 4:24, 6:26] = True
    prediction[-side:, -side:, -side:] = True
    assert bahd(prediction, truth) == pytest.approx(two_transforms(prediction, truth), rel=1e-9)
    assert spy.call_count == transforms


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(list(ROUTES)))
def test_equals_two_transforms_on_any_masks(case, route):
    assert bahd_by(route, *case) == pytest.approx(two_transforms(*case), rel=1e-9)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_no_distance_from_a_mask_to_itself(case):
    _, truth, spacing = case
    assert (bahd(truth, truth, spacing), dice(truth, truth)) == (0.0, 1.0)


@settings(max_examples=80, deadline=None)
@given(cases(), st.floats(0.01, 100.0))
def test_scales_with_the_spacing(case, factor):
    *masks, spacing = case
    scaled = bahd(*masks, [factor * step for step in spacing])
    assert scaled == pytest.approx(factor * bahd(*masks, spacing), rel=1e-9)


@settings(max_examples=80, deadline=None)
@given(cases())
def test_swapping_the_masks_changes_only_the_divisor(case):
    prediction, truth, spacing = case
    there, back = bahd(prediction, truth, spacing), bahd(truth, prediction, spacing)
    assert there * truth.sum() == pytest.approx(back * prediction.sum(), rel=1e-9)
    assert dice(prediction, truth) == dice(truth, prediction)


@settings(max_examples=80, deadline=None)
@given(cases(), st.integers(0, 3))
def test_background_around_and_axis_order_do_not_matter(case, margin):
    prediction, truth, spacing = case
    expected = pytest.approx(bahd(prediction, truth, spacing), rel=1e-9)
    assert bahd(np.pad(prediction, margin), np.pad(truth, margin), spacing) == expected
    assert bahd(prediction.T, truth.T, spacing[::-1]) == expected
    assert bahd(np.flip(prediction), np.flip(truth), spacing) == expected


@pytest.mark.parametrize("density", [0.01, 0.3, 0.9])
def test_dice_equals_monai(density):
    truth, prediction = np.random.default_rng(1).random((2, 17, 12, 9)) < density
    as_batch = (torch.from_numpy(mask)[None, None] for mask in (prediction, truth))
    assert dice(prediction, truth) == pytest.approx(compute_dice(*as_batch).item(), rel=1e-6)


@pytest.mark.fault(41)
@pytest.mark.parametrize("spacing", [None, (0.5, 0.25, 3.0)])
def test_empty_masks(spacing):
    empty = np.zeros((6, 16, 4), dtype=bool)
    diagonal = math.sqrt(6**2 + 16**2 + 4**2) if spacing is None else 13.0
    assert (dice(empty, empty), bahd(empty, empty, spacing)) == (1.0, 0.0)
    for other in (voxels(empty.shape, (5, 0, 0)), ~empty):
        for pair in itertools.permutations((empty, other)):
            assert (dice(*pair), bahd(*pair, spacing)) == (0.0, pytest.approx(diagonal))


@pytest.mark.fault(41)
def test_empty_full_and_one_voxel_masks_have_finite_scores():
    shape, spacing = (4, 5, 6), (0.5, 1.0, 2.0)
    one = voxels(shape, (1, 2, 3))
    masks = np.zeros(shape, bool), np.ones(shape, bool), one, voxels(shape, (1, 2, 4))
    for truth, prediction in itertools.product(masks, repeat=2):
        scores = score(prediction, truth, spacing)
        assert all(math.isfinite(value) for value in scores.values())
        same = np.array_equal(truth, prediction)
        assert (scores["dsc"] == 1, scores["bahd_mm"] == 0) == (same, same)
    assert score(masks[3], one, spacing)["bahd_mm"] == 2.0
    assert score(one, one, spacing)["truth_voxels"] == 1


def test_returns_plain_floats_and_leaves_the_masks_alone():
    masks = np.zeros((4, 4), dtype=bool), np.ones((4, 4), dtype=bool), np.eye(4, dtype=bool)
    for mask in masks:
        mask.flags.writeable = False  # writing to one would raise
    for pair in itertools.product(masks, repeat=2):
        assert [type(x) for x in (dice(*pair), bahd(*pair), bahd(*pair, (1, 2)))] == [float] * 3


@pytest.mark.parametrize("measure", [dice, bahd])
def test_refuses_masks_that_do_not_match(measure):
    mask = np.ones((2, 3, 4), dtype=bool)
    with pytest.raises(ValueError, match=r"prediction: .*\(2, 3, 4\), found \(2, 3\)$"):
        measure(mask[..., 0], mask)
    with pytest.raises(ValueError, match=r"prediction: .* boolean mask, found dtype uint8$"):
        measure(mask.astype(np.uint8), mask)
    with pytest.raises(ValueError, match=r"truth: .* found dtype float64$"):
        measure(mask, mask.astype(float))


@pytest.mark.parametrize("spacing", [(1, 1), (1, 0, 1), (1, -1, 1), (1, 1, np.nan), (1, 1, np.inf)])
def test_refuses_a_spacing_that_is_not_positive_on_every_axis(spacing):
    mask = np.ones((2, 3, 4), dtype=bool)
    with pytest.raises(ValueError, match=r"^spacing: expected 3 positive .*, found .+\Z"):
        bahd(mask, mask, spacing)
