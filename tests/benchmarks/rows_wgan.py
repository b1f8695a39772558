"""The WGAN: training step, generator, pairs to the disk."""

from __future__ import annotations

from harness import Row

ROWS: list[Row] = []
