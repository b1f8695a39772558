"""Plot of the agreement of labels and images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from medpair.data.sampling import numpy_generator
from medpair.report.plots import HOLDOUT, MOST_CLASSES, SYNTHETIC, panels, tick_name, to_png

COLOURS = {"synthetic": SYNTHETIC, "holdout": HOLDOUT}
TITLES = {"synthetic": "synthetic images and labels", "holdout": "held-out real images and labels"}


def plot_agreement(cohorts: Mapping[str, NDArray[np.float64]], names: Sequence[str]) -> bytes:
    """Return a dot per case, class and cohort, and each mean as a bar across, as PNG.

    Args:
        cohorts: {``synthetic`` or ``holdout``: (N, K) Dice, NaN where a class is absent}.
        names: of the K classes.
    """
    first = next(iter(cohorts.values()))
    present = np.isfinite(first).sum(axis=0)
    shown = np.sort(np.argsort(-present, kind="stable")[:MOST_CLASSES])
    figure, axes = panels(1, width=max(4.8, 2.2 + 0.7 * len(shown)), height=3.0)
    axis = axes[0][0]
    for number, (cohort, values) in enumerate(cohorts.items()):
        offset = 0.2 * (2 * number - len(cohorts) + 1)
        jitter = numpy_generator(number).uniform(-0.12, 0.12, len(values))
        for place, k in enumerate(shown):
            kept = np.isfinite(values[:, k])
            across = place + offset
            axis.scatter(
                across + jitter[kept], values[kept, k], s=7, color=COLOURS[cohort], alpha=0.55, lw=0
            )
            if kept.any():
                axis.hlines(
                    values[kept, k].mean(), across - 0.17, across + 0.17, color="black", lw=1.6
                )
        axis.scatter([], [], s=16, color=COLOURS[cohort], label=TITLES[cohort])
    labels = [tick_name(names[k]) for k in shown]
    axis.set_xticks(range(len(shown)), labels, rotation=20, ha="right")
    axis.set_xlim(-0.5, len(shown) - 0.5)
    axis.set_ylabel("Dice with the segmenter's labels")
    axis.set_ylim(top=1.01)
    figure.legend(loc="outside upper left", fontsize=8, ncols=2, frameon=False)
    return to_png(figure)
