"""Batches for differentially private training: every volume joins each step by a coin of its own.

The accountant of DP-SGD assumes Poisson sampling (Abadi et al. 2016): in every step each record is
taken with probability ``batch_size / records``, independently, so that batches differ in size and
may be empty. A record is a whole volume, together with any deformed copies of it: of all their
patches it gives one, drawn anew, whenever it is taken.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from medpair.data.patches import PatchDataset
from medpair.data.sampling import EpochSampler

# Streams of random numbers under the secret seed
SAMPLING, NOISE, AUGMENTATION = range(3)


class SecretSeed:
    """The seed of what must not be guessed: who is in a batch, and the noise.

    Whoever knows it can take the noise off again. So it comes from the operating system, and it is
    kept in the run's checkpoints alone: a resumed run goes on bit by bit, a new run draws another.

    Args:
        seed: for tests and comparisons; None draws 128 bits.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.value = secrets.randbits(128) if seed is None else int(seed)

    def generator(self, *counters: int) -> np.random.Generator:
        """Return a NumPy generator seeded by all 128 bits and the counters.

        Not one of PyTorch's: on a CPU that takes 32 bits of a seed, which can be tried one by one.
        """
        return np.random.default_rng([len(counters), *counters, self.value])

    def state_dict(self) -> dict[str, int]:
        """Return the seed."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take over the seed of the run that goes on."""
        self.value = int(state["value"])


class PoissonBatches(Dataset[dict[str, torch.Tensor]]):
    """The batches of one training iteration, by (epoch, iteration).

    An item has ``image`` (n, 1, W, H, D), ``label`` (n, 1, W, H, D) and ``box`` (n, 2, 3) as
    ``PatchDataset`` gives them, for all draws one after the other, and ``counts`` (draws,): how
    many belong to each. A ``DataLoader`` takes it with ``batch_size=None``.

    Args:
        patches: the patches of all volumes.
        batch_size: expected volumes per draw, at most as many as there are.
        draws: independent draws per iteration, one for each critic step.
        seed: of the draws.
        iterations: per epoch; default: as many as show every volume once on average.

    Raises:
        ValueError: if ``batch_size`` is not in 1..volumes.
    """

    def __init__(
        self,
        patches: PatchDataset,
        batch_size: int,
        draws: int,
        seed: SecretSeed,
        iterations: int | None = None,
    ) -> None:
        self.patches = patches
        records: dict[str, list[int]] = {}
        for index, (volume, _) in enumerate(patches.data):
            records.setdefault(patches.volumes[volume].case, []).append(index)
        self.records = list(records.values())
        if not 1 <= batch_size <= len(self.records):
            raise ValueError(
                f"batch_size: expected 1 to {len(self.records)}, the number of volumes, "
                f"found {batch_size}"
            )
        self.rate = batch_size / len(self.records)
        self.draws = draws
        self.seed = seed
        self.iterations = iterations or -(-len(self.records) // (batch_size * draws))

    def __len__(self) -> int:
        return self.iterations

    def chosen(self, epoch: int, iteration: int, draw: int) -> list[int]:
        """Return the patches of one draw: a function of the seed and these counters."""
        rng = self.seed.generator(SAMPLING, epoch, iteration, draw)
        coins, places = rng.random(len(self.records)), rng.random(len(self.records))
        return [
            own[int(place * len(own))]
            for own, coin, place in zip(self.records, coins, places, strict=True)
            if coin < self.rate
        ]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        draws = [self.chosen(*key, draw) for draw in range(self.draws)]
        items = [self.patches[index] for draw in draws for index in draw]
        size = self.patches.patch_size
        empty = {
            "image": torch.zeros(0, 1, *size),
            "label": torch.zeros(0, 1, *size, dtype=torch.uint8),
            "box": torch.zeros(0, 2, 3, dtype=torch.int64),
        }
        batch = {
            name: torch.stack([item[name] for item in items]) if items else nothing
            for name, nothing in empty.items()
        }
        return {**batch, "counts": torch.tensor([len(draw) for draw in draws])}


class StepSampler(EpochSampler):
    """An ``EpochSampler`` for a loader that does not batch: an epoch begins with its first item.

    With workers such a loader asks for two iterators and uses the second.
    """

    def __iter__(self) -> Iterator[tuple[int, int]]:
        yield from super().__iter__()
