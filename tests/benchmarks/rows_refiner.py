"""The refiner, and a whole MedGen3D pair."""

from __future__ import annotations

from harness import Row

ROWS: list[Row] = []
