"""All classes at once give what each class alone gives."""

from __future__ import annotations

import numpy as np
import pytest

from medpair.data.sampling import numpy_generator
from medpair.engines.scoring import score
from medpair.metrics.class_overlap import class_dice, class_masks
from medpair.metrics.distance import dice

SPACING = (0.5, 1.0, 2.0)


def maps(seed: int, num_labels: int) -> tuple[np.ndarray, np.ndarray]:
    """Two maps of blocks; class 3 is in the first alone, 4 in the second alone, 5 in neither."""
    rng = numpy_generator(seed)
    first = np.kron(rng.integers(0, num_labels + 1, (4, 3, 5)), np.ones((3, 4, 2))).astype(np.uint8)
    second = np.where(rng.random(first.shape) < 0.2, 0, np.roll(first, 1, axis=0)).astype(np.uint8)
    first[np.isin(first, (4, 5))] = 0
    second[np.isin(second, (3, 5))] = 0
    return first, second


@pytest.mark.parametrize("num_labels", [5, 20])
@pytest.mark.parametrize("inside", [False, True])
def test_scores_of_cut_masks_are_those_of_whole_ones(num_labels: int, inside: bool) -> None:
    first, second = maps(num_labels, num_labels)
    region = None
    if inside:  # class 1 is left in one of the two maps alone
        region = numpy_generator(1).random(first.shape) < 0.7
        region &= second != 1
    pairs = list(class_masks((first, np.asfortranarray(second)), num_labels, region))
    assert len(pairs) == num_labels
    kept = np.ones(first.shape, bool) if region is None else region
    sizes = []
    for value, pair in enumerate(pairs, start=1):
        plain = ((first == value) & kept, (second == value) & kept)
        assert score(*pair, SPACING) == score(*plain, SPACING)
        sizes.append(pair[0].size)
    assert min(sizes) < first.size
    diagonal = float(np.linalg.norm(np.multiply(first.shape, SPACING)))
    assert score(*pairs[2], SPACING)["bahd_mm"] == diagonal
    assert score(*pairs[4], SPACING)["dsc"] == 1


def test_dice_of_all_classes_is_that_of_each() -> None:
    first, second = maps(7, 9)
    found = class_dice(first, second.astype(np.int64), 9)
    for value in range(1, 10):
        pair = (first == value, second == value)
        if value == 5:
            assert np.isnan(found[value - 1])
        else:
            assert found[value - 1] == dice(*pair)
    # a class of another label set does not count
    assert np.array_equal(class_dice(first, second, 4), found[:4])
    with pytest.raises(ValueError, match="expected shape"):
        class_dice(first, second[1:], 9)
