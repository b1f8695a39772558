"""Plots of the label statistics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from medpair.metrics.label_cohort import MEASURES
from medpair.metrics.label_shape import LabelShape
from medpair.report.plots import MOST_CLASSES, REAL, SYNTHETIC, panels, tick_name, to_png

TITLES = {
    "volume_ml": "volume (ml)",
    "surface_cm2": "surface (cm²)",
    "components": "components",
    "largest_share": "largest component",
    "slice_overlap": "slice overlap (Dice)",
}


def largest(shapes: Sequence[LabelShape], count: int = MOST_CLASSES) -> list[int]:
    """Return the indices (0 to K - 1) of the classes of the largest mean volume, in label order."""
    means = np.mean([shape.volume for shape in shapes], axis=0)
    return sorted(np.argsort(-means, kind="stable")[:count].tolist())


def plot_measures(
    real: Sequence[LabelShape], synthetic: Sequence[LabelShape], names: Sequence[str]
) -> bytes:
    """Return box plots of every measure, a box per class and cohort, as PNG."""
    shown = largest(real)
    # few and narrow columns: a phone shrinks what is wide
    columns = max(1, min(len(MEASURES), round(9 / (1.9 + 0.35 * len(shown)))))
    rows = -(-len(MEASURES) // columns)
    figure, axes = panels(columns, rows, width=9 / columns, height=2.6)
    for axis in axes.flat[len(MEASURES) :]:
        axis.set_axis_off()
    for axis, (key, (attribute, factor)) in zip(axes.flat, MEASURES.items(), strict=False):
        for shapes, offset, colour in ((real, -0.19, REAL), (synthetic, 0.19, SYNTHETIC)):
            values = [
                [
                    factor * getattr(s, attribute)[k]
                    for s in shapes
                    if s.volume[k] > 0 and getattr(s, attribute)[k] is not None
                ]
                for k in shown
            ]
            boxes = axis.boxplot(
                values,
                positions=np.arange(len(shown)) + offset,
                widths=0.32,
                patch_artist=True,
                manage_ticks=False,
                flierprops={"markersize": 2, "markeredgecolor": colour},
                medianprops={"color": "white"},
            )
            for box in boxes["boxes"]:
                box.set(facecolor=colour, edgecolor=colour)
        axis.set_title(TITLES[key])
        labels = [tick_name(names[k]) for k in shown]
        axis.set_xticks(range(len(shown)), labels, rotation=30, ha="right")
        axis.set_ylim(bottom=0 if key in ("volume_ml", "surface_cm2", "components") else None)
    legend(figure)
    return to_png(figure)


def plot_histograms(
    real: NDArray[np.float64],
    synthetic: NDArray[np.float64],
    names: Sequence[str],
    bins: NDArray[np.float64],
    classes: Sequence[int],
) -> bytes:
    """Return the intensity histograms of some classes, mean and middle 80 % of volumes, as PNG.

    Args:
        real: (N, K + 1, bins) shares of each class's voxels.
        synthetic: (M, K + 1, bins).
        names: of the K classes.
        bins: edges.
        classes: those to show, 0 to K - 1, beside the background.
    """
    present = np.isfinite(real[:, :, 0]).sum(axis=0)
    shown = [k for k in (0, *(k + 1 for k in classes)) if present[k]]
    columns = min(3, max(1, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure, axes = panels(columns, rows, width=2.7, height=2.0)
    centres = (bins[:-1] + bins[1:]) / 2
    width = bins[1] - bins[0]
    for axis, k in zip(axes.flat, shown, strict=False):
        for values, colour in ((real[:, k], REAL), (synthetic[:, k], SYNTHETIC)):
            kept = values[np.isfinite(values).all(axis=1)] / width
            if not len(kept):
                continue
            # the ends hold what was clipped: their bars would hide everything else
            low, high = np.quantile(kept, [0.1, 0.9], axis=0)
            inside = slice(1, -1)
            axis.fill_between(
                centres[inside], low[inside], high[inside], color=colour, alpha=0.2, lw=0
            )
            axis.plot(centres[inside], kept.mean(axis=0)[inside], color=colour, lw=1.4)
        axis.set_title(tick_name(("background", *names)[k]))
        axis.set_yticks([])
        axis.set_ylim(bottom=0)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("intensity")
    legend(figure)
    return to_png(figure)


def plot_adjacency(
    real: NDArray[np.float64], synthetic: NDArray[np.float64], names: Sequence[str]
) -> bytes:
    """Return both cohorts' mean shares of common surface as heat maps, as PNG."""
    touching = 0.5 * (real + synthetic)
    shown = np.sort(np.argsort(-touching.sum(axis=0), kind="stable")[: MOST_CLASSES + 1])
    size = 1.8 + 0.28 * len(shown)
    figure, axes = panels(2, width=size, height=size * 0.85)
    labels = [tick_name(("background", *names)[k]) for k in shown]
    for axis, values, title in zip(axes[0], (real, synthetic), ("real", "synthetic"), strict=True):
        grid = values[np.ix_(shown, shown)]
        image = axis.imshow(grid, cmap="Blues", vmin=0, vmax=1)
        axis.set_title(title)
        axis.set_xticks(range(len(shown)), labels, rotation=40, ha="right")
        axis.set_yticks(range(len(shown)), labels)
        if len(shown) <= 8:
            for (row, column), value in np.ndenumerate(grid):
                if row != column:
                    colour = "white" if value > 0.5 else "black"
                    text = f"{value:.2f}"
                    axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, ax=axes[0].tolist(), label="share of the row's surface", shrink=0.8)
    return to_png(figure)


def legend(figure: Figure) -> None:
    """Say which colour is which cohort, above all panels."""
    from matplotlib.patches import Patch

    handles = [Patch(color=REAL, label="real"), Patch(color=SYNTHETIC, label="synthetic")]
    figure.legend(handles=handles, fontsize=8, ncols=2, loc="outside upper left", frameon=False)
