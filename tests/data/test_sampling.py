"""Randomness as a function of counters."""

from __future__ import annotations

import pytest
import torch

from medpair.data.sampling import EpochSampler, ShareSampler, derive_seed, torch_generator


def test_seeds_depend_on_every_counter() -> None:
    seeds = {derive_seed(a, b, c) for a in range(5) for b in range(5) for c in range(5)}
    assert len(seeds) == 125
    assert derive_seed(1, 2) == derive_seed(1, 2) < 2**63
    draws = [torch.rand(1, generator=torch_generator(3, 4)).item() for _ in range(2)]
    assert draws[0] == draws[1]


def test_every_epoch_is_a_permutation_of_its_own() -> None:
    sampler = EpochSampler(10, seed=1)
    first, second = list(sampler), list(sampler)
    assert {epoch for epoch, _ in first} == {0}
    assert {epoch for epoch, _ in second} == {1}
    assert sorted(index for _, index in first) == list(range(10))
    assert [index for _, index in first] != [index for _, index in second]


def test_resuming_in_the_middle_gives_the_rest() -> None:
    whole = EpochSampler(10, seed=1)
    epochs = [list(whole) for _ in range(3)]
    resumed = EpochSampler(10, seed=1)
    resumed.resume_at(1, 4)
    assert list(resumed) == epochs[1][4:]
    assert list(resumed) == epochs[2]


def test_epochs_of_a_given_number_of_batches() -> None:
    sampler = EpochSampler(3, seed=0, iterations=4, batch_size=2)
    items = list(sampler)
    assert len(sampler) == len(items) == 8
    counts = [sum(index == wanted for _, index in items) for wanted in range(3)]
    assert max(counts) - min(counts) <= 1


def test_empty_data_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one item, found 0"):
        EpochSampler(0)


@pytest.mark.parametrize("iterations", [None, 3])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_the_batches_of_one(world_size: int, iterations: int | None) -> None:
    length, each = 13, 2
    whole = EpochSampler(length, 5, iterations, each * world_size)
    parts = [
        EpochSampler(length, 5, iterations, each, rank, world_size) for rank in range(world_size)
    ]
    for _ in range(2):
        items = list(whole)
        shares = [list(part) for part in parts]
        assert len({len(share) for share in shares}) == 1
        assert all(len(share) == len(part) for share, part in zip(shares, parts, strict=True))
        for first in range(0, len(shares[0]), each):
            together = [item for share in shares for item in share[first : first + each]]
            batch = items[world_size * first : world_size * (first + each)]
            # the last one is filled up to equal shares
            assert together[: len(batch)] == batch
            assert len(together) - len(batch) < world_size


def test_a_shared_epoch_resumes_in_the_middle() -> None:
    whole = EpochSampler(10, 1, None, 2, rank=1, world_size=2)
    epochs = [list(whole) for _ in range(2)]
    resumed = EpochSampler(10, 1, None, 2, rank=1, world_size=2)
    resumed.resume_at(1, 4)
    assert list(resumed) == epochs[1][4:]


@pytest.mark.parametrize("length", [0, 1, 2, 3, 7])
def test_shares_of_cases_are_all_of_them_in_order(length: int) -> None:
    shares = [list(ShareSampler(length, rank, 3)) for rank in range(3)]
    assert [case for share in shares for case in share] == list(range(length))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    busy = [list(ShareSampler(length, rank, 3, none_idle=True)) for rank in range(3)]
    assert busy == (shares if length >= 3 else [list(range(length))] * 3)


def test_a_rank_beyond_the_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="rank: expected 0 to 1, found 2"):
        EpochSampler(4, rank=2, world_size=2)
