"""Figures of the privacy part: distances of both cohorts, and the closest pairs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medpair.data.intensity import robust_range
from medpair.report.pairs import Pair, PairFolder
from medpair.report.pictures import MARGIN_MM, as_png, near_labels
from medpair.report.plots import HOLDOUT, REAL, SYNTHETIC, panels, to_png
from medpair.report.preview import picture_of
from medpair.report.privacy_grid import label_box


def distance_figure(series: Sequence[tuple[str, dict[str, np.ndarray]]]) -> bytes:
    """Return PNG: per space the distribution functions of nearest distances to training volumes.

    Args:
        series: (title, {cohort: (N,) distances}) of each panel.
    """
    colours = {"synthetic": SYNTHETIC, "holdout": HOLDOUT, "training": REAL}
    figure, axes = panels(len(series))
    for axis, (title, cohorts) in zip(axes[0], series, strict=True):
        for name, values in cohorts.items():
            steps = np.arange(1, len(values) + 1) / len(values)
            axis.step(np.sort(values), steps, where="post", color=colours[name], label=name)
        axis.set(title=title, xlabel="distance to the nearest training volume", ylim=(0, 1.02))
    axes[0, 0].set_ylabel("share of volumes")
    axes[0, 0].legend()
    return to_png(figure)


def closest_figure(
    synthetic: PairFolder, real: PairFolder, rows: Sequence[dict[str, Any]]
) -> bytes:
    """Return PNG: each of the closest pairs, the synthetic volume above its nearest real one.

    Args:
        synthetic: where the indices ``synthetic_index`` of the rows lead.
        real: where ``real_index`` leads.
        rows: the closest pairs.
    """
    tiles = []
    for pairs, key, what in (
        (synthetic, "synthetic_index", "synthetic"),
        (real, "real_index", "real"),
    ):
        for row in rows:
            pair = pairs[int(row[key])]
            tiles.append((*only_label(pair), f"{what}: {pair.name}"))
    largest = max(max(image.shape) for image, _, _ in tiles)
    return as_png(picture_of(tiles, columns=len(rows), scale=max(1, 110 // largest)))


def only_label(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """Return image and label cut to the label's box, dark further than 6 mm from it.

    Nothing else is shown, in any cohort: heads have faces.
    """
    low, size = label_box(pair.label)
    near = near_labels(pair, MARGIN_MM)
    dark, _ = robust_range(pair.image)
    margins = [int(MARGIN_MM / spacing) for spacing in pair.spacing]
    box = tuple(
        slice(max(0, first - margin), first + extent + margin)
        for first, extent, margin in zip(low.tolist(), size.tolist(), margins, strict=True)
    )
    return np.where(near, pair.image, dark).astype(np.float32)[box], pair.label[box]
