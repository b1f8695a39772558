"""Randomness that is a function of counters, never of what ran before.

Every random draw takes its seed from (seed, a counter, ...): an interrupted run that knows its
counters goes on as if nothing had happened, whatever the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


def derive_seed(*counters: int) -> int:
    """Return a 63-bit seed that depends on all counters (non-negative integers).

    Their number counts too: NumPy takes (1, 2) and (1, 2, 0) for the same.
    """
    entropy = [len(counters), *(int(counter) for counter in counters)]
    state = np.random.SeedSequence(entropy).generate_state(2)
    return (int(state[0]) << 31) ^ int(state[1])


def torch_generator(*counters: int) -> torch.Generator:
    """Return a CPU generator seeded by the counters; draws are the same for every device."""
    return torch.Generator().manual_seed(derive_seed(*counters))


def numpy_generator(*counters: int) -> np.random.Generator:
    """Return a NumPy generator seeded by the counters."""
    return np.random.default_rng(derive_seed(*counters))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield ``(epoch, index)`` in an order that depends on (seed, epoch) alone.

    Args:
        length: number of items.
        seed: of the order.
        iterations: batches per epoch, so that a small and a large dataset can train equally long;
            default: every item once.
        batch_size: items per batch, needed with ``iterations``.
    """

    def __init__(
        self, length: int, seed: int = 0, iterations: int | None = None, batch_size: int = 1
    ) -> None:
        if length < 1:
            raise ValueError(f"length: expected at least one item, found {length}")
        self.length = length
        self.seed = seed
        self.size = length if iterations is None else iterations * batch_size
        self.epoch = 0
        self.skip = 0

    def resume_at(self, epoch: int, skip: int) -> None:
        """Let the next pass be ``epoch`` (from 0), without its first ``skip`` items."""
        self.epoch, self.skip = epoch, skip

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, skip = self.epoch, self.skip
        self.epoch, self.skip = epoch + 1, 0
        order: list[int] = []
        turn = 0
        while len(order) < self.size:
            generator = torch_generator(self.seed, epoch, turn)
            order += torch.randperm(self.length, generator=generator).tolist()
            turn += 1
        return iter([(epoch, index) for index in order[skip : self.size]])
