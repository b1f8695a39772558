"""The ends of a generated image: back where training volumes have them, and never beyond."""

from __future__ import annotations

import numpy as np
import pytest

from medpair.data.full_range import full_range
from medpair.data.intensity import robust_range, to_unit


def nothing(image: np.ndarray) -> np.ndarray:
    """Return a label map in which nothing is labelled."""
    return np.zeros(image.shape, np.uint8)


def test_a_generated_image_is_given_its_ends_back() -> None:
    """A ramp that lost its ends: what a segmenter scales by percentiles is the ramp again."""
    ramp = np.linspace(-1, 1, 8000).reshape(20, 20, 20)
    lost = np.where(abs(ramp) > 0.5, np.sign(ramp) * (0.5 + 0.95 * (abs(ramp) - 0.5)), ramp)
    filled = full_range(lost, nothing(lost))
    low, high = robust_range(filled)
    assert (low, high) == (pytest.approx(-1, abs=1e-4), pytest.approx(1, abs=1e-4))
    inner = (lost > np.percentile(lost, 2)) & (lost < np.percentile(lost, 98))
    np.testing.assert_array_equal(filled[inner], lost[inner])
    order = np.argsort(lost.ravel(), kind="stable")
    assert (np.diff(filled.ravel()[order]) >= 0).all()
    # done twice it is done once
    np.testing.assert_allclose(full_range(filled, nothing(filled)), filled, atol=1e-5)


def test_tissue_keeps_its_brightness_where_fat_is_too_dark() -> None:
    rng = np.random.default_rng(0)
    tissue = rng.normal(0.3, 0.05, (20, 20, 20))
    tissue[:2] = rng.uniform(0.5, 0.95, (2, 20, 20))  # fat that is not as bright as it should be
    tissue[2:8] = -1
    seen = [
        to_unit(i, *robust_range(i))[8:].mean()
        for i in (tissue, full_range(tissue, nothing(tissue)))
    ]
    assert seen[0] > 0.335
    assert seen[1] == pytest.approx(0.3, abs=0.003)


def test_a_small_bright_class_is_not_carried_away_with_the_fat() -> None:
    """Deep grey matter of T1: brighter than 98 % of all voxels, and still not the brightest."""
    rng = np.random.default_rng(0)
    head = rng.normal(0.3, 0.05, (20, 20, 20))
    head[0, :3] = rng.uniform(0.6, 0.9, (3, 20))  # fat, less of it and less bright than in nature
    label = nothing(head)
    label[1:6, 5:10, 5:10] = 4
    head[label == 4] += 0.4
    label[10:] = 2
    head[6:10] = -1  # air
    alone, filled = full_range(head, nothing(head)), full_range(head, label)
    for value in (2, 4):
        assert filled[label == value].mean() == pytest.approx(head[label == value].mean(), abs=0.01)
    assert alone[label == 4].mean() > head[label == 4].mean() + 0.05
    low, high = robust_range(filled)
    assert (low, high) == (-1, pytest.approx(1, abs=0.06))


def test_ends_are_never_blown_up() -> None:
    """Three times as long at most, nothing where there is no end, nothing out of range."""
    rng = np.random.default_rng(0)
    dim = rng.uniform(-0.1, 0.1, (20, 20, 20))
    filled = full_range(dim, nothing(dim))
    knot, end = np.percentile(dim, [98, 99.5])
    assert np.percentile(filled, 99.5) == pytest.approx(knot + 3 * (end - knot), abs=1e-6)
    constant = np.full((4, 4, 4), 0.2)
    np.testing.assert_array_equal(full_range(constant, nothing(constant)), constant)
    whole = np.clip(rng.normal(0, 1, (20, 20, 20)), -1, 1)
    np.testing.assert_array_equal(full_range(whole, nothing(whole)), whole)
    few = np.full((20, 20, 20), -1.0)
    few[0, 0, :3] = 0.5  # fewer voxels than half a percent
    np.testing.assert_array_equal(full_range(few, nothing(few)), few)
