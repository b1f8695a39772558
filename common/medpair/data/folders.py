"""Several dataset folders in one training: how many cases each gives, how often it is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from medpair.data.files import DataError
from medpair.data.sampling import EpochSampler, numpy_generator

# how many cases of each folder are used: of all alike, or one entry per folder
MaxCases = int | Sequence[int | None] | None
T = TypeVar("T")


def limits(max_cases: MaxCases, folders: int) -> list[int | None]:
    """Return how many cases each folder gives; None for all of them.

    Args:
        max_cases: a number or None for every folder, or a list with an entry for each.
        folders: how many folders there are.

    Raises:
        ValueError: if it is anything else.
    """
    result: list[Any] = [max_cases] * folders
    if isinstance(max_cases, (list, tuple)):
        result = list(max_cases)
    if len(result) != folders:
        raise ValueError(
            f"max_cases: expected a number, or one for each of {folders} folders, "
            f"found {max_cases!r}"
        )
    for limit in result:
        if limit is not None and (type(limit) is not int or limit < 1):
            raise ValueError(f"max_cases: expected None or a whole number from 1, found {limit!r}")
    return result


def draw_cases(cases: Sequence[T], limit: int | None, seed: int, where: str) -> list[T]:
    """Return ``limit`` of the cases, in their own order; all of them for None.

    For one ``seed`` the draws are nested: fewer cases are some of the more.

    Args:
        cases: of one split of a folder.
        limit: how many.
        seed: of the draw.
        where: names the folder and split in errors.

    Raises:
        DataError: if there are fewer.
    """
    if limit is None:
        return list(cases)
    if limit > len(cases):
        raise DataError(f"{where}: expected {limit} cases (max_cases), found {len(cases)}")
    order = numpy_generator(seed).permutation(len(cases))
    return [cases[index] for index in sorted(order[:limit])]


class FolderSampler(EpochSampler):
    """Yield ``(epoch, index)`` of cases from several folders.

    Without ``balance`` every case is drawn equally often, so that a folder counts by its size;
    with it every folder is drawn equally often, each going through all of its cases before one
    comes again.

    Args:
        items: the cases, as ``medpair.data.segmentation.load_items`` returns them.
        seed, iterations, batch_size: of ``EpochSampler``.
        balance: whether folders count alike.
        rank, world_size: of ``EpochSampler``.
    """

    def __init__(
        self,
        items: Sequence[dict[str, Any]],
        seed: int = 0,
        iterations: int | None = None,
        batch_size: int = 1,
        balance: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(len(items), seed, iterations, batch_size, rank, world_size)
        roots = [item["dataset_dir"] for item in items]
        self.groups = [
            [index for index, root in enumerate(roots) if root == name]
            for name in dict.fromkeys(roots)
        ]
        self.balance = balance

    def _order(self, epoch: int, count: int) -> list[int]:
        if not self.balance or len(self.groups) == 1:
            return super()._order(epoch, count)
        turns = [self._turns(epoch, number) for number in range(len(self.groups))]
        # the folder that begins changes, so that epochs of an odd length are fair too
        return [next(turns[(place + epoch) % len(turns)]) for place in range(count)]

    def _turns(self, epoch: int, number: int) -> Iterator[int]:
        """Yield the cases of one folder without end."""
        group = self.groups[number]
        for turn in itertools.count():
            for place in numpy_generator(self.seed, epoch, number, turn).permutation(len(group)):
                yield group[place]
