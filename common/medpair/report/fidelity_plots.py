"""Precision and recall of distributions, as curves."""

from __future__ import annotations

from collections.abc import Mapping

from medpair.metrics.prd import PRD
from medpair.report.plots import REAL, SYNTHETIC, panels, to_png
from medpair.report.sections import name_of


def plot_prd(curves: Mapping[str, Mapping[int, tuple[PRD, PRD]]]) -> bytes:
    """Return the PRD curves of each extractor and number of clusters, as PNG.

    Args:
        curves: {extractor: {clusters: (synthetic against real, half against half)}}.
    """
    drawn = {name: by_clusters for name, by_clusters in curves.items() if by_clusters}
    columns = max(len(by_clusters) for by_clusters in drawn.values())
    figure, axes = panels(columns, len(drawn), width=3.0, height=2.7)
    for row, (name, by_clusters) in zip(axes, drawn.items(), strict=True):
        for axis in row[len(by_clusters) :]:
            axis.set_axis_off()
        for axis, (clusters, (found, floor)) in zip(row, by_clusters.items(), strict=False):
            axis.plot(floor.recall, floor.precision, color=REAL, lw=1.2, label="real halves")
            axis.plot(found.recall, found.precision, color=SYNTHETIC, lw=1.8, label="synthetic")
            axis.set_title(f"{name_of(name)}\n{clusters} clusters", fontsize=9)
            axis.set_xlim(-0.02, 1.02)
            axis.set_ylim(-0.02, 1.02)
            axis.set_xlabel("recall")
            axis.set_ylabel("precision")
    axes[0][0].legend(fontsize=8, loc="lower left", frameon=False)
    return to_png(figure)
