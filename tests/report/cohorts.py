"""Small cohorts in memory for the report's tests: boxes of three classes side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medpair.report.pairs import Pair

SIZE = (28, 18, 16)
NAMES = ("one", "two", "three")
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class MemoryPairs:
    """What the parts ask of a `PairFolder`, without files; ``features`` are for fake extractors."""

    pairs: Sequence[Pair]
    names: tuple[str, ...] = NAMES
    features: Any = None

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]

    @property
    def num_labels(self) -> int:
        return len(self.names)


def boxes(
    rng: np.random.Generator,
    order: Sequence[int] = (1, 2, 3),
    stretch: Sequence[int] = (1, 1, 1),
    brighter: Sequence[float] = (0, 0, 0),
    speck: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label of three boxes that touch along the first axis.

    Args:
        rng: draws their sizes and the noise.
        order: of the classes along the axis.
        stretch: factor by which each class is longer along it.
        brighter: what is added to the intensity of each class.
        speck: whether class 1 has a second, small component.
    """
    widths = rng.integers(3, 6, 3) * np.asarray(stretch)
    highs = rng.integers(8, 13, 3)
    deeps = rng.integers(6, 11, 3)
    label = np.zeros(SIZE, np.uint8)
    start = 2
    for k in order:
        w, h, d = widths[k - 1], highs[k - 1], deeps[k - 1]
        y, z = (SIZE[1] - h) // 2, (SIZE[2] - d) // 2
        label[start : start + w, y : y + h, z : z + d] = k
        start += w
    if speck:
        label[25:27, 1:3, 7:9] = 1
    values = np.array([0, *(100 * k + brighter[k - 1] for k in (1, 2, 3))])
    image = values[label] + rng.normal(0, 8, SIZE)
    image[0, 0], image[-1, -1] = -100, 400  # the range does not depend on the classes
    return image.astype(np.float32), label


def cohort(count: int, seed: int, **how: Any) -> MemoryPairs:
    """Return pairs of `boxes` at 1 x 1 x 1 mm."""
    rng = np.random.default_rng(seed)
    pairs = [Pair(f"case_{i}", *boxes(rng, **how), (1.0, 1.0, 1.0)) for i in range(count)]
    return MemoryPairs(pairs)
