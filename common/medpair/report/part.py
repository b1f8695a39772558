"""What a part of the report leaves: numbers for the JSON, pictures and sentences for the page."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Part:
    """One part of the report.

    Attributes:
        numbers: plain data for JSON: no NaN, no infinity, no NumPy types.
        figures: {name: PNG}.
        notes: sentences for the reader: what was left out, and why.
    """

    numbers: dict[str, Any]
    figures: dict[str, bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
