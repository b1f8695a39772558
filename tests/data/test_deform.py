"""Deformed copies: image and label bent alike, as far as asked, by counters alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import label as scipy_label
from scipy.ndimage import map_coordinates
from tests.damage import edit_json

from medpair.data.cohort import LabelledVolume, read_cohort
from medpair.data.dataset import entry, write_dataset_json
from medpair.data.deform import (
    Deformation,
    bent_label,
    deformed_copies,
    positions,
    sample,
)
from medpair.data.files import Volume, write_volume
from medpair.data.intensity import robust_range, to_unit
from medpair.data.phantoms.cohort import KINDS
from medpair.data.sampling import case_counter, numpy_generator

SHAPE = (20, 24, 16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two volumes at 2 mm in which an image's voxel says its own number, and its label's class."""
    root = tmp_path_factory.mktemp("numbered")
    cases = []
    for number in range(2):
        image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) + number
        files = entry(f"case_{number}")
        affine = np.diag([2.0, 2.0, 2.0, 1.0])
        write_volume(root / files["image"], Volume(image, affine))
        write_volume(root / files["label"], Volume((image % 3).astype(np.uint8), affine))
        cases.append(files)
    write_dataset_json(root, "numbered", {"background": 0, "a": 1, "b": 2}, {"training": cases})
    return root


def copies(
    folder: Path, spacing: list[float] | None, deform: Deformation, seed: int = 0
) -> list[LabelledVolume]:
    cohort, _ = read_cohort(folder, None, spacing)
    return deformed_copies(folder, None, cohort, deform, seed)


def test_what_is_sampled_from_a_finer_grid_is_real_voxels_with_their_own_labels(
    folder: Path,
) -> None:
    """Nothing is averaged: a value is one of the stored ones, and its label that voxel's."""
    deform = Deformation(copies=3, degrees=5, millimetres=3)
    bent = copies(folder, [4, 4, 4], deform)
    assert [volume.case for volume in bent] == ["case_0"] * 3 + ["case_1"] * 3
    stored = np.arange(np.prod(SHAPE), dtype=np.float32).reshape(SHAPE)
    for index, volume in enumerate(bent):
        case, copy = divmod(index, 3)
        rng = numpy_generator(0, case_counter(f"case_{case}"), copy)
        at = positions(SHAPE, [2, 2, 2], [4, 4, 4], deform, rng)
        values = sample(stored, at, order=0) + index // 3
        np.testing.assert_array_equal(volume.image, to_unit(values, *robust_range(values)))
        np.testing.assert_array_equal(volume.label, values % 3)
    assert len({volume.image.tobytes() for volume in bent}) == 6
    _, whole = read_cohort(folder, None, [4, 4, 4])
    for kind in ("image", "label"):
        one, other = getattr(bent[0], kind), getattr(whole[0], kind)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_a_copy_depends_on_seed_volume_and_number_alone(folder: Path) -> None:
    three = copies(folder, [4, 4, 4], Deformation(copies=3))
    two = copies(folder, [4, 4, 4], Deformation(copies=2))
    for volume, same in zip(two, [*three[:2], *three[3:5]], strict=True):
        np.testing.assert_array_equal(volume.image, same.image)
        np.testing.assert_array_equal(volume.label, same.label)
    other = copies(folder, [4, 4, 4], Deformation(copies=1), seed=1)
    assert not np.array_equal(other[0].image, two[0].image)
    assert copies(folder, [4, 4, 4], Deformation()) == []


def test_a_turn_is_a_turn_and_a_bend_is_as_strong_as_asked() -> None:
    shape, spacing = (21, 17, 13), (4.0, 4.0, 6.0)
    scale = np.array(spacing)[:, None]
    middle = (np.array(shape) - 1)[:, None] * scale / 2
    still = Deformation(copies=1, degrees=0, millimetres=0)
    plain = positions(shape, spacing, spacing, still, numpy_generator(0)).reshape(3, -1) * scale
    own = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")).reshape(3, -1)
    moved = plain - own * scale
    assert np.ptp(moved, axis=1).max() < 1e-9
    assert (abs(moved[:, 0]) <= 0.5 * np.array(spacing)).all()
    turned = Deformation(copies=1, degrees=5, millimetres=0)
    angles = []
    for seed in range(100):
        at = positions(shape, spacing, spacing, turned, numpy_generator(seed)).reshape(3, -1)
        straight = positions(shape, spacing, spacing, still, numpy_generator(seed)).reshape(3, -1)
        after, before = at * scale - middle, straight * scale - middle
        np.testing.assert_allclose(np.linalg.norm(after, axis=0), np.linalg.norm(before, axis=0))
        turn = after @ before.T @ np.linalg.inv(before @ before.T)
        assert np.linalg.det(turn) == pytest.approx(1)
        angles.append(np.degrees(np.arccos((np.trace(turn) - 1) / 2)))
    # three axes, each cut at two standard deviations (0.88 of the deviation is left)
    assert np.sqrt(np.mean(np.square(angles)) / 3) == pytest.approx(5 * 0.88, rel=0.15)
    bent = Deformation(copies=1, degrees=0, millimetres=2)
    off = []
    for seed in range(40):
        at = positions(shape, spacing, spacing, bent, numpy_generator(seed))
        straight = positions(shape, spacing, spacing, still, numpy_generator(seed))
        off.append(((at - straight) * np.array(spacing)[:, None, None, None])[:, ::20, ::16, ::12])
    assert np.std(off) == pytest.approx(2, rel=0.1)  # the corners are nodes


def test_bends_are_cubic_splines_between_nodes() -> None:
    """As three matrices they are what SciPy's interpolation in three dimensions says."""
    shape, one = (40, 33, 25), (1.0, 1.0, 1.0)
    bend = Deformation(copies=1, degrees=0, millimetres=2)
    still = Deformation(copies=1, degrees=0, millimetres=0)
    at = [positions(shape, one, one, deform, numpy_generator(5)) for deform in (bend, still)]
    rng = numpy_generator(5)
    rng.uniform(size=3)
    rng.normal(size=3)
    nodes = rng.normal(0, 2, (3, 3, 3, 2))  # 28 mm apart at most
    places = [np.linspace(0, m - 1, n) for m, n in zip((3, 3, 2), shape, strict=True)]
    between = np.stack(np.meshgrid(*places, indexing="ij"))
    expected = [map_coordinates(node, between, order=3, mode="nearest") for node in nodes]
    np.testing.assert_allclose(at[0] - at[1], expected, atol=1e-12)


def turned_grid(shape: tuple[int, int, int], seed: int) -> np.ndarray:
    one = (1.0, 1.0, 1.0)
    return positions(shape, one, one, Deformation(1, 8.0, 1.0), numpy_generator(seed))


def test_outlines_of_bent_labels_are_nearer_to_the_truth_than_the_nearest_voxels() -> None:
    """Of a ball whose bent form is known exactly; its size is that of the nearest voxels."""
    shape = (24, 24, 24)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(float)

    def ball(at: np.ndarray) -> np.ndarray:
        """Two halves of a ball, classes 3 and 7."""
        far = np.linalg.norm(at - 11.6, axis=0)
        return np.where(far > 7.3, 0, np.where(at[0] > 11.3, 7, 3)).astype(np.uint8)

    wrong = np.zeros(2)
    for seed in range(4):
        at = turned_grid(shape, seed)
        stored, truth = ball(places), ball(at)
        nearest, bent = sample(stored, at, 0), bent_label(stored, at)
        assert set(np.unique(bent)) == {0, 3, 7}
        assert bent.dtype == stored.dtype
        assert (bent > 0).sum() == (nearest > 0).sum()
        wrong += (nearest != truth).sum(), (bent != truth).sum()
    assert wrong[1] < 0.8 * wrong[0]


def test_bent_vessels_are_not_thinned_out() -> None:
    shape = (64, 64, 48)
    pieces = np.zeros(2)
    for seed in range(3):
        phantom = KINDS["vessels"].make(shape, seed=seed, spacing=(1.0, 1.0, 1.0))
        at = turned_grid(shape, seed)
        nearest, bent = sample(phantom.label, at, 0), bent_label(phantom.label, at)
        share = map_coordinates((phantom.label > 0).astype(float), at, order=1, mode="nearest")
        # where the membership is above one half alone, they would be a tenth thinner or more
        assert (bent > 0).sum() == (nearest > 0).sum() > 1.1 * (share > 0.5).sum()
        pieces += [scipy_label(array, np.ones((3, 3, 3)))[1] for array in (bent > 0, share > 0.5)]
    assert pieces[0] < 0.7 * pieces[1]  # nor into pieces


@pytest.mark.parametrize("kind", ["vessels", "brain"])
def test_membership_need_not_be_looked_for_far_from_labels(kind: str) -> None:
    """The same voxels come out as of the whole volume's splines, thin vessels too."""
    label = KINDS[kind].make((48, 40, 32), seed=0, spacing=(1.0, 1.0, 1.0)).label
    at = positions(label.shape, (1, 1, 1), (0.8, 1, 1.2), Deformation(1), numpy_generator(1))
    nearest = sample(label, at, 0)
    shares = np.stack(
        [map_coordinates((label == k) * 1.0, at, order=3, mode="nearest") for k in range(1, 5)]
    )
    inside = np.argsort(-shares.sum(0).ravel(), kind="stable")[: (nearest > 0).sum()]
    expected = np.zeros(nearest.size, label.dtype)
    expected[inside] = shares.reshape(4, -1).argmax(0)[inside] + 1
    np.testing.assert_array_equal(bent_label(label, at).ravel(), expected)


def test_a_label_read_where_it_lies_is_itself_and_nothing_stays_nothing() -> None:
    label = np.random.default_rng(0).integers(0, 4, (6, 7, 8)).astype(np.uint16)
    at = np.stack(np.meshgrid(*map(np.arange, label.shape), indexing="ij")).astype(float)
    np.testing.assert_array_equal(bent_label(label, at), label)
    assert not bent_label(np.zeros_like(label), at).any()


def test_images_on_their_own_grid_are_interpolated_and_classes_stay_classes(folder: Path) -> None:
    volume = copies(folder, None, Deformation(copies=1, degrees=0, millimetres=0))[0]
    assert set(np.unique(volume.label)) == {0, 1, 2}
    inner = volume.image[6:-6, 6:-6, 6:-6]
    # of a ramp in voxel numbers, moved by half a voxel at most, the steps stay those of the ramp,
    # but for what a spline makes of the border
    for axis, ratio in ((0, 24), (1, 1)):
        step = np.diff(inner, axis=axis).mean() / np.diff(inner, axis=2).mean()
        assert step == pytest.approx(SHAPE[2] * ratio, rel=0.01)
    ramp = np.arange(8.0).reshape(2, 2, 2)
    assert sample(ramp, np.array([9.0, -3, 1]).reshape(3, 1, 1, 1), order=0).item() == 5


def test_splines_keep_more_of_an_images_noise_than_straight_lines_do() -> None:
    noise = np.random.default_rng(0).normal(size=(24, 24, 24)).astype(np.float32)
    at = np.stack(np.meshgrid(*(np.arange(4, 20) + 0.25,) * 3, indexing="ij"))
    kept = {order: sample(noise, at, order).std() for order in (1, 3)}
    # a quarter of a voxel off, straight lines leave (0.75^2 + 0.25^2)^(1/2) along each axis
    assert kept[1] == pytest.approx(0.625**1.5, rel=0.05)
    assert kept[3] > 0.8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"copies": -1}, "deformed_copies: expected a whole number of at least 0, found -1"),
        ({"copies": 1.5}, "deformed_copies: expected a whole number of at least 0, found 1.5"),
        ({"copies": True}, "deformed_copies: expected a whole number of at least 0, found True"),
        ({"degrees": "3"}, "turn_degrees: expected a number, found '3'"),
        ({"millimetres": float("inf")}, "bend_millimetres: expected a finite number of at least 0"),
        ({"millimetres": float("nan")}, "bend_millimetres: expected a finite number of at least 0"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Deformation(**given)  # type: ignore[arg-type]


def test_a_case_has_the_same_copies_whoever_else_is_there(folder: Path, tmp_path: Path) -> None:
    """A guarantee for one volume rests on the others being as they were without it."""
    alone = tmp_path / "alone"
    shutil.copytree(folder, alone)
    edit_json(alone, lambda content: content["training"].pop(0))
    deform = Deformation(copies=2)
    both, one = copies(folder, [4, 4, 4], deform), copies(alone, [4, 4, 4], deform)
    assert [volume.case for volume in one] == ["case_1"] * 2
    for here, there in zip(both[2:], one, strict=True):
        np.testing.assert_array_equal(here.image, there.image)
