import json
from functools import partial

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ms_ssim
from scipy.ndimage import gaussian_filter

from medpair.metrics.diversity import (
    SCALE_WEIGHTS,
    ms_ssim,
    pairwise_diversity,
    window_and_scales,
)


def smooth_noise(seed, shape, sigma=2.0):
    field = gaussian_filter(np.random.default_rng(seed).normal(size=shape), sigma)
    return (field - field.min()) / (field.max() - field.min())


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((192, 176, 200), (11, 5)),
        ((192, 175, 200), (11, 4)),
        ((44, 100, 100), (11, 3)),
        ((43, 100, 100), (7, 3)),
        ((40, 48, 32), (7, 3)),
        ((14, 200, 200), (7, 2)),
        ((13, 64), (7, 1)),
        ((7, 7, 7), (7, 1)),
    ],
)
def test_window_and_scales(shape, expected):
    assert window_and_scales(shape) == expected


# shapes that pass MONAI's own size check: it asks for (scales - 1)^2 windows
@pytest.mark.parametrize(
    "shape", [(40, 48, 32), (29, 31, 30), (44, 45, 47), (15, 20, 14), (192, 180)]
)
def test_agrees_with_monai(shape):
    one = smooth_noise(0, shape)
    two = 0.5 * one + 0.5 * smooth_noise(1, shape)
    window, scales = window_and_scales(shape)
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    expected = compute_ms_ssim(
        torch.from_numpy(one)[None, None],
        torch.from_numpy(two)[None, None],
        spatial_dims=len(shape),
        data_range=1.0,
        kernel_size=window,
        weights=weights.tolist(),
    )
    value = ms_ssim(one, two, 1.0)
    assert 0.1 < value < 0.99
    # MONAI works in single precision, where variances of flat places lose digits
    assert value == pytest.approx(float(expected), abs=1e-4)


def test_constant_volumes_in_closed_form():
    """Without contrast what is left is the luminance term of the coarsest scale."""
    shape = (7, 9, 8)
    constant = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ms_ssim(np.full(shape, 0.2), np.full(shape, 0.6), 1.0) == pytest.approx(constant)
    assert ms_ssim(np.full(shape, 20), np.full(shape, 60), 100) == pytest.approx(constant)


def test_equal_unrelated_and_opposite():
    one, two = smooth_noise(0, (40, 48, 32)), smooth_noise(1, (40, 48, 32))
    assert ms_ssim(one, one, 1.0) == pytest.approx(1, abs=1e-12)
    assert ms_ssim(one, two, 1.0) == pytest.approx(ms_ssim(two, one, 1.0), rel=1e-12)
    assert ms_ssim(one, two, 1.0) < 0.5
    assert ms_ssim(one, 1 - one, 1.0) == 0
    nearer = [ms_ssim(one, one + amount * (two - one), 1.0) for amount in (0.1, 0.3, 0.6)]
    assert 1 > nearer[0] > nearer[1] > nearer[2]


def test_similarity_is_high_in_a_cohort_without_variety():
    common = smooth_noise(9, (16, 16, 16))
    varied = [smooth_noise(seed, (16, 16, 16)) for seed in range(8)]
    alike = [0.9 * common + 0.1 * volume for volume in varied]
    similarity = partial(ms_ssim, data_range=1.0)
    one, two = (pairwise_diversity(volumes, similarity) for volumes in (alike, varied))
    assert one.low > two.high
    assert (one.pairs, one.samples) == (28, 8)


def gap(first, second):
    return float(np.abs(first - second).mean())


def test_all_pairs_are_used_once():
    seen = []

    def distance(first, second):
        seen.append((first, second))
        return float(abs(first - second))

    found = pairwise_diversity([0.0, 1.0, 3.0, 7.0], distance)
    assert found.mean == pytest.approx((1 + 3 + 7 + 2 + 6 + 4) / 6)
    assert sorted(seen) == [(0, 1), (0, 3), (0, 7), (1, 3), (1, 7), (3, 7)]
    assert pairwise_diversity([0.0, 2.0], distance).to_json() == {
        "mean": 2.0,
        "low": None,
        "high": None,
        "pairs": 1,
        "samples": 2,
    }
    assert json.dumps(found.to_json(), allow_nan=False)


@pytest.mark.parametrize("pairs", [1, 7, 40, 189, 190, 1000])
def test_random_pairs_differ(pairs):
    seen = []

    def distance(first, second):
        seen.append((first, second))
        return 1.0

    found = pairwise_diversity(range(20), distance, pairs=pairs)
    assert found.pairs == len(set(seen)) == len(seen) == min(pairs, 190)
    assert all(0 <= one < two < 20 for one, two in seen)
    assert seen == sorted(seen)


def test_every_pair_is_equally_likely():
    counts = np.zeros((5, 5))
    for seed in range(2000):

        def distance(first, second):
            counts[first, second] += 1
            return 0.0

        pairwise_diversity(range(5), distance, pairs=2, seed=seed)
    drawn = counts[np.triu_indices(5, 1)]
    # 400 each, four standard deviations of 18
    assert drawn.sum() == 4000
    assert np.abs(drawn - 400).max() < 72


@pytest.mark.parametrize(("count", "pairs"), [(20, 190), (30, 60)])
def test_coverage(count, pairs):
    """The mean distance of two exponential numbers is 1."""
    rng = np.random.default_rng(0)
    inside = []
    for seed in range(200):
        found = pairwise_diversity(rng.exponential(size=(count, 3)), gap, pairs, seed)
        inside.append(found.low <= 1 <= found.high)
    assert np.mean(inside) >= 0.9


def test_refusals():
    cube = np.zeros((8, 8, 8))
    with pytest.raises(ValueError, match=r"shape: expected at least 7 voxels .* \(6, 8, 8\)"):
        ms_ssim(cube[:6], cube[:6], 1.0)
    with pytest.raises(ValueError, match=r"second: expected shape \(8, 8, 8\)"):
        ms_ssim(cube, cube[:7], 1.0)
    with pytest.raises(ValueError, match="data_range: expected a positive number, found 0"):
        ms_ssim(cube, cube, 0)
    with pytest.raises(ValueError, match="expected finite numbers"):
        ms_ssim(cube, cube * np.nan, 1.0)
    with pytest.raises(ValueError, match="volumes: expected at least two, found 1"):
        pairwise_diversity([cube], gap)
    with pytest.raises(ValueError, match="pairs: expected at least one, found 0"):
        pairwise_diversity([cube, cube], gap, pairs=0)
