"""The simulated angiograms: growth, rasterisation, signal, and the volumes they become."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medpair.data.phantoms.capsules import Capsules, centreline_voxels, rasterise
from medpair.data.phantoms.head import (
    SCALP_DEPTH,
    Tissue,
    head_distance,
    intracranial_distance,
)
from medpair.data.phantoms.tof import blood_signal, draw_scan, rician, tissue_signal
from medpair.data.phantoms.vessel_anatomy import Variant, draw_variant
from medpair.data.phantoms.vessel_tree import (
    MURRAY_EXPONENT,
    TAPER,
    Join,
    grow_vessels,
    murray_radii,
)
from medpair.data.phantoms.vessels import artery_label, vessel_phantom

SPACING = (0.5, 0.5, 0.7)
WHOLE_HEAD = {"size": (164, 204, 48), "spacing": (1.0, 1.0, 1.4)}
COMPLETE = Variant(acom=True, a1=(True, True), pcom=(True, True), fetal=(False, False))


@pytest.fixture(scope="module")
def tree():
    return grow_vessels(np.random.default_rng(3), COMPLETE)


@pytest.fixture(scope="module")
def phantoms():
    return [vessel_phantom(seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def whole_head():
    return vessel_phantom(**WHOLE_HEAD, seed=1)


# The tree


def test_murray_at_every_branching(tree):
    assert MURRAY_EXPONENT == 3
    edges = np.flatnonzero(tree.parent >= 0)
    flow = np.zeros(len(tree.parent))
    np.add.at(flow, tree.parent[edges], tree.start_radius[edges] ** 3)
    children = np.bincount(tree.parent[edges], minlength=len(tree.parent))
    assert (children >= 2).sum() > 300
    np.testing.assert_allclose(tree.radius[children > 0] ** 3, flow[children > 0], rtol=1e-9)


def test_murray_where_the_vertebral_arteries_meet(tree):
    (join,) = tree.joins
    assert len(join.inflow) == 2
    inflow = (tree.radius[list(join.inflow)] ** 3).sum()
    assert inflow == pytest.approx(tree.radius[join.root] ** 3, rel=1e-9)
    for node in join.inflow:
        np.testing.assert_allclose(tree.points[node], tree.points[join.root], atol=1e-9)


def test_radii_of_a_fork_by_hand():
    # 0 -> 1 -> {2, 3}; another vessel, 4, takes the place of half of 0's inflow.
    parent, length = np.array([-1, -1, 1, 2, 2]), np.array([0.0, 0.0, 10.0, 5.0, 20.0])
    ends = np.array([9.0, 9.0, 9.0, 0.3, 0.4])
    radius, start = murray_radii(parent, length, ends, (Join((0,), 1, (0.5,)),))
    short, long = 0.3 * np.exp(5 * TAPER), 0.4 * np.exp(20 * TAPER)
    fork = (short**3 + long**3) ** (1 / 3)
    np.testing.assert_allclose(start[[3, 4]], [short, long])
    np.testing.assert_allclose(radius[2], fork)
    np.testing.assert_allclose(radius[1], fork * np.exp(10 * TAPER))
    np.testing.assert_allclose(radius[0], 0.5 ** (1 / 3) * radius[1])


def test_vessels_taper_from_carotid_to_below_a_voxel(tree):
    edges = np.flatnonzero((tree.parent >= 0) & ~tree.bridge)
    assert np.all(tree.radius[edges] < tree.start_radius[edges])
    assert np.all(tree.start_radius[edges] <= tree.radius[tree.parent[edges]] * (1 + 1e-9))
    ends = np.setdiff1d(edges, tree.parent)
    assert 2 * np.median(tree.radius[ends]) < min(SPACING)
    assert 1.7 < tree.radius.max() < 3.2  # mm, the internal carotid artery


def test_tree_fills_brain_and_scalp(tree):
    inner = intracranial_distance(tree.points)
    assert (head_distance(tree.points) < -1).mean() > 0.998
    assert 0.6 < (inner < 0).mean() < 0.95
    scalp = (np.abs(head_distance(tree.points) + SCALP_DEPTH) < 1) & (tree.points[:, 2] > 0)
    assert scalp.sum() > 100
    # No point of the upper brain's surface is far from an artery.
    rng = np.random.default_rng(0)
    probe = rng.uniform([-70, -105, 0], [70, 72, 76], (20000, 3))
    probe = probe[np.abs(intracranial_distance(probe) + 4) < 2]
    near = np.array([np.linalg.norm(tree.points - p, axis=1).min() for p in probe[:300]])
    assert np.quantile(near, 0.9) < 12


@pytest.mark.parametrize(
    ("variant", "roots"),
    [
        (COMPLETE, 11 + 3),
        (Variant(False, (True, True), (False, False), (False, False)), 11),
        (Variant(True, (False, True), (False, True), (True, False)), 11 + 1),
        (Variant(True, (True, True), (False, False), (True, True)), 11 + 1),
    ],
)
def test_circle_of_willis_variants(variant, roots):
    # Roots: 2 vertebral, basilar, 2 carotid, 6 extracranial; every bridge is one more.
    tree = grow_vessels(np.random.default_rng(0), variant)
    assert (tree.parent < 0).sum() == roots
    assert np.all(tree.parent < np.arange(len(tree.parent)))
    assert tree.bridge.any() == (roots > 11)
    for ends in np.flatnonzero(tree.bridge & (tree.parent < 0)):
        others = tree.points[~tree.bridge]
        assert np.linalg.norm(others - tree.points[ends], axis=1).min() < 1e-9


def test_circle_is_incomplete_now_and_then():
    rng = np.random.default_rng(0)
    complete = np.mean([draw_variant(rng) == COMPLETE for _ in range(2000)])
    assert 0.2 < complete < 0.6


# Voxels


@pytest.mark.parametrize("radius", [0.2, 0.6, 2.0])
def test_capsule_volume_with_partial_volume(radius):
    # Slanted, and longer than the grid is high, so that there are no caps to count.
    size, spacing = (40, 40, 24), SPACING
    height = size[2] * spacing[2]
    start, end = np.array([[7.1, 9.3, -5.0]]), np.array([[11.9, 10.4, height + 5.0]])
    tube = Capsules(start, end, np.full((1, 2), radius))
    filled = rasterise(tube, np.array([1.0]), size, spacing)
    direction = (end - start)[0] / np.linalg.norm(end - start)
    expected = np.pi * radius**2 * height / direction[2]
    assert filled.fraction.sum() * np.prod(spacing) == pytest.approx(expected, rel=0.03)
    assert ((filled.fraction > 0.1) & (filled.fraction < 0.9)).any()


def test_overlapping_capsules_are_counted_once():
    start, end = np.array([[3.0, 8.0, 7.0]]), np.array([[13.0, 9.0, 8.0]])
    one = Capsules(start, end, np.array([[1.0, 0.7]]))
    middle = (start + end) / 2
    halves = Capsules(
        np.concatenate([start, middle, start]),
        np.concatenate([middle, end, end]),
        np.array([[1.0, 0.85], [0.85, 0.7], [1.0, 0.7]]),
    )
    single = rasterise(one, np.array([2.0]), (32, 32, 20), SPACING)
    union = rasterise(halves, np.array([2.0, 2.0, 2.0]), (32, 32, 20), SPACING)
    # The round end of the wider half bulges a little out of the taper: a hundredth, not a third.
    assert union.fraction.sum() == pytest.approx(single.fraction.sum(), rel=0.01)
    assert union.fraction.max() == 1
    np.testing.assert_allclose(union.value, 2.0)


def test_value_is_weighted_by_what_each_capsule_fills():
    # A voxel of 4 mm has a sub-sample every mm: one tube holds one column of them, one holds five.
    start = np.array([[0.5, 0.5, -9.0], [2.5, 2.5, -9.0]])
    end = start * [1, 1, -2]
    tubes = Capsules(start, end, np.array([[0.6, 0.6], [1.2, 1.2]]))
    filled = rasterise(tubes, np.array([1.0, 7.0]), (1, 1, 2), (4.0, 4.0, 4.0))
    np.testing.assert_allclose(filled.value, (1 * 1.0 + 5 * 7.0) / 6)
    np.testing.assert_allclose(filled.fraction, 6 / 16)


def test_centreline_of_a_hair_is_one_connected_piece():
    path = Capsules(
        np.array([[1.0, 1.0, 1.0], [9.0, 4.0, 8.0]]),
        np.array([[9.0, 4.0, 8.0], [2.0, 14.0, 12.0]]),
        np.full((2, 2), 0.05),
    )
    mask = np.zeros((32, 32, 20), bool)
    mask.reshape(-1)[centreline_voxels(path, mask.shape, SPACING)] = True
    assert ndimage.label(mask, np.ones((3, 3, 3)))[1] == 1
    assert mask.sum() > 25


def test_label_of_a_wide_artery_has_its_volume_and_a_hair_is_not_lost():
    start, end = np.array([[7.1, 9.3, -5.0]]), np.array([[11.9, 10.4, 22.0]])
    height, slant = 24 * 0.7, np.linalg.norm(end - start) / 27
    wide = artery_label(Capsules(start, end, np.full((1, 2), 2.0)), (40, 40, 24), SPACING)
    assert wide.sum() * np.prod(SPACING) == pytest.approx(np.pi * 4 * height * slant, rel=0.03)
    hair = artery_label(Capsules(start, end, np.full((1, 2), 0.05)), (40, 40, 24), SPACING)
    assert np.all(hair.sum((0, 1)) >= 1)
    assert hair.sum() < 3 * 24


# Signal


def test_inflow_wide_is_bright_and_slabs_fade():
    scan = draw_scan(np.random.default_rng(0))
    height = scan.slab_start + np.linspace(0, scan.slab * 0.999, 20)
    wide, thin = (blood_signal(np.full(20, r), height, scan) for r in (2.0, 0.3))
    assert np.all(wide > thin)
    assert np.all(np.diff(thin) < 0)
    assert wide.min() > 0.75
    next_slab = blood_signal(np.array([0.3]), height[:1] + scan.slab, scan)
    np.testing.assert_allclose(next_slab, thin[:1])
    # Far beyond any slab nothing is left of the inflow but the spoiled gradient echo's own state.
    e1 = np.exp(-scan.repetition / (1650.0 * scan.t1))
    stale = blood_signal(np.array([1e-4]), height[-1:], scan)
    np.testing.assert_allclose(stale, (1 - e1) / (1 - np.cos(scan.flip) * e1))


def test_order_of_tissues():
    for seed in range(20):
        scan = draw_scan(np.random.default_rng(seed))
        signal = tissue_signal(scan)
        assert signal[Tissue.AIR] == 0
        assert signal[Tissue.FLUID] < signal[Tissue.GREY] < 0.5
        assert signal[Tissue.FAT] < blood_signal(np.array([2.0]), np.array([0.0]), scan)


def test_background_is_rayleigh():
    noise = rician(np.zeros((64, 64, 64), np.float32), 3.0, np.random.default_rng(0))
    assert noise.mean() == pytest.approx(3.0 * np.sqrt(np.pi / 2), rel=0.01)
    assert noise.std() == pytest.approx(3.0 * np.sqrt(2 - np.pi / 2), rel=0.01)
    bright = rician(np.full((64, 64, 64), 60.0, np.float32), 3.0, np.random.default_rng(0))
    assert bright.std() == pytest.approx(3.0, rel=0.01)


# Volumes


def test_same_arguments_same_arrays(phantoms):
    np.random.seed(7)  # the global generator must not matter
    again = vessel_phantom(seed=0)
    for name in ("image", "label", "roi"):
        np.testing.assert_array_equal(getattr(again, name), getattr(phantoms[0], name))
    assert again.spacing == phantoms[0].spacing == SPACING


def test_other_seeds_other_heads(phantoms):
    for a, b in ((0, 1), (0, 2), (1, 2)):
        first, second = phantoms[a].label > 0, phantoms[b].label > 0
        assert 2 * (first & second).sum() / (first.sum() + second.sum()) < 0.3


@pytest.mark.parametrize("size", [(32, 32, 16), (48, 64, 48), (33, 40, 17)])
@pytest.mark.parametrize("seed", [0, 5])
def test_small_volumes(size, seed):
    phantom = vessel_phantom(size, seed=seed)
    assert phantom.image.shape == phantom.label.shape == phantom.roi.shape == size
    assert phantom.image.dtype == np.int16
    assert phantom.label.dtype == phantom.roi.dtype == np.uint8
    assert set(np.unique(phantom.label)) == {0, 1}
    assert phantom.roi.sum() > 0.1 * phantom.roi.size
    assert (phantom.label & phantom.roi).sum() > 10


def test_arteries_are_bright_and_few(phantoms):
    for phantom in phantoms:
        artery, brain = (phantom.label & phantom.roi) > 0, (phantom.roi > phantom.label)
        assert 0.0003 < phantom.label.mean() < 0.03
        assert phantom.image[artery].mean() > 1.4 * phantom.image[brain].mean()
        assert phantom.image.min() >= 0


def test_label_is_no_dust(phantoms):
    for phantom in phantoms:
        pieces, _ = ndimage.label(phantom.label, np.ones((3, 3, 3)))
        sizes = np.bincount(pieces.ravel())[1:]
        assert sizes[sizes < 4].sum() < 0.005 * sizes.sum()
        assert sizes.max() > 0.2 * sizes.sum()


def test_whole_head(whole_head):
    label, roi, image = whole_head.label > 0, whole_head.roi > 0, whole_head.image
    assert (label & roi).sum() > 1000
    assert (label & ~roi).sum() > 500
    # The brain is one piece of human size (70 of its 130 mm), inside the head.
    litres = roi.sum() * np.prod(whole_head.spacing) / 1e6
    assert 0.6 < litres < 1.4
    assert ndimage.label(roi)[1] == 1
    outside = ndimage.distance_transform_edt(~roi, sampling=whole_head.spacing)
    above = np.zeros_like(roi)
    above[:, :, 32:] = True
    assert image[roi & above].mean() > 3 * image[above & (outside > 25)].mean()
    # Skull, then fat with arteries of its own.
    scalp = label & above & (outside > 3)
    assert scalp.sum() > 15
    assert 6 < np.median(outside[scalp]) < 16


def test_finds_what_it_cannot_use():
    with pytest.raises(ValueError, match=r"size: expected .*32 x 32 x 16, found \(32, 32, 15\)"):
        vessel_phantom((32, 32, 15))
    with pytest.raises(ValueError, match=r"size: expected three"):
        vessel_phantom((32, 32))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"spacing: expected .* found \(0.5, 0, 0.7\)"):
        vessel_phantom(spacing=(0.5, 0, 0.7))
    with pytest.raises(ValueError, match=r"seed: expected .* found -1"):
        vessel_phantom(seed=-1)
