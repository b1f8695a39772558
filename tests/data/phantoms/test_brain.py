"""The simulated T1-weighted heads: tissues, contrast, folds, and what differs between volumes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import ndimage

from medpair.data.phantoms import Phantom
from medpair.data.phantoms.brain import BRAIN_LABELS, brain_phantom

SIZE, SPACING = (64, 64, 48), (6.0, 6.0, 6.0)
ANYHOW = np.ones((3, 3, 3))  # voxels hang together by corners too


@pytest.fixture(scope="module")
def default() -> Phantom:
    return brain_phantom(seed=1)


@pytest.fixture(scope="module")
def coarse() -> list[Phantom]:
    return [brain_phantom(SIZE, seed, SPACING) for seed in range(5)]


def mean(phantom: Phantom, name: str) -> float:
    """Mean grey value of a tissue."""
    return float(phantom.image[phantom.label == BRAIN_LABELS[name]].mean())


def test_default_grid(default: Phantom) -> None:
    assert default.image.shape == default.label.shape == default.roi.shape == (90, 120, 120)
    assert default.spacing == (2.0, 2.0, 2.0)
    assert (default.image.dtype, default.label.dtype, default.roi.dtype) == (
        np.int16,
        np.uint8,
        np.uint8,
    )


def test_every_tissue_is_there_in_one_piece(default: Phantom, coarse: list[Phantom]) -> None:
    coarser = [brain_phantom((48, 48, 32), seed, (8.0, 8.0, 9.0)) for seed in range(5)]
    for phantom in (default, *coarse, *coarser):
        assert set(np.unique(phantom.label)) == set(BRAIN_LABELS.values())
        for name, value in BRAIN_LABELS.items():
            if name != "background":
                assert ndimage.label(phantom.label == value, ANYHOW)[1] == 1, name


def test_volumes_are_those_of_an_adult(default: Phantom) -> None:
    millilitres = np.bincount(default.label.ravel()) * np.prod(default.spacing) / 1000
    assert 15 < millilitres[BRAIN_LABELS["subcortical"]] < 60
    assert 300 < millilitres[BRAIN_LABELS["white_matter"]] < 700
    assert 150 < millilitres[BRAIN_LABELS["csf"]] < 600
    assert 450 < millilitres[BRAIN_LABELS["cortex"]] < 900


def test_t1_contrast(default: Phantom, coarse: list[Phantom]) -> None:
    for phantom in (default, *coarse):
        order = ["csf", "cortex", "subcortical", "white_matter"]
        signal = [mean(phantom, name) for name in order]
        assert signal == sorted(signal)
        air = phantom.image[phantom.roi == 0].mean()
        assert air < 0.3 * signal[0]
        # Around the brain the skull is dark, and outside of it the fat of the scalp bright.
    inside = default.label > 0
    shells = [inside]
    for _ in range(8):
        shells.append(ndimage.binary_dilation(shells[-1]))
    upper = np.arange(default.label.shape[2]) > 0.7 * default.label.shape[2]
    rings = [
        default.image[b & ~a & (default.roi > 0) & upper] for a, b in itertools.pairwise(shells)
    ]
    medians = np.array([np.median(ring) for ring in rings])
    assert medians[:3].min() < 0.4 * mean(default, "white_matter")
    assert medians[3:].max() > mean(default, "cortex")


def test_the_whole_head_is_seen(default: Phantom, coarse: list[Phantom]) -> None:
    for phantom in (default, *coarse):
        assert not phantom.label[[0, -1]].any()
        assert not phantom.label[:, [0, -1]].any()
        assert not phantom.label[:, :, [0, -1]].any()
        assert phantom.roi[phantom.label > 0].all()
        spread = np.ptp(np.argwhere(phantom.roi), axis=0) / phantom.roi.shape
        assert spread.max() > 0.8


def test_cortex_is_folded(default: Phantom) -> None:
    # Folding brings fluid and cortex far under the surface of the brain.
    brain = ndimage.binary_closing(default.label > 0, iterations=2)
    depth = ndimage.distance_transform_edt(brain, default.spacing)
    upper = np.arange(depth.shape[2]) > 0.6 * depth.shape[2]
    deep = (depth > 8) & (depth < 16) & upper
    share = np.bincount(default.label[deep], minlength=5) / deep.sum()
    assert 0.04 < share[BRAIN_LABELS["csf"]] < 0.4
    assert 0.25 < share[BRAIN_LABELS["cortex"]] < 0.8
    assert 0.1 < share[BRAIN_LABELS["white_matter"]] < 0.7
    # It lines the fluid: beneath the outer surface white matter and fluid hardly touch.
    fluid = (default.label == BRAIN_LABELS["csf"]) & deep
    around = default.label[ndimage.binary_dilation(fluid) & ~fluid & deep]
    near = np.bincount(around, minlength=5)
    assert near[BRAIN_LABELS["white_matter"]] < 0.2 * near[BRAIN_LABELS["cortex"]]


def test_deep_nuclei_lie_deep_and_on_both_sides(default: Phantom, coarse: list[Phantom]) -> None:
    for phantom in (default, *coarse):
        nuclei = np.argwhere(phantom.label == BRAIN_LABELS["subcortical"])
        everything = np.argwhere(phantom.label > 0)
        low, high = everything.min(0), everything.max(0)
        middle = (low + high) / 2
        assert np.all(np.abs(nuclei.mean(0) - middle) < 0.15 * (high - low))
        right = (nuclei[:, 0] > everything[:, 0].mean()).mean()
        assert 0.3 < right < 0.7


def test_same_seed_same_volume_other_seed_other_volume(coarse: list[Phantom]) -> None:
    again = brain_phantom(SIZE, 2, SPACING)
    np.testing.assert_array_equal(again.image, coarse[2].image)
    np.testing.assert_array_equal(again.label, coarse[2].label)
    counts = np.array([np.bincount(p.label.ravel(), minlength=5)[1:] for p in coarse])
    spread = counts.std(0) / counts.mean(0)
    assert np.all(spread > 0.03)
    assert np.all(spread < 0.5)
    assert (coarse[0].label != coarse[1].label).mean() > 0.03
    white = [mean(p, "white_matter") for p in coarse]
    assert max(white) > 1.5 * min(white)  # the scale is arbitrary


def test_coil_is_uneven(default: Phantom) -> None:
    white = ndimage.binary_erosion(default.label == BRAIN_LABELS["white_matter"])
    at, values = np.argwhere(white), default.image[white]
    columns = np.column_stack([np.ones(len(at)), at / default.label.shape])
    fit = columns @ np.linalg.lstsq(columns, values, rcond=None)[0]
    assert np.ptp(fit) > 0.02 * values.mean()


@pytest.mark.parametrize(
    "wrong", [{"size": (64, 64)}, {"size": (64, 64, 8)}, {"spacing": (0, 1, 1)}, {"seed": -1}]
)
def test_what_cannot_be_used_is_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        brain_phantom(**wrong)
