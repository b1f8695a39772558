"""Randomness as a function of counters."""

from __future__ import annotations

import pytest
import torch

from medpair.data.sampling import EpochSampler, derive_seed, torch_generator


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
