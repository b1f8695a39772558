"""k-means of many runs at once, against its definition."""

import numpy as np
import pytest

from medpair.data.sampling import numpy_generator
from medpair.metrics.clustering import kmeans


def generators(count):
    return [numpy_generator(0, run) for run in range(count)]


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_clusters_far_apart_are_found_whatever_the_unit(scale, offset):
    rng = np.random.default_rng(0)
    owner = rng.integers(0, 4, 200)
    rows = 10.0 * np.eye(4, 6)[owner] + rng.normal(size=(200, 6)) + offset
    for labels in kmeans(scale * rows, 4, generators(5)):
        assert len(set(zip(owner, labels, strict=True))) == 4


def test_no_row_lies_nearer_to_another_centre():
    rows = np.random.default_rng(1).normal(size=(300, 5))
    for labels in kmeans(rows, 7, generators(4)):
        centres = np.stack([rows[labels == k].mean(axis=0) for k in range(7)])
        distance = ((rows[:, None] - centres) ** 2).sum(axis=2)
        assert (distance[np.arange(300), labels] <= distance.min(axis=1) + 1e-5).all()


def test_runs_do_not_know_each_other():
    rows = np.random.default_rng(2).normal(size=(120, 4))
    together = kmeans(rows, 6, generators(3))
    for run in range(3):
        np.testing.assert_array_equal(together[run], kmeans(rows, 6, [numpy_generator(0, run)])[0])
    assert not np.array_equal(together[0], together[1])


def test_fewer_different_rows_than_clusters():
    rows = np.repeat([[0.0, 0.0], [1.0, 1.0]], 3, axis=0)
    for labels in kmeans(rows, 4, generators(3)):
        assert len(set(labels[:3])) == len(set(labels[3:])) == 1
        assert labels[0] != labels[3]
    assert set(kmeans(np.zeros((5, 2)), 3, generators(2)).ravel()) == {0}
