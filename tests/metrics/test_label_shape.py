import json
from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medpair.metrics.label_shape import (
    MIN_COMPONENT,
    LabelShape,
    SeamRatio,
    label_shape,
    seam_ratio,
    slice_change,
)

SPACING = (0.5, 2.0, 3.0)


def volume(*boxes, shape=(20, 24, 16), dtype=np.uint8):
    """Boxes (class, corner, size) in an empty volume."""
    label = np.zeros(shape, dtype)
    for index, corner, size in boxes:
        label[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = index
    return label


def measured(*boxes, num_labels=2, spacing=(1, 1, 1), **more):
    return label_shape(volume(*boxes, **more), num_labels, spacing)


# --- label_shape


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int64, np.uint64])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("corner", [(3, 4, 5), (0, 0, 0), (15, 14, 8)])
def test_box(dtype, order, corner):
    a, b, c = 5, 10, 8
    label = np.array(volume((2, corner, (a, b, c)), dtype=dtype), order=order)
    shape = label_shape(label, 3, SPACING)
    x, y, z = np.multiply((a, b, c), SPACING)
    assert shape.num_labels == 3
    assert shape.volume == (0, pytest.approx(x * y * z), 0)
    assert shape.surface == (0, pytest.approx(2 * (x * y + y * z + z * x)), 0)
    assert shape.components == (0, 1, 0)
    assert shape.largest_share == (1, 1, 1)
    centre = (np.array(corner) + np.array([a, b, c]) / 2) / label.shape
    assert shape.centroid == (None, pytest.approx(tuple(centre)), None)


def test_shared_face_belongs_to_both_classes():
    shape = measured((1, (2, 2, 2), (4, 4, 4)), (2, (6, 2, 2), (4, 4, 4)))
    assert shape.surface == (96, 96)
    # a hole has a surface too
    shape = measured((1, (2, 2, 2), (5, 5, 5)), (0, (4, 4, 4), (1, 1, 1)))
    assert shape.surface[0] == 6 * 25 + 6


def test_whole_volume_of_one_class():
    shape = label_shape(np.ones((4, 5, 6), np.uint8), 1, (1, 1, 1))
    expected = LabelShape((120,), (2 * (20 + 30 + 24),), (1,), (1,), ((0.5, 0.5, 0.5),), (1,))
    assert shape == expected


def test_components_and_shares():
    large, small = (1, (1, 1, 1), (5, 4, 3)), (1, (12, 12, 9), (2, 5, 2))
    shape = measured(large, small)
    assert shape.components == (2, 0)
    assert shape.largest_share == (60 / 80, 1)
    touching = measured((1, (1, 1, 1), (3, 3, 3)), (1, (4, 4, 4), (3, 3, 3)))
    assert touching.components == (1, 0), "a corner connects"
    other = measured(large, (2, (6, 1, 1), (1, 4, 3)), (1, (7, 1, 1), (5, 4, 3)))
    assert other.components == (2, 1), "another class does not connect"


def test_specks_are_no_components_but_part_of_the_whole():
    organ = (1, (1, 1, 1), (4, 4, 4))
    speck, part = (
        (1, (10, 10, 10), (MIN_COMPONENT - 1, 1, 1)),
        (1, (10, 1, 1), (MIN_COMPONENT, 1, 1)),
    )
    assert measured(organ, speck).components[0] == 1
    assert measured(organ, speck).largest_share[0] == 64 / (64 + MIN_COMPONENT - 1)
    assert measured(organ, part).components[0] == 2
    alone = measured((1, (3, 3, 3), (1, 1, 1)))
    assert (alone.components[0], alone.largest_share[0]) == (1, 1)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifted_slices_overlap(axis):
    side, count, shift = 6, 5, 2
    label = np.zeros((18, 18, 10), np.uint8)
    for index in range(count):
        label[1 + shift * index : 1 + shift * index + side, 3:9, 2 + index] = 1
    label = np.moveaxis(label, 2, axis)
    # four pairs share 4 of 6 columns; where the class begins and ends nothing is shared
    expected = (count - 1) * (side - shift) / side / (count + 1)
    assert label_shape(label, 1, (1, 1, 1), axis).slice_overlap == (pytest.approx(expected),)
    change = slice_change(label, axis, 1)
    assert change == pytest.approx([0, 1, *[shift / side] * (count - 1), 1, 0, 0])


def test_overlap_counts_pairs_with_the_class_only():
    # two plates with empty slices between; one reaches the border, where no pair is
    shape = measured((1, (2, 2, 0), (5, 5, 3)), (1, (2, 2, 9), (5, 5, 2)))
    assert shape.slice_overlap[0] == pytest.approx((1 + 1 + 0 + 0 + 1 + 0) / 6)
    assert label_shape(np.ones((3, 3, 1), np.uint8), 1, (1, 1, 1)).slice_overlap == (None,)
    assert shape.slice_overlap[1] is None


def test_shape_keeps_through_json():
    shape = measured((1, (1, 1, 1), (3, 4, 5)), spacing=SPACING)
    text = json.dumps(shape.to_json(), allow_nan=False)
    assert LabelShape.from_json(json.loads(text)) == shape
    assert json.loads(text) == shape.to_json()
    with pytest.raises(ValueError, match="volumes"):
        LabelShape.from_json({"volumes": [1]})


@pytest.mark.parametrize(
    ("label", "spacing", "axis", "message"),
    [
        (np.zeros((3, 3), np.uint8), (1, 1, 1), 0, "three dimensions"),
        (np.zeros((3, 3, 3)), (1, 1, 1), 0, "whole numbers"),
        (np.full((3, 3, 3), 3), (1, 1, 1), 0, r"0\.\.2"),
        (np.full((3, 3, 3), -1), (1, 1, 1), 0, r"0\.\.2"),
        (np.zeros((3, 3, 3), np.uint8), (1, 1), 0, "spacing"),
        (np.zeros((3, 3, 3), np.uint8), (1, 1, np.nan), 0, "spacing"),
        (np.zeros((3, 3, 3), np.uint8), (1, 1, 1), 3, "axis"),
    ],
)
def test_label_shape_refuses(label, spacing, axis, message):
    with pytest.raises(ValueError, match=message):
        label_shape(label, 2, spacing, axis)


# --- slice_change and seam_ratio


def test_change_of_class_counts_for_both_slices():
    # 4 voxels of class 1; then 2 of them and 2 of class 2; then none
    label = np.zeros((4, 1, 3), np.uint8)
    label[:, 0, 0] = 1
    label[:, 0, 1] = (1, 1, 2, 2)
    assert slice_change(label, 2, 2) == pytest.approx([1 - 2 * 2 / 8, 1])
    # half of a slice gone: 4 voxels of 12 are foreground on one side only
    label = volume((1, (0, 0, 0), (2, 4, 1)), (1, (0, 0, 1), (1, 4, 1)), shape=(2, 4, 2))
    assert slice_change(label, 2, 1) == pytest.approx([4 / 12])


def smooth_volumes(count, seams=(), seed=0, shape=(24, 24, 40)):
    """Random smooth classes 0..2; windows between seams are drawn from fields 70 % alike."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        field = gaussian_filter(rng.standard_normal(shape), 4)
        starts = [0, *seams, shape[2]]
        for begin, end in pairwise(starts):
            own = gaussian_filter(rng.standard_normal(shape), 4) if seams else 0
            field[..., begin:end] = (0.7 * field + 0.3 * own)[..., begin:end]
        yield np.digitize(field / field.std(), [-0.3, 0.6]).astype(np.uint8)


SEAMS = [10, 20, 30]


def test_no_seams_are_found_in_smooth_volumes():
    result = seam_ratio(smooth_volumes(12), [SEAMS] * 12, axis=2, num_labels=2)
    assert result.low < 1 < result.high
    assert result.ratio == pytest.approx(1, abs=0.1)
    assert result.seams == 36


def test_planted_seams_are_found():
    result = seam_ratio(smooth_volumes(12, SEAMS), [SEAMS] * 12, axis=2, num_labels=2)
    assert result.low > 1.5
    assert result.low < result.ratio < result.high
    assert result.ratio == pytest.approx(result.at_seams / result.beside)
    # the same volumes, asked elsewhere; 15 and 25 are away from any seam
    beside = seam_ratio(smooth_volumes(12, SEAMS), [[15, 25]] * 12, axis=2, num_labels=2)
    assert beside.ratio == pytest.approx(1, abs=0.2)


def columns(overlaps):
    """A volume whose slices n and n + 1 have a Dice of ``overlaps[n]``, in tenths."""
    label = np.zeros((200, 1, len(overlaps) + 1), np.uint8)
    start = 0
    for index, overlap in enumerate([10, *overlaps]):
        start += 10 - overlap
        label[start : start + 10, 0, index] = 1
    return label


def test_control_is_interpolated_over_the_position():
    steady = columns([9, 8, 7, 6, 5, 4, 3])
    assert slice_change(steady, 2, 1) == pytest.approx(np.arange(1, 8) / 10)
    result = seam_ratio([steady], [[2, 4, 6]], 2, 1)
    assert (result.ratio, result.seams) == (pytest.approx(1), 3)
    # adjacent seams share controls on either side: 0.3 and 0.4 between 0.2 and 0.5
    assert seam_ratio([steady], [[3, 4, 4]], 2, 1).beside == pytest.approx(0.35)
    # the first transition has nothing before it
    assert seam_ratio([steady], [[1, 4]], 2, 1).seams == 1
    seam = seam_ratio([columns([9, 9, 6, 9, 9])], [[3]], 2, 1)
    expected = SeamRatio(pytest.approx(4), None, None, 1, pytest.approx(0.4), pytest.approx(0.1))
    assert seam == expected


def test_ratio_pools_volumes_and_resamples_them():
    volumes = [columns([9, 6, 9]), columns([8, 8, 8]), columns([9, 7, 9]), columns([10, 10, 10])]
    result = seam_ratio(volumes, [[2]] * 4, 2, 1)
    assert result.ratio == pytest.approx((0.4 + 0.2 + 0.3 + 0) / (0.1 + 0.2 + 0.1 + 0))
    assert 1 <= result.low < result.ratio < result.high <= 4 + 1e-9
    assert SeamRatio.from_json(json.loads(json.dumps(result.to_json()))) == result


def test_seams_where_nothing_else_changes():
    result = seam_ratio([columns([10, 5, 10])] * 3, [[2]] * 3, 2, 1)
    assert (result.ratio, result.low, result.high, result.at_seams) == (None, None, None, 0.5)


@pytest.mark.parametrize("seams", [[0], [8], [1], [], [1, 2, 3, 4, 5, 6, 7]])
def test_seam_ratio_refuses(seams):
    with pytest.raises(ValueError, match="seams"):
        seam_ratio([columns([9] * 7)], [seams], 2, 1)
