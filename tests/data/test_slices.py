"""Frames, and the windows of slices that MC-DPM learns from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from medpair.data.cohort import LabelledVolume
from medpair.data.slices import (
    Box,
    LabelWindows,
    axis_of,
    fitting_frame,
    frame_box,
    framed,
    label_box,
    moved,
    next_frame,
    unframed,
)

# Every voxel of the frame tells where it is: z, y and x as digits
FRAME = (6, 8, 32)


def numbered(size: tuple[int, int, int] = FRAME) -> np.ndarray:
    x, y, z = np.indices(size)
    return (1 + x + 10 * y + 100 * z).astype(np.int32)


def windows(label: np.ndarray | None = None, **options: object) -> LabelWindows:
    label = numbered() if label is None else label
    volume = LabelledVolume(np.zeros(label.shape, np.float32), label)
    return LabelWindows([volume], **{"frame": FRAME, "axis": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", itertools.product((5, 6, 9), (7, 8), (3, 12)))
def test_framing_and_back(size: tuple[int, int, int]) -> None:
    array, frame = numbered(size), (8, 7, 8)
    inside = framed(array, frame, -5)
    assert inside.shape == frame
    kept = unframed(inside, size)
    assert kept.shape == tuple(min(n, f) for n, f in zip(size, frame, strict=True))
    # what was cropped is the margin, evenly, the odd voxel behind
    middle = array[tuple(slice((n - k) // 2, (n - k) // 2 + k) for n, k in _pairs(size, frame))]
    np.testing.assert_array_equal(kept, middle)
    box = frame_box(size, frame)
    assert box.sum() == kept.size
    np.testing.assert_array_equal(inside[box == 1], middle.ravel())
    assert (inside[box == 0] == -5).all()
    # padding is even, the odd voxel behind
    for axis, (n, f) in enumerate(zip(size, frame, strict=True)):
        filled = np.flatnonzero(box.any(axis=tuple(a for a in range(3) if a != axis)))
        assert filled[0] == max(0, (f - n) // 2)


def _pairs(size: tuple[int, ...], frame: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(n, min(n, f)) for n, f in zip(size, frame, strict=True)]


def test_frames_of_cohorts_and_volumes(caplog: pytest.LogCaptureFixture) -> None:
    assert fitting_frame([(10, 20, 9), (17, 16, 8)], 8) == [24, 24, 16]
    assert caplog.messages == []
    assert fitting_frame([(300, 20, 9)], 8, (256, 256, 256)) == [256, 24, 16]
    (warning,) = caplog.messages
    assert (
        "volumes of up to 300 x 20 x 9 voxels are cut to the middle 256 x 24 x 16 along x"
        in warning
    )
    assert next_frame((10, 17, 33), (16, 16, 32), 8) == (16, 24, 40)
    assert [axis_of(view) for view in ("sagittal", "coronal", "axial")] == [0, 1, 2]
    with pytest.raises(ValueError, match=r"slicing_axis: expected one of .*, found 'top'"):
        axis_of("top")


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_window_is_where_its_position_says(axis: int) -> None:
    data = windows(axis=axis, window=4, overlap=2, length=60)
    height = FRAME[axis]
    starts = []
    for item in (data[i] for i in range(len(data))):
        first = round(float(item["position"]) * height)
        expected = np.moveaxis(numbered(), axis, 0)[first : first + 4]
        np.testing.assert_array_equal(item["label"].numpy(), expected)
        starts.append(first)
    # the first window and the last one are met too
    assert set(starts) >= {0, height - 4}
    assert max(starts) == height - 4


def test_known_slices_follow_the_probabilities() -> None:
    data = windows(window=8, overlap=4, probabilities=(0.5, 0.3, 0.2), more_known=0.25, length=4000)
    known = torch.stack([data[i]["known"] for i in range(len(data))]).numpy()
    count = known.sum(axis=1).astype(int)
    forward, backward = known[:, 0] == 1, known[:, -1] == 1
    assert not (forward & backward).any()
    assert forward.mean() == pytest.approx(0.5, abs=0.03)
    assert backward.mean() == pytest.approx(0.3, abs=0.03)
    assert (count == 0).mean() == pytest.approx(0.2, abs=0.03)
    # given slices are the first or the last ones, without a gap
    for row, n in zip(known[forward], count[forward], strict=True):
        assert row[:n].all()
        assert not row[n:].any()
    for row, n in zip(known[backward], count[backward], strict=True):
        assert row[8 - n :].all()
    given = count[count > 0]
    assert set(given) == {4, 5, 6, 7}
    # a quarter draws from 4..7, of which one in four is n again
    for n in (5, 6, 7):
        assert (given == n).mean() == pytest.approx(0.25 / 4, abs=0.015)


def test_probabilities_that_nearly_sum_to_one_are_taken() -> None:
    data = windows(window=4, overlap=2, probabilities=(0.3333333, 0.3333333, 0.3333333))
    assert data[0]["known"].shape == (4,)


def test_items_depend_on_seed_epoch_and_index_alone() -> None:
    options = {"window": 4, "overlap": 2, "shift": 2, "flip": [0, 2], "length": 50}
    one, two = windows(seed=3, **options), windows(seed=3, **options)
    keys = [(epoch, index) for epoch in (0, 1) for index in range(20)]
    forwards = {key: one[key] for key in keys}
    for key in reversed(keys):
        for name, value in two[key].items():
            assert np.array_equal(value, forwards[key][name])
    assert np.array_equal(one[7]["label"], one[0, 7]["label"])

    def signature(item: dict) -> bytes:
        return item["label"].numpy().tobytes() + item["known"].numpy().tobytes()

    assert len({signature(item) for item in forwards.values()}) > 35
    other = windows(seed=4, **options)
    assert sum(signature(other[key]) == signature(forwards[key]) for key in keys) < 5


def test_shift_moves_the_volume_by_whole_voxels() -> None:
    data = windows(window=4, overlap=2, shift=2, length=200)
    full = numbered()
    seen = set()
    for item in (data[i] for i in range(len(data))):
        first = round(float(item["position"]) * FRAME[2])
        label = item["label"].numpy()
        inner = label[0, 3, 4]  # the shift reaches no further than this
        place = np.array([(inner - 1) % 10, (inner - 1) // 10 % 10, (inner - 1) // 100])
        offset = np.array([3, 4, first]) - place
        if 3 <= first <= FRAME[2] - 8:
            assert np.abs(offset).max() <= 2
            seen.add(tuple(offset.tolist()))
            expected = np.zeros((6, 8), np.int32)
            down, right = int(offset[0]), int(offset[1])
            source = full[:, :, first + 1 - offset[2]]
            expected[max(down, 0) : 6 + min(down, 0), max(right, 0) : 8 + min(right, 0)] = source[
                max(-down, 0) : 6 - max(down, 0), max(-right, 0) : 8 - max(right, 0)
            ]
            np.testing.assert_array_equal(label[1], expected)
    assert len(seen) > 50


def test_moved_planes_lose_what_goes_out() -> None:
    planes = np.arange(1, 13).reshape(1, 3, 4)
    assert moved(planes, (1, -1), 0)[0].tolist() == [[0, 0, 0, 0], [2, 3, 4, 0], [6, 7, 8, 0]]
    assert moved(planes, (0, 0), 0) is planes


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_flip_mirrors_the_axes_it_names(axis: int) -> None:
    for flipped in range(3):
        data = windows(axis=axis, window=4, overlap=2, flip=[flipped], length=60)
        mirrored = np.moveaxis(np.flip(numbered(), flipped), axis, 0)
        plain = np.moveaxis(numbered(), axis, 0)
        kinds = []
        for item in (data[i] for i in range(len(data))):
            first = round(float(item["position"]) * FRAME[axis])
            label = item["label"].numpy()
            choices = [np.array_equal(label, v[first : first + 4]) for v in (plain, mirrored)]
            assert sum(choices) == 1
            kinds.append(choices[1])
        assert 0.25 < np.mean(kinds) < 0.75


def test_length_and_refusals() -> None:
    assert len(windows(window=4, overlap=2)) == 32 // 4
    assert len(windows(window=4, overlap=2, length=11)) == 11
    for options in ({"window": 4, "overlap": 4}, {"window": 33}, {"overlap": 0}):
        with pytest.raises(ValueError, match="expected 1 <= overlap < window <= 32 slices"):
            windows(**options)
    for wrong in [(0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.5, 0.5)]:
        with pytest.raises(ValueError, match="expected p_F, p_B, p_U with sum 1"):
            windows(window=4, overlap=2, probabilities=wrong)


def test_windows_know_their_volumes_sizes_nearly() -> None:
    volumes = [
        LabelledVolume(np.zeros(FRAME, np.float32), numbered() + 10_000 * i) for i in range(3)
    ]
    scores = np.array([[0.0, 1.0], [10.0, 11.0], [20.0, 21.0]], np.float32)
    known = LabelWindows(volumes, FRAME, 2, sizes=scores, length=600)
    items = [known[i] for i in range(600)]
    numbers = np.array([int(item["label"].max()) // 10_000 for item in items])
    found = np.stack([item["sizes"].numpy() for item in items])
    assert found.dtype == np.float32
    noise = found - scores[numbers]
    assert abs(noise).max() < 2
    assert noise.std() == pytest.approx(0.25, rel=0.1)
    # the rest of an item is the same with and without
    plain = LabelWindows(volumes, FRAME, 2, length=600)
    for index in range(20):
        item = plain[index]
        assert "sizes" not in item
        assert all(np.array_equal(value, items[index][key]) for key, value in item.items())
    exact = LabelWindows(volumes, FRAME, 2, sizes=scores, size_noise=0.0)
    assert {tuple(exact[i]["sizes"].tolist()) for i in range(40)} == set(
        map(tuple, scores.tolist())
    )


def labelled(*spans: tuple[int, int], size: tuple[int, int, int] = (20, 24, 32)) -> LabelledVolume:
    """A volume whose label fills the box between the first and last voxels along each axis."""
    label = np.zeros(size, np.uint8)
    label[tuple(slice(first, last) for first, last in spans)] = 2
    return LabelledVolume(np.zeros(size, np.float32), label)


def test_the_box_holds_the_labels_of_all_volumes_and_their_margin() -> None:
    frame = (24, 24, 32)  # two voxels of padding before the first along x
    volumes = [labelled((3, 7), (9, 13), (20, 30)), labelled((5, 9), (2, 8), (22, 25))]
    plain = label_box(volumes, frame, multiple=1, margin=0)
    assert plain == Box((5, 2, 20), (6, 11, 10))
    for volume in volumes:
        whole = framed(volume.label, frame, 0)
        assert np.count_nonzero(plain.cut(whole)) == np.count_nonzero(volume.label)
    # 6 + 4 in eights, its labels in the middle; 11 + 4; 10 + 4 would end beyond the frame
    assert label_box(volumes, frame, margin=2) == Box((0, 0, 16), (16, 16, 16))
    assert label_box(volumes, frame, shift=1, margin=1) == label_box(volumes, frame, margin=2)
    assert label_box(volumes, frame, multiple=1, least=12, margin=0).size == (12, 12, 12)
    assert label_box(volumes, frame, margin=40) == Box((0, 0, 0), frame)
    assert label_box(volumes, frame, multiple=1).size == (14, 19, 18)  # a margin by default


def test_without_labels_or_unwanted_the_box_is_the_frame() -> None:
    volume = labelled((3, 7), (9, 13), (20, 30))
    assert label_box([volume], (24, 24, 32), wanted=False) == Box((0, 0, 0), (24, 24, 32))
    nothing = labelled((0, 0), (0, 0), (0, 0))
    assert label_box([nothing], (24, 24, 32)) == Box((0, 0, 0), (24, 24, 32))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_windows_of_a_box_are_parts_of_those_of_the_frame(axis: int) -> None:
    label, box = numbered(), Box((1, 2, 8), (4, 5, 16))
    expected = np.moveaxis(label[1:5, 2:7, 8:24], axis, 0)
    data = windows(label, box=box, axis=axis, window=3, overlap=1, length=30)
    assert len({float(data[index]["position"]) for index in range(30)}) > 1
    for index in range(30):
        item = data[index]
        first = round(float(item["position"]) * box.size[axis])
        np.testing.assert_array_equal(item["label"], expected[first : first + 3])


def test_moved_within_their_margin_no_label_leaves_the_box() -> None:
    volume = labelled((5, 14), (6, 13), (10, 21))
    box = label_box([volume], (20, 24, 32), shift=2, multiple=1, margin=0)
    options = {"frame": (20, 24, 32), "axis": 2, "box": box, "shift": 2, "window": box.size[2]}
    data = LabelWindows([volume], **options, overlap=1, length=40)  # type: ignore[arg-type]
    expected = np.count_nonzero(volume.label)
    assert {int((data[index]["label"] > 0).sum()) for index in range(40)} == {expected}
