"""Randomness that is a function of counters, never of what ran before.

Every random draw takes its seed from (seed, a counter, ...): an interrupted run that knows its
counters goes on as if nothing had happened, whatever the number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler

from medpair.data.atomic import DataError


def derive_seed(*counters: int) -> int:
    """Return a 63-bit seed that depends on all counters (non-negative integers).

    Their number counts too: NumPy takes (1, 2) and (1, 2, 0) for the same.

    Raises:
        DataError: if the first, the seed, is negative.
    """
    if counters and counters[0] < 0:
        expected = "a whole number of at least 0"
        raise DataError(f"seed: expected {expected}, found {counters[0]}")
    entropy = [len(counters), *(int(counter) for counter in counters)]
    state = np.random.SeedSequence(entropy).generate_state(2)
    return (int(state[0]) << 31) ^ int(state[1])


def case_counter(name: str) -> int:
    """Return a counter for a case that depends on its name alone, not on its place in a list.

    So what is drawn for a case stays the same when others join or leave: differential privacy
    compares a cohort with one that lacks a volume, and counts on all others being as they were.
    """
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big")


def torch_generator(*counters: int) -> torch.Generator:
    """Return a CPU generator seeded by the counters; draws are the same for every device."""
    return torch.Generator().manual_seed(derive_seed(*counters))


def numpy_generator(*counters: int) -> np.random.Generator:
    """Return a NumPy generator seeded by the counters."""
    return np.random.default_rng(derive_seed(*counters))


class EpochSampler(Sampler[tuple[int, int]]):
    """Yield ``(epoch, index)`` in an order that depends on (seed, epoch) alone.

    Several processes share each batch: the first ``batch_size`` of ``world_size * batch_size``
    consecutive items are the first process's, and so on. A last, shorter batch is filled up until
    it can be shared evenly, with the first items of a further order.

    Args:
        length: number of items.
        seed: of the order.
        iterations: batches per epoch, so that a small and a large dataset can train equally long;
            default: every item once.
        batch_size: items per batch and process, needed with ``iterations`` or ``world_size``.
        rank: number of this process.
        world_size: processes that share the items.
    """

    def __init__(
        self,
        length: int,
        seed: int = 0,
        iterations: int | None = None,
        batch_size: int = 1,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if length < 1:
            raise ValueError(f"length: expected at least one item, found {length}")
        if iterations is not None and iterations < 1:
            raise ValueError(f"iterations_per_epoch: expected at least 1, found {iterations}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank: expected 0 to {world_size - 1}, found {rank}")
        self.length = length
        self.seed = seed
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.size = -(-length // world_size) if iterations is None else iterations * batch_size
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
        order = self._order(epoch, self.size * self.world_size)
        return iter([(epoch, index) for index in self._share(order)[skip:]])

    def _order(self, epoch: int, count: int) -> list[int]:
        """Return ``count`` items of an epoch, of all processes."""
        order: list[int] = []
        turn = 0
        while len(order) < count:
            generator = torch_generator(self.seed, epoch, turn)
            order += torch.randperm(self.length, generator=generator).tolist()
            turn += 1
        return order[:count]

    def _share(self, order: list[int]) -> list[int]:
        """Return this process's items of each batch."""
        if self.world_size == 1:
            return order
        whole = self.batch_size * self.world_size
        batches = [order[first : first + whole] for first in range(0, len(order), whole)]
        mine: list[int] = []
        for batch in batches:
            share = len(batch) // self.world_size
            mine += batch[self.rank * share : (self.rank + 1) * share]
        return mine


class ShareSampler(Sampler[int]):
    """Yield this process's share of some cases: consecutive ones, so that all shares are in order.

    Args:
        length: number of cases.
        rank: number of this process.
        world_size: processes that share the cases.
        none_idle: where there are fewer cases than processes, each takes all of them: a mean over
            all is the same, and no process waits for one that has nothing to do.
    """

    def __init__(
        self, length: int, rank: int = 0, world_size: int = 1, none_idle: bool = False
    ) -> None:
        everyone = none_idle and length < world_size
        first, last = (length * number // world_size for number in (rank, rank + 1))
        self.cases = range(length) if everyone else range(first, last)

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[int]:
        return iter(self.cases)
