"""Slices and sequences that the image stages of MedGen3D learn from.

Every voxel's label says which volume it comes from and where it was; padding is 0. So each item
can be compared with the volume voxel by voxel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from medpair.data.cohort import LabelledVolume
from medpair.data.slice_pairs import FramedPairs, SliceSequences, ViewSlices
from medpair.data.slices import AXES
from medpair.data.traits import Traits

FRAME = (8, 8, 16)
# even and odd padding; the second volume is cropped along y
SIZES = ((6, 7, 11), (8, 9, 12))


def arrays(item: dict[str, Any]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in item.items() if isinstance(value, torch.Tensor)}


def volume(number: int, size: tuple[int, int, int]) -> LabelledVolume:
    x, y, z = np.indices(size)
    label = (number * 1_000_000 + z * 10_000 + y * 100 + x + 1).astype(np.int32)
    return LabelledVolume((label / 4e6).astype(np.float32), label)


VOLUMES = [volume(number, size) for number, size in enumerate(SIZES)]


def pairs(flip: tuple[int, ...] = ()) -> FramedPairs:
    return FramedPairs(VOLUMES, FRAME, flip)


def sequences(flip: tuple[int, ...] = (), **options: Any) -> SliceSequences:
    return SliceSequences(pairs(flip), **{"axis": 2, "begin": 0.0, "length": 100, **options})


def places(label: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the volume and the coordinates (voxels, 3) of everything that is not padding."""
    code = label[label > 0] - 1
    numbers = np.unique(code // 1_000_000)
    assert len(numbers) == 1
    return int(numbers[0]), np.stack([code % 100, code // 100 % 100, code // 10_000 % 100], axis=1)


def heights(label: np.ndarray, axis: int = 2) -> list[int]:
    """Return where each slice of a stack lies along the axis."""
    found = [np.unique(places(plane)[1][:, axis]) for plane in label]
    assert all(len(values) == 1 for values in found)
    return [int(values[0]) for values in found]


def plane_of(label: np.ndarray, axis: int, height: int) -> np.ndarray:
    """Return a slice of a volume in its frame; padding even, the odd voxel behind."""
    kept, target = [], []
    for n, f in zip(label.shape, FRAME, strict=True):
        first = (n - f) // 2 if n > f else 0
        kept.append(slice(first, first + min(n, f)))
        start = 0 if n > f else (f - n) // 2
        target.append(slice(start, start + min(n, f)))
    frame = np.zeros(FRAME, label.dtype)
    frame[tuple(target)] = label[tuple(kept)]
    return np.moveaxis(frame, axis, 0)[height + target[axis].start - kept[axis].start]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_sequences_are_consecutive_slices_in_both_directions(axis: int) -> None:
    data = sequences(axis=axis, past=2, radius=1, lengths=(3, 3))
    directions, starts = set(), set()
    for index in range(250):
        item = arrays(data[index])
        number, _ = places(item["label"])
        source = VOLUMES[number].label
        low = max(0, (source.shape[axis] - FRAME[axis]) // 2)
        high = low + min(source.shape[axis], FRAME[axis]) - 1
        drawn = heights(item["label"][3:-1], axis)
        step = drawn[1] - drawn[0]
        assert step in (-1, 1)
        directions.add(step)
        starts.add((number, drawn[0]))
        expected = np.clip(drawn[0] + step * np.arange(-3, 4), low, high)
        planes = np.stack([plane_of(source, axis, int(z)) for z in expected])
        np.testing.assert_array_equal(item["label"], planes)
        # places are those in the frame, whatever the direction
        offset = (FRAME[axis] - min(source.shape[axis], FRAME[axis])) // 2
        place = (np.array(drawn) - low + offset) / FRAME[axis]
        np.testing.assert_allclose(item["position"], place, rtol=1e-6)
        # images go without the slices around them
        shown = planes[1:-1]
        np.testing.assert_array_equal(item["inside"], shown > 0)
        image = np.where(shown > 0, (shown / 4e6).astype(np.float32), -1.0)
        np.testing.assert_array_equal(item["image"], image.astype(np.float32))
        past = drawn[0] + step * np.arange(-2, 0)
        np.testing.assert_array_equal(item["available"], (past >= low) & (past <= high))
    assert directions == {-1, 1}
    for number, source in enumerate(VOLUMES):
        low = max(0, (source.label.shape[axis] - FRAME[axis]) // 2)
        high = low + min(source.label.shape[axis], FRAME[axis]) - 1
        assert {z for n, z in starts if n == number} == set(range(low, high + 1))


def test_beginnings_are_learned_by_withholding_the_past() -> None:
    for share in (0.0, 0.3, 1.0):
        data = sequences(begin=share, length=400, past=1, lengths=(2, 2))
        whole = sequences(begin=0.0, length=400, past=1, lengths=(2, 2))
        kept = [bool(data[i]["available"].all()) for i in range(400) if whole[i]["available"].all()]
        assert np.mean(kept) == pytest.approx(1 - share, abs=0.08)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_mirrored_pairs_stay_pairs(axis: int) -> None:
    data = sequences(flip=(axis,), lengths=(3, 3))
    seen = set()
    for index in range(60):
        item = arrays(data[index])
        number, _ = places(item["label"])
        shown = item["label"][1:-1]
        np.testing.assert_array_equal(item["inside"], shown > 0)
        image = np.where(shown > 0, (shown / 4e6).astype(np.float32), -1.0)
        np.testing.assert_array_equal(item["image"], image.astype(np.float32))
        source = VOLUMES[number].label
        drawn = heights(item["label"][3:-1])
        assert abs(drawn[1] - drawn[0]) == 1
        planes = np.stack([plane_of(source, 2, z) for z in drawn])
        if axis < 2:
            mirrored = np.flip(planes, axis + 1)
            same = np.array_equal(item["label"][3:-1], planes)
            assert same != np.array_equal(item["label"][3:-1], mirrored)
            seen.add(same)
        else:  # along the sequence: the same planes in either order
            np.testing.assert_array_equal(item["label"][3:-1], planes)
            seen.add(drawn[1] > drawn[0])
    assert seen == {True, False}


def test_one_mirrored_slice_is_a_tensor_too() -> None:
    data = ViewSlices(pairs((0, 1, 2)), 20)
    shown = [arrays(data[i]) for i in range(20)]
    for view, axis in AXES.items():
        mirrored = set()
        for item in shown:
            label = item[f"label_{view}"]
            number, _ = places(label)
            source = plane_of(VOLUMES[number].label, axis, heights(label[None], axis)[0])
            options = {
                turn: np.flip(source, turn) for turn in ((), (0,), (1,), (0, 1))
            }  # along the view's own axis a slice stays what it is
            found = [turn for turn, plane in options.items() if np.array_equal(plane, label)]
            assert len(found) == 1
            mirrored.add(found[0])
            np.testing.assert_array_equal(item[f"inside_{view}"], (label > 0)[None])
        assert len(mirrored) == 4


def test_sequences_grow_with_the_epochs() -> None:
    data = sequences(lengths=(2, 6), grow_every=10, past=2, radius=2)
    lengths = {epoch: data.sequence_length(epoch) for epoch in (0, 9, 10, 19, 20, 1000)}
    assert lengths == {0: 2, 9: 2, 10: 4, 19: 4, 20: 6, 1000: 6}
    for epoch, steps in lengths.items():
        item = data[epoch, 5]
        assert item["image"].shape == item["inside"].shape == (2 + steps, 8, 8)
        assert item["label"].shape == (2 + steps + 4, 8, 8)
        assert item["available"].shape == (2,)


def test_sequences_longer_than_a_volume_are_refused() -> None:
    with pytest.raises(ValueError, match=r"at most 11 slices, found \[2, 12\]"):
        sequences(lengths=(2, 12))
    with pytest.raises(ValueError, match=r"found \[4, 2\]"):
        sequences(lengths=(4, 2))


@pytest.mark.parametrize("kind", ["sequences", "views"])
def test_an_item_depends_on_seed_epoch_and_index_alone(kind: str) -> None:
    def dataset(seed: int) -> Any:
        source = pairs((0, 1))
        if kind == "views":
            return ViewSlices(source, 50, seed)
        return SliceSequences(source, 2, lengths=(2, 2), grow_every=1000, seed=seed)

    def equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
        return all(
            torch.equal(one[key], two[key]) for key in one if isinstance(one[key], torch.Tensor)
        )

    data, again = dataset(1), dataset(1)
    for index in (7, 3, 7):
        assert equal(data[2, index], again[2, index])
    assert equal(data[5], data[0, 5])
    for others in ([data[e, 5] for e in range(8)], [data[0, i] for i in range(8)]):
        same = [equal(a, b) for k, a in enumerate(others) for b in others[:k]]
        assert np.mean(same) < 0.1
    assert not all(equal(dataset(2)[0, i], data[0, i]) for i in range(3))


def test_an_item_has_a_true_slice_of_each_view() -> None:
    data = ViewSlices(pairs(), 120)
    assert len(data) == 120
    seen: dict[str, set[tuple[int, int]]] = {view: set() for view in AXES}
    together = set()
    for index in range(120):
        item = arrays(data[index])
        for view, axis in AXES.items():
            label, image, inside = (item[f"{key}_{view}"] for key in ("label", "image", "inside"))
            number, _ = places(label)
            (height,) = heights(label[None], axis)
            np.testing.assert_array_equal(label, plane_of(VOLUMES[number].label, axis, height))
            np.testing.assert_array_equal(inside, (label > 0)[None])
            expected = np.where(label > 0, (label / 4e6).astype(np.float32), -1)[None]
            np.testing.assert_array_equal(image, expected.astype(np.float32))
            seen[view].add((number, height))
        together.add(tuple(places(item[f"label_{view}"])[0] for view in AXES))
    # every true slice turns up, and the views come from volumes of their own
    for view, axis in AXES.items():
        count = sum(min(size[axis], FRAME[axis]) for size in SIZES)
        assert len(seen[view]) == count
    assert len(together) == 8


def test_sequences_know_their_volumes_contrast_nearly() -> None:
    volumes = []
    for number in range(4):
        label = np.zeros((6, 7, 11), np.uint8)
        label[:3] = 1
        # class 2 is in no volume
        image = np.where(label == 1, 0.2 * number, -0.1 * number).astype(np.float32)
        volumes.append(LabelledVolume(image, label, str(number)))
    framed_pairs = FramedPairs(volumes, FRAME, flip=(0,))
    means = framed_pairs.class_means(2)
    # padding is no part of a mean
    expected = np.array([[0.2 * n, np.nan] for n in range(4)])
    np.testing.assert_allclose(means, expected, atol=1e-6)
    traits = Traits.fit(["a", "b"], np.stack(means))
    for noise in (0.0, 0.25):
        known = SliceSequences(
            framed_pairs, 2, contrast=traits, contrast_noise=noise, begin=0.0, length=300
        )
        exact = traits.scores(expected)
        errors = []
        for index in range(300):
            item = known[index]
            assert item["contrast"].dtype == torch.float32
            errors.append(item["contrast"].numpy() - exact[int(item["case"])])
        assert np.stack(errors).std() == pytest.approx(noise, rel=0.1, abs=1e-4)
    plain = SliceSequences(framed_pairs, 2, begin=0.0, length=300)
    for index in range(10):
        item, other = plain[index], known[index]
        assert set(other) - set(item) == {"contrast"}
        assert all(np.array_equal(value, arrays(other)[key]) for key, value in arrays(item).items())
