"""Shares of common surface, against boxes whose faces can be counted."""

from __future__ import annotations

import numpy as np
import pytest

from medpair.metrics.label_adjacency import adjacency


def test_two_boxes_that_touch_by_one_face() -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[2:4, 2:5, 2:6] = 1  # 2 x 3 x 4
    label[4:5, 2:5, 2:6] = 2  # 1 x 3 x 4, beside it along x
    spacing = (1.0, 2.0, 0.5)
    found = adjacency(label, 2, spacing)
    yz, xz, xy = 2.0 * 0.5, 1.0 * 0.5, 1.0 * 2.0
    common = 12 * yz
    first = 2 * (12 * yz + 8 * xz + 6 * xy)
    second = 2 * (12 * yz + 4 * xz + 3 * xy)
    np.testing.assert_allclose(found[1], [1 - common / first, 0, common / first])
    np.testing.assert_allclose(found[2], [1 - common / second, common / second, 0])
    outside = first + second - 2 * common
    np.testing.assert_allclose(
        found[0, 1:], [(first - common) / outside, (second - common) / outside]
    )


def test_the_outside_of_the_volume_is_no_neighbour() -> None:
    label = np.ones((4, 4, 4), np.uint8)
    assert adjacency(label, 1, (1, 1, 1)).sum() == 0
    label[3] = 2
    np.testing.assert_array_equal(adjacency(label, 3, (1, 1, 1))[1:3, 1:3], [[0, 1], [1, 0]])
    # a class that is absent has no neighbours
    assert adjacency(label, 3, (1, 1, 1))[3].sum() == 0


def test_a_mirrored_label_has_the_same_neighbours() -> None:
    label = np.random.default_rng(0).integers(0, 4, (6, 7, 8))
    found = adjacency(label, 3, (1, 2, 3))
    np.testing.assert_allclose(adjacency(label[::-1, :, ::-1], 3, (1, 2, 3)), found)
    np.testing.assert_allclose(adjacency(label.T, 3, (3, 2, 1)), found)


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(W, H, D\), found shape \(3, 3\)"):
        adjacency(np.zeros((3, 3), int), 1, (1, 1, 1))
    with pytest.raises(ValueError, match="expected classes 0 to 1, found 0 to 2"):
        adjacency(np.array([[[0, 2]]]), 1, (1, 1, 1))
