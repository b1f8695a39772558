"""Poisson draws of volumes: their distribution, and that counters and the secret fix them."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medpair.data.cohort import LabelledVolume
from medpair.data.patches import PatchDataset
from medpair.data.poisson import PoissonBatches, SecretSeed, StepSampler

PATCH = (8, 8, 8)


def patches(sizes: list[tuple[int, int, int]]) -> PatchDataset:
    volumes = [
        LabelledVolume(np.full(size, index / 100, np.float32), np.ones(size, np.uint8), f"{index}")
        for index, size in enumerate(sizes)
    ]
    return PatchDataset(volumes, PATCH, random_patches=3)


def batches(count: int = 40, size: int = 10, seed: int = 7, draws: int = 1) -> PoissonBatches:
    return PoissonBatches(patches([PATCH] * count), size, draws, SecretSeed(seed))


def test_each_volume_joins_with_the_rate_and_independently() -> None:
    """Means, variances and covariances of 40 coins of 1/4, within five standard errors."""
    data, steps, rate = batches(), 4000, 0.25
    taken = np.zeros((steps, 40))
    for step in range(steps):
        taken[step, data.chosen(0, step, 0)] = 1
    error = sqrt(rate * (1 - rate) / steps)
    assert np.abs(taken.mean(axis=0) - rate).max() < 5 * error
    covariance = np.cov(taken.T)
    off = covariance - np.diag(np.diag(covariance))
    assert np.abs(off).max() < 5 * rate * (1 - rate) / sqrt(steps)
    # so sizes are binomial, which a shuffled epoch's are not
    sizes = taken.sum(axis=1)
    assert sizes.var() == pytest.approx(40 * rate * (1 - rate), rel=5 * sqrt(2 / steps))


def test_draws_depend_on_the_secret_and_every_counter() -> None:
    data = batches()
    first = data.chosen(1, 2, 3)
    assert batches().chosen(1, 2, 3) == first
    others = [data.chosen(2, 2, 3), data.chosen(1, 3, 3), data.chosen(1, 2, 4)]
    assert all(other != first for other in [*others, batches(seed=8).chosen(1, 2, 3)])


def test_deformed_copies_are_further_patches_of_their_volume() -> None:
    """They add nothing to the chances of the volume, so that the guarantee stays what it was."""
    volumes = patches([PATCH] * 10).volumes
    copies = [replace(volume, image=-volume.image) for volume in volumes for _ in range(2)]
    data = PoissonBatches(PatchDataset(volumes + copies, PATCH), 5, 1, SecretSeed(0))
    assert data.records == [[n, 10 + 2 * n, 11 + 2 * n] for n in range(10)]
    assert data.rate == 0.5
    drawn = [index for step in range(500) for index in data.chosen(0, step, 0)]
    third = [index for index in drawn if index in data.records[3]]
    assert len(third) == pytest.approx(250, abs=5 * sqrt(125))
    assert np.bincount(third).max() == pytest.approx(len(third) / 3, abs=40)


def test_one_patch_of_a_volume_per_draw() -> None:
    """A record is the volume: a large one has more patches, but no more chances."""
    data = PoissonBatches(patches([(20, 20, 20), PATCH]), 1, 1, SecretSeed(0))
    assert [len(own) for own in data.records] == [27 + 3, 1]
    draws = [data.chosen(0, step, 0) for step in range(2000)]
    large = [[index for index in draw if index < 30] for draw in draws]
    assert max(len(own) for own in large) == 1
    assert sum(map(len, large)) == pytest.approx(1000, abs=5 * sqrt(500))
    assert {own[0] for own in large if own} == set(range(30))


def test_items_hold_all_draws_and_say_where_they_end() -> None:
    data = batches(count=12, size=2, draws=3)
    item = data[(0, 4)]
    expected = [data.chosen(0, 4, draw) for draw in range(3)]
    assert item["counts"].tolist() == [len(draw) for draw in expected]
    flat = [index / 100 for draw in expected for index in draw]
    torch.testing.assert_close(item["image"][:, 0, 0, 0, 0], torch.tensor(flat))
    assert item["label"].shape == (len(flat), 1, *PATCH)
    assert item["box"].shape == (len(flat), 2, 3)


def test_an_empty_draw_is_a_batch_without_pairs() -> None:
    data = batches(count=12, size=1)
    empty = next(step for step in range(100) if not data.chosen(0, step, 0))
    item = data[(0, empty)]
    assert item["image"].shape == item["label"].shape == (0, 1, *PATCH)
    assert item["counts"].tolist() == [0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_that_goes_on_gives_the_same_batches(workers: int) -> None:
    def loader(secret: SecretSeed) -> tuple[DataLoader, StepSampler]:
        data = PoissonBatches(patches([PATCH] * 12), 3, 2, secret, iterations=5)
        sampler = StepSampler(len(data), seed=1)
        return DataLoader(data, None, sampler=sampler, num_workers=workers), sampler

    whole = list(loader(SecretSeed(5))[0])
    other = SecretSeed()
    rest, sampler = loader(other)
    other.load_state_dict(SecretSeed(5).state_dict())
    sampler.resume_at(0, 3)
    again = list(rest)
    assert len(again) == 2
    for one, two in zip(again, whole[3:], strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one)


def test_secrets_are_drawn_anew() -> None:
    values = {SecretSeed().value for _ in range(20)}
    assert len(values) == 20
    assert max(values).bit_length() > 64
    # every bit counts: PyTorch's generator would take these three for one
    draws = {SecretSeed(1 + extra).generator(0, 1).random() for extra in (0, 2**32, 2**100)}
    assert len(draws) == 3


@pytest.mark.parametrize("size", [0, 13])
def test_batches_larger_than_the_cohort_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size: expected 1 to 12, .* found {size}"):
        batches(count=12, size=size)
