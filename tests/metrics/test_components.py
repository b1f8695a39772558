import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.ndimage import label as scipy_label

from medpair.metrics.components import component_sizes


def voxel_by_voxel(classes, num_labels):
    """Sizes of the components of each class, one class after the other."""
    found = []
    for index in range(1, num_labels + 1):
        parts, count = scipy_label(classes == index, structure=np.ones((3, 3, 3)))
        found.append(sorted(np.bincount(parts.ravel(), minlength=count + 1)[1:].tolist()))
    return found


def in_order(sizes):
    return [sorted(of_class.tolist()) for of_class in sizes]


def noise(seed, shape, num_labels, smooth=0.0, share=0.5):
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=shape), smooth) for _ in range(num_labels + 1)]
    fields[0] += np.quantile(fields[0], share) * 2  # how much is background
    return np.argmax(fields, axis=0).astype(np.uint8)


@pytest.mark.parametrize("smooth", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("num_labels", [1, 3, 7])
@pytest.mark.parametrize("seed", range(5))
def test_as_voxel_by_voxel(seed, num_labels, smooth):
    shape = tuple(np.random.default_rng(seed).integers(1, 24, 3))
    classes = noise(seed, shape, num_labels, smooth)
    assert in_order(component_sizes(classes, num_labels)) == voxel_by_voxel(classes, num_labels)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_few_voxels_touch_by_corners_alone(share):
    classes = (np.random.default_rng(3).random((17, 19, 23)) < share).astype(np.uint8)
    assert in_order(component_sizes(classes, 1)) == voxel_by_voxel(classes, 1)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 9), (1, 9, 1), (9, 1, 1), (2, 2, 2)])
def test_thin_volumes(shape):
    for seed in range(8):
        classes = np.random.default_rng(seed).integers(0, 3, shape).astype(np.uint16)
        assert in_order(component_sizes(classes, 2)) == voxel_by_voxel(classes, 2)


def test_all_26_neighbours_and_no_others():
    for offset in np.ndindex(5, 5, 5):
        classes = np.zeros((7, 7, 7), np.uint8)
        classes[3, 3, 3] = 1
        at = tuple(np.add(offset, 1))
        classes[at] = 1
        expected = (
            [1] if at == (3, 3, 3) else [2] if np.abs(np.subtract(at, 3)).max() == 1 else [1, 1]
        )
        assert in_order(component_sizes(classes, 1)) == [expected]


def test_edges_of_the_volume_do_not_touch():
    # neighbours in memory: the end of a line and the start of the next, and so for planes
    classes = np.zeros((3, 3, 4), np.uint8)
    classes[0, 0, 3] = classes[0, 2, 0] = classes[1, 0, 0] = 1
    classes[2, 2, 3] = classes[0, 0, 0] = 2
    assert in_order(component_sizes(classes, 3)) == [[1, 1, 1], [1, 1], []]


def test_classes_do_not_touch_each_other():
    classes = np.indices((6, 6, 6)).sum(axis=0).astype(np.uint8) % 2 + 1
    halves = [6**3 // 2]
    assert in_order(component_sizes(classes, 2)) == [halves, halves]
    assert in_order(component_sizes(np.zeros((4, 5, 6), np.uint8), 2)) == [[], []]


def test_classes_of_a_whole_parcellation():
    classes = np.zeros((40, 200, 300), np.uint16)
    classes[10:20, 50:60, 100:120] = 900
    classes[30, 199, 299] = 900
    assert in_order(component_sizes(classes, 900)) == [[]] * 899 + [[1, 2000]]


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
def test_types_and_layouts(order, dtype):
    classes = np.asarray(noise(1, (12, 14, 9), 2, 1.0), dtype, order=order)
    assert in_order(component_sizes(classes, 2)) == voxel_by_voxel(classes, 2)
    assert in_order(component_sizes(classes[::2, ::-1], 2)) == voxel_by_voxel(classes[::2, ::-1], 2)
