import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medpair.metrics.copies import FLOOR, copy_limit, duplicate_groups, isolation
from medpair.metrics.elastic import displaced, elastic_align
from medpair.metrics.nearest import (
    FLIPS,
    Grid,
    coarse_correlations,
    common_image,
    common_of_others,
    nearest,
    soft_dice,
)
from medpair.metrics.rigid import correlation, resampled, rigid_align

SHAPE = (16, 20, 14)


def smooth(count, seed=0, sigma=2.0):
    """Random volumes (count, 1, H, W, D) with structure a few voxels wide."""
    rng = np.random.default_rng(seed)
    volumes = gaussian_filter(rng.normal(size=(count, 1, *SHAPE)), (0, 0, sigma, sigma, sigma))
    return torch.from_numpy(volumes / volumes.std()).float()


def grid(values):
    return Grid(values, torch.ones_like(values[:, :1]))


def turned(degrees, shift):
    angle = np.deg2rad(degrees)
    rows = [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    return torch.tensor(np.c_[rows, shift], dtype=torch.float32)[None]


def test_known_rotation_and_shift_are_found():
    moving = smooth(3)
    known = turned(6, (1.5, -1.0, 0.7)).expand(3, 3, 4)
    ones = torch.ones_like(moving)
    # gain and offset must not matter
    fixed, seen = 1.7 * resampled(moving, known) + 0.4, (resampled(ones, known) > 0.99).float()
    found = rigid_align(moving, ones, fixed, seen, steps=8)
    np.testing.assert_allclose(found, known, atol=5e-3)
    mask = seen * (resampled(ones, found) > 0.99)
    assert correlation(resampled(moving, found), fixed, mask).min() > 0.999


def test_alignment_never_makes_a_pair_less_alike():
    one, two = smooth(6, 1), smooth(6, 2)
    ones = torch.ones_like(one)
    before = correlation(one, two, ones)
    laid = rigid_align(one, ones, two, ones)
    mask = (resampled(ones, laid) > 0.5).float()
    assert (correlation(resampled(one, laid), two, mask) >= before - 1e-5).all()


def test_a_displacement_of_its_own_kind_is_undone():
    moving = smooth(2, 3)
    known = torch.zeros(2, 3, 27)
    known[:, 0, 1], known[:, 1, 3], known[:, 2, 9] = 0.06, -0.05, 0.05
    fixed = displaced(moving, known)
    ones = torch.ones_like(moving)
    seen = (displaced(ones, known) > 0.99).float()
    before = correlation(moving, fixed, seen)
    found = elastic_align(moving, ones, fixed, seen)
    np.testing.assert_allclose(found, known, atol=5e-3)
    after = correlation(displaced(moving, found), fixed, seen * (displaced(ones, found) > 0.99))
    assert before.max() < 0.96
    assert after.min() > 0.999


def test_masked_correlations_are_pearson_on_the_overlap():
    one, two = smooth(2, 4, 0.5), smooth(3, 5, 0.5)
    keep = [(torch.rand(len(v), 1, *SHAPE) > 0.02).float() for v in (one, two)]
    # halving keeps only whole blocks, and the ratio of sums is Pearson's there
    a, b = Grid(one, keep[0]), Grid(two, keep[1])
    scores = coarse_correlations(a, b, torch.zeros(1, 1, *SHAPE))
    for number, axes in enumerate(FLIPS):
        small, other = a.halved().flipped(axes), b.halved()
        mask = (small.mask[1] * other.mask[2])[0].bool()
        expected = np.corrcoef(small.values[1, 0][mask], other.values[2, 0][mask])[0, 1]
        assert scores[number, 1, 2] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("axes", FLIPS)
def test_a_flipped_copy_is_found_with_its_flip(axes):
    targets = grid(smooth(6, 6))
    query = grid(targets.values[[4]]).flipped(axes)
    found = nearest(query, targets, "image", common_image(targets))
    assert (int(found.index[0, 0]), FLIPS[int(found.flip[0, 0])]) == (4, axes)
    assert found.rigid[0, 0] < 1e-4
    assert found.rigid[0, 1] > 0.3


def test_members_are_compared_without_what_the_others_share():
    members, drawn = grid(smooth(6, 3)), grid(smooth(4, 4))
    members.mask[2, ..., :3] = 0
    others = common_of_others(members)
    rest = [Grid(members.values[rows], members.mask[rows]) for rows in ([0, 1, 3, 4, 5],)]
    torch.testing.assert_close(others[2], common_image(rest[0])[0])
    found = nearest(members, drawn, "image", common_image(members), others=others)
    alone = nearest(members[torch.tensor([2])], drawn, "image", common_image(rest[0]))
    order, wanted = found.index[2].argsort(), alone.index[0].argsort()
    same = found.flip[2][order] == alone.flip[0][wanted]  # flips are chosen with all volumes' mean
    assert same.sum() >= 3
    torch.testing.assert_close(found.apart[2][order][same], alone.rigid[0][wanted][same])
    assert (found.apart - found.rigid).abs().max() > 0.01
    plain = nearest(members, drawn, "image", common_image(members))
    assert torch.equal(plain.apart, plain.rigid)
    assert torch.equal(plain.distance, found.distance)


def test_a_volume_is_not_its_own_neighbour():
    cohort = grid(smooth(5, 7))
    found = nearest(cohort, cohort, "image", same=True)
    assert found.index.shape == (5, 4)
    assert all(i not in row for i, row in enumerate(found.index.tolist()))
    with pytest.raises(ValueError, match="at least one other"):
        nearest(grid(cohort.values[:1]), grid(cohort.values[:1]), "image", same=True)


def test_soft_dice_of_two_boxes():
    one, two = torch.zeros(2, 1, 2, *SHAPE)
    one[0, 0, :4, :4, :4] = 1
    two[0, 0, 2:6, :4, :4] = 1
    assert soft_dice(one, two).tolist() == pytest.approx([0.5])
    # the second channel is empty in both: it has no say; one that is in either has
    two[0, 1, 8:, :2, :2] = 1
    assert soft_dice(one, two).tolist() == pytest.approx([0.25])


def test_isolation_is_a_ratio_that_scale_does_not_change():
    table = np.array([[0.1, 0.4, 0.5, 0.6], [0.5, 0.5, 0.5, 0.5]])
    assert isolation(table) == pytest.approx([0.2, 1.0])
    assert isolation(3 * table) == pytest.approx(isolation(table))
    assert isolation([[0.0, 0.5]]) == pytest.approx([FLOOR / 0.5])
    with pytest.raises(ValueError, match="K >= 2"):
        isolation([[0.1]])


def test_limit_keeps_its_level_on_log_normal_isolations():
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(400):
        reference, ours = (np.exp(rng.normal(-0.4, 0.25, n)) for n in (60, 30))
        alarms += bool((ours < copy_limit(reference, 30, level=0.05).ratio).any())
    assert alarms / 400 < 0.09
    # more comparisons, lower limit; a narrow reference still asks for a real effect
    wide = np.exp(np.linspace(-1, 0, 50))
    assert copy_limit(wide, 200).ratio < copy_limit(wide, 2).ratio
    assert copy_limit(np.full(50, 0.99), 2).ratio == pytest.approx(0.4)
    with pytest.raises(ValueError, match="at least 5"):
        copy_limit([0.5] * 4, 2)


def test_duplicates_are_grouped_by_chains():
    near = [[0.01, 0.9], [0.01, 0.02], [0.02, 0.9], [0.8, 0.9]]
    index = [[1, 3], [0, 2], [1, 3], [0, 1]]
    assert duplicate_groups(near, index, 0.1) == [[0, 1, 2]]
    assert duplicate_groups(near, index, 0.001) == []
