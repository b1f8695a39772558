"""Distances between masks and between cohorts."""

from __future__ import annotations

from harness import Row

ROWS: list[Row] = []
