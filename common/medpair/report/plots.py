"""How plots of the report look: one colour per cohort, nothing that is not data."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl

mpl.use("Agg")  # no display needed, and none asked for

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

# Told apart by those who see no red or green, and in grey print
REAL, SYNTHETIC, HOLDOUT = "#20639b", "#e08e0b", "#6b7a86"
# Dots per inch of the pictures: sharp on a phone and in print
PLOT_DPI = 180
# Classes beyond these, the smallest ones, are in the tables alone
MOST_CLASSES = 12
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "figure.dpi": 100,
}


def panels(columns: int, rows: int = 1, width: float = 3.2, height: float = 2.4) -> tuple[Any, Any]:
    """Return a figure and its (rows, columns) axes, sizes in inches each."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(columns * width, rows * height),
            squeeze=False,
            layout="constrained",
        )
    return figure, axes


def tick_name(name: str, most: int = 24) -> str:
    """Return a class name as it fits below an axis; a dollar sign would begin a formula."""
    short = name if len(name) <= most else name[: most - 1] + "…"
    return short.replace("$", r"\$")


def to_png(figure: Figure) -> bytes:
    """Return the figure as PNG, sharp on a phone and in print, and close it."""
    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):
        # no software entry: the same numbers give the same bytes
        figure.savefig(buffer, format="png", dpi=PLOT_DPI, metadata={"Software": None})
    plt.close(figure)
    return buffer.getvalue()
