"""Numbers as a reader of the report sees them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

NONE = "–"
# Of fewer cases an interval is no more than the cases themselves
LEAST_FOR_RANGE = 3


def number(value: float | int | None, digits: int = 3) -> str:
    """Return a number with so many significant digits, without exponent where it is readable."""
    if value is None:
        return NONE
    if isinstance(value, int):
        return f"{value}"
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude > 6:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(0, digits - 1 - magnitude)}f}"


def fixed(value: float | None, places: int = 3) -> str:
    """Return a number with so many places: for columns of shares."""
    # adding 0 to what was rounded: no minus before zeros
    return NONE if value is None else f"{round(value, places) + 0.0:.{places}f}"


def with_range(
    value: float | None, low: float | None, high: float | None, places: int | None = None
) -> str:
    """Return ``value [low, high]``, all with the places that the value needs."""
    if value is None:
        return NONE
    if places is None:
        size = max(abs(end) for end in (value, low, high) if end is not None)
        places = 3 if size < 1e-6 else min(6, max(0, 2 - math.floor(math.log10(size))))
    if low is None or high is None:
        return fixed(value, places)
    return f"{fixed(value, places)} [{fixed(low, places)}, {fixed(high, places)}]"


def summary(entry: Mapping[str, Any] | None, places: int = 3) -> str:
    """Return the mean and interval of ``medpair.metrics.summary.summarize``."""
    if not entry or not entry["n"]:
        return NONE
    if entry["n"] < LEAST_FOR_RANGE:
        return with_range(entry["mean"], None, None, places or 3)
    return with_range(entry["mean"], entry["low"], entry["high"], places)


def mean_and_sd(entry: Mapping[str, Any]) -> str:
    """Return ``mean ± sd``."""
    if entry["mean"] is None:
        return NONE
    return f"{number(float(entry['mean']))} ± {number(float(entry['sd']), 2)}"


def share(value: float | None) -> str:
    """Return a share as per cent."""
    return NONE if value is None else f"{100 * value:.0f} %"
