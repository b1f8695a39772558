"""What pictures of a report may show of heads."""

from __future__ import annotations

import numpy as np
import pytest

from medpair.report.pairs import Pair
from medpair.report.pictures import MOST_SHOWN, _cubic, shown


def head(spacing: tuple[float, float, float]) -> Pair:
    """Return 120 mm of head around a labelled cube of 30 mm with a hole in it."""
    size = tuple(round(120 / step) for step in spacing)
    grid = np.meshgrid(
        *(np.arange(n) * s for n, s in zip(size, spacing, strict=True)), indexing="ij"
    )
    inside = np.logical_and.reduce([abs(axis - 60) <= 15 for axis in grid])
    hole = np.logical_and.reduce([abs(axis - 60) <= 8 for axis in grid])
    image = np.random.default_rng(0).uniform(100, 200, size).astype(np.float32)
    return Pair("head", image, (inside & ~hole).astype(np.uint8), spacing)


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.5, 1.0, 5.0), (4.0, 4.0, 4.0)])
def test_nothing_further_than_six_millimetres_is_shown(
    spacing: tuple[float, float, float],
) -> None:
    pair = head(spacing)
    picture = shown(pair)
    cube = [np.flatnonzero((pair.label > 0).any(axis=o)) for o in ((1, 2), (0, 2), (0, 1))]
    away = np.zeros(pair.label.shape)
    for axis, (found, step) in enumerate(zip(cube, spacing, strict=True)):
        line = np.arange(pair.label.shape[axis])
        distance = np.maximum(np.maximum(found[0] - line, line - found[-1]), 0) * step
        away += (distance**2).reshape([-1 if a == axis else 1 for a in range(3)])
    far = np.sqrt(away) > 6
    assert far.any()
    assert len(np.unique(picture[far])) == 1
    # near the labels, and in what they enclose, it is the image itself
    assert np.array_equal(picture[~far], pair.image[~far])


def test_small_fields_of_view_and_those_asked_for_are_shown_whole() -> None:
    pair = head((1.0, 1.0, 1.0))
    assert np.array_equal(shown(pair, whole=True), pair.image)
    crop = Pair("crop", pair.image[:90], pair.label[:90], pair.spacing)
    assert np.array_equal(shown(crop), crop.image)


def test_a_head_without_labels_is_not_shown_at_all() -> None:
    pair = head((2.0, 2.0, 2.0))
    empty = Pair("head", pair.image, np.zeros_like(pair.label), pair.spacing)
    assert len(np.unique(shown(empty))) == 1


def test_thick_slices_are_not_drawn_with_more_voxels_than_can_be_seen() -> None:
    image = np.zeros((600, 40, 80), np.float32)
    pair = Pair("thin", image, np.zeros(image.shape, np.uint8), (0.4, 0.4, 6.0))
    for part in _cubic(image, pair):
        assert max(part.shape) == pytest.approx(MOST_SHOWN, abs=5)
        assert part.shape == pytest.approx((160, 11, 316), abs=2)
    small = Pair("small", image[:60], np.zeros((60, 40, 80), np.uint8), (1.0, 1.0, 2.0))
    assert _cubic(small.image, small)[0].shape == (60, 40, 159)
