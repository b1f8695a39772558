"""How a label volume grows: windows of slices, forwards and backwards from where it began.

Han et al. 2023: the last n slices that are there are given for the next window, the first n for
the one before, until both ends are reached.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

# Fixes the meaning of (seed, index): streams of random numbers of one label volume
START, FORWARD, BACKWARD, SIZES = 2, 3, 4, 5


@dataclass
class Window:
    """One window to denoise.

    Attributes:
        volume: which of the batch.
        first: its first slice.
        known: (m,) True where a slice is there already.
        generator: where its noise comes from.
    """

    volume: int
    first: int
    known: np.ndarray
    generator: torch.Generator


@dataclass
class Growth:
    """A label volume while it grows.

    Attributes:
        label: (N, H, W) class indices; valid in ``low <= slice < high``.
        low: first slice that is there.
        high: one past the last.
        seams: slices at which a window began to be generated anew.
        generators: noise of the first window, forward and backward ones.
        sizes: (K,) scores of the classes' sizes that are wanted, where the network is told sizes.
        told: (K,) scores that it is told, so that these come of it.
    """

    label: np.ndarray
    low: int
    high: int
    seams: list[int] = field(default_factory=list)
    generators: dict[int, torch.Generator] = field(default_factory=dict)
    sizes: torch.Tensor | None = None
    told: torch.Tensor | None = None

    @classmethod
    def begun(
        cls, label: np.ndarray, window: int, generators: dict[int, torch.Generator]
    ) -> Growth:
        """Return a volume of which no slice is there yet; where it begins is drawn.

        Args:
            label: (N, H, W) where slices are put; what a network is given from the beginning.
            window: m, slices of a window.
            generators: by stream; that of the first window decides where it lies.
        """
        places = len(label) - window + 1
        first = int(torch.randint(places, (1,), generator=generators[START]).item())
        return cls(label, first, first, [], generators)

    def extensions(self, number: int, window: int, overlap: int) -> list[Window]:
        """Return the windows that come next: forward, backward, both or, at both ends, none.

        Args:
            number: of this volume in its batch.
            window: m, slices of a window.
            overlap: n, of them given.
        """
        height = len(self.label)
        windows = []
        if self.high < height:
            # the last window ends flush with the volume: it is given more slices instead
            first = max(0, min(self.high - overlap, height - window))
            windows.append(self._window(number, first, window, FORWARD))
        if self.low > 0:
            first = min(max(self.low + overlap - window, 0), height - window)
            windows.append(self._window(number, first, window, BACKWARD))
        return windows

    def insert(self, window: Window, label: np.ndarray) -> None:
        """Put the new slices of a denoised window, of (m, H, W) class indices, into the volume."""
        new = ~window.known
        slices = np.flatnonzero(new) + window.first
        self.label[slices] = label[new]
        if window.known.any():
            forward = slices[0] >= self.high
            # the transition between what was there and what is new
            self.seams.append(int(slices[0] if forward else slices[-1] + 1))
        self.low, self.high = min(self.low, int(slices[0])), max(self.high, int(slices[-1]) + 1)

    def _window(self, number: int, first: int, size: int, stream: int) -> Window:
        slices = np.arange(first, first + size)
        known = (self.low <= slices) & (slices < self.high)
        return Window(number, first, known, self.generators[stream])
