"""What feeds a training."""

from __future__ import annotations

from harness import Row

ROWS: list[Row] = []
