"""Shift-tolerant LPIPS between volumes; skipped without the package that carries its weights."""

import json

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from medpair.report import perceptual
from medpair.report.perceptual import ShiftTolerantLpips

MISSING = perceptual.missing()
pytestmark = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))


@pytest.fixture(scope="module")
def metric():
    return ShiftTolerantLpips()


def smooth(seed, size=(40, 36, 32)):
    """A volume of smooth blobs in -1..1."""
    rng = np.random.default_rng(seed)
    volume = gaussian_filter(rng.normal(size=size), 3)
    return (volume / np.abs(volume).max()).astype(np.float32)


def test_the_network_says_what_the_published_code_says(metric):
    """Values of the package's own network (stlpips-pytorch 0.0.2, PyTorch 2.13) on these."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    waves = torch.sin(9 * y) * torch.cos(5 * x), torch.sin(9 * y + 0.5) * torch.cos(6 * x)
    found = metric.network(*(wave.expand(1, 3, -1, -1) for wave in waves))
    assert found.item() == pytest.approx(0.016489267, rel=1e-4)
    rng = np.random.default_rng(0)
    for size, expected in (((64, 64), 0.042727355), ((72, 96), 0.037258264)):
        noise = [rng.uniform(-1, 1, (1, 3, *size)).astype(np.float32) for _ in range(2)]
        found = metric.network(*map(torch.from_numpy, noise))
        assert found.item() == pytest.approx(expected, rel=1e-4)


def test_equal_volumes_are_at_zero_and_order_does_not_matter(metric):
    first, second = smooth(0), smooth(1)
    assert metric.distance(first, first) == 0
    found = metric.distance(first, second)
    assert isinstance(found, float)
    assert found > 0
    assert metric.distance(second, first) == found


def test_distance_grows_with_noise(metric):
    volume = smooth(0)
    noise = np.random.default_rng(2).normal(size=volume.shape).astype(np.float32)
    found = [
        metric.distance(volume, np.clip(volume + s * noise, -1, 1)) for s in (0, 0.05, 0.2, 0.8)
    ]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def test_small_shift_is_nearer_than_another_volume(metric):
    volume = smooth(0)
    assert metric.distance(volume, np.roll(volume, 1, axis=0)) < 0.2 * metric.distance(
        volume, smooth(1)
    )


def test_volumes_of_different_sizes_are_compared(metric):
    first, second = smooth(0), smooth(1, (37, 44, 29))
    found = metric.distance(first, second)
    assert found > 0
    assert metric.distance(second, first) == found
    with pytest.raises(ValueError, match=r"second: expected \(W, H, D\), found shape \(40, 36\)"):
        metric.distance(first, first[..., 0])


def test_it_says_which_weights_and_backbone(metric):
    said = metric.describe()
    assert json.loads(json.dumps(said)) == said
    assert "AlexNet" in said["backbone"]
    assert said["weights"] == "alex_shift_tolerant.pth"
    with pytest.raises(ValueError, match="slices"):
        ShiftTolerantLpips(slices=0)
