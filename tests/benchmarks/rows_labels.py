"""Label volumes: sampling, connected components."""

from __future__ import annotations

from harness import Row

ROWS: list[Row] = []
