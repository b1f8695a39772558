"""Label maps and intensities of two cohorts, class by class, each figure beside its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpair.data.resampling import SPACING_TOLERANCE
from medpair.metrics.compared import Statistic, compare
from medpair.metrics.label_adjacency import adjacency
from medpair.metrics.label_cohort import MEASURES, kolmogorov_smirnov
from medpair.metrics.label_shape import LabelShape, label_shape
from medpair.report.label_plots import (
    largest,
    plot_adjacency,
    plot_histograms,
    plot_measures,
)
from medpair.report.pairs import Pair, PairFolder
from medpair.report.part import Part

AXES = ("sagittal", "coronal", "axial")
BINS = np.linspace(-1.0, 1.0, 65)
# A figure and its floor need two volumes on each side, and two halves of the real ones
LEAST_REAL, LEAST_SYNTHETIC = 4, 3
Progress = Callable[[Iterable[Pair], str], Iterable[Pair]]


@dataclass(frozen=True)
class CohortLabels:
    """What is measured of each volume of a cohort.

    Attributes:
        shapes: one per volume.
        histograms: (N, K + 1, bins) share of each class's voxels per bin of intensity, NaN for an
            absent class.
        contacts: (N, K + 1, K + 1) shares of common surface.
        spacings: (N, 3) mm per axis.
    """

    shapes: list[LabelShape]
    histograms: NDArray[np.float64]
    contacts: NDArray[np.float64]
    spacings: NDArray[np.float64]

    @property
    def spacing(self) -> NDArray[np.float64]:
        """Median over the volumes, in mm per axis."""
        return np.asarray(np.median(self.spacings, axis=0))


def measure(
    pairs: PairFolder, axis: int, progress: Progress = lambda items, _: items
) -> CohortLabels:
    """Measure all pairs of a cohort; ``axis`` is that of the slices whose overlap is taken."""
    shapes, histograms, contacts, spacings = [], [], [], []
    for pair in progress(pairs, "labels"):
        shapes.append(label_shape(pair.label, pairs.num_labels, pair.spacing, axis))
        contacts.append(adjacency(pair.label, pairs.num_labels, pair.spacing))
        spacings.append(pair.spacing)
        unit = pair.unit()
        rows = [np.histogram(unit[pair.label == k], BINS)[0] for k in range(pairs.num_labels + 1)]
        counts = np.array(rows, dtype=np.float64)
        total = counts.sum(axis=1, keepdims=True)
        histograms.append(
            np.divide(counts, total, out=np.full_like(counts, np.nan), where=total > 0)
        )
    return CohortLabels(shapes, np.array(histograms), np.array(contacts), np.array(spacings))


def label_part(
    real: PairFolder,
    synthetic: PairFolder,
    axis: int = 2,
    seed: int = 0,
    progress: Progress = lambda items, _: items,
) -> Part:
    """Compare volumes, surfaces, components, neighbours and intensities of two cohorts.

    Distances: the Kolmogorov-Smirnov distance (0 to 1) for what is one number per volume; the
    Wasserstein distance of the mean histograms for intensities, in units of a volume's robust
    range; half the summed difference of the mean rows (0 to 1) for shares of common surface, each
    row's mean over the volumes that have its class.

    Args:
        real: the real cohort.
        synthetic: of the same classes.
        axis: of the slices whose overlap is taken.
        seed: of the draws for floors.
        progress: wraps the reading of each cohort.
    """
    one, two = measure(real, axis, progress), measure(synthetic, axis, progress)
    names = real.names
    classes = [_class_rows(one, two, index, name, seed) for index, name in enumerate(names)]
    intensity = [
        {
            "name": name,
            **_compared(_histogram_distance, one.histograms[:, k], two.histograms[:, k], seed),
        }
        for k, name in enumerate(("background", *names))
    ]
    mean = [_mean_contacts(cohort.contacts) for cohort in (one, two)]
    # most classes never touch: a share that is 0 everywhere adds nothing to the distance
    touching = (mean[0] > 0) | (mean[1] > 0)
    of_contacts = _contact_distance(touching)
    contacts = [_contact_rows(cohort.contacts, touching) for cohort in (one, two)]
    numbers = {
        "real_volumes": len(real),
        "synthetic_volumes": len(synthetic),
        "slices": AXES[axis],
        "classes": classes,
        "intensity": intensity,
        "adjacency": {
            **_compared(of_contacts, contacts[0], contacts[1], seed),
            "names": ["background", *names],
            "real": mean[0].round(4).tolist(),
            "synthetic": mean[1].round(4).tolist(),
        },
    }
    figures = {
        "measures": plot_measures(one.shapes, two.shapes, names),
        "intensity": plot_histograms(
            one.histograms, two.histograms, names, BINS, largest(one.shapes)
        ),
    }
    if len(names) > 1:  # a single class touches the background alone
        figures["adjacency"] = plot_adjacency(mean[0], mean[1], names)
    notes = []
    if len(real) < LEAST_REAL or len(synthetic) < LEAST_SYNTHETIC:
        notes.append(
            f"{len(real)} real and {len(synthetic)} synthetic volumes are too few for distances "
            f"and floors ({LEAST_REAL} and {LEAST_SYNTHETIC} are needed): means alone are shown."
        )
    mixed = [
        side
        for side, cohort in (("real", one), ("synthetic", two))
        if not np.allclose(cohort.spacings, cohort.spacing, rtol=SPACING_TOLERANCE)
    ]
    if mixed:
        notes.append(
            f"Voxels within the {' and the '.join(mixed)} cohort differ in size: surfaces and "
            "overlaps of slices differ for that alone (--spacing brings all to one grid)."
        )
    if not np.allclose(one.spacing, two.spacing, rtol=SPACING_TOLERANCE):
        sizes = [" x ".join(f"{step:.3g}" for step in cohort.spacing) for cohort in (one, two)]
        notes.append(
            f"Voxels of the real cohort are {sizes[0]} mm, of the synthetic one {sizes[1]} mm: "
            "surfaces, overlaps of slices and diversity differ for that alone (--spacing brings "
            "both to one grid)."
        )
    return Part(numbers, figures, notes)


def _class_rows(
    one: CohortLabels, two: CohortLabels, index: int, name: str, seed: int
) -> dict[str, Any]:
    """Return presence, and for each measure both cohorts' mean and spread and their distance."""
    rows = []
    for key, (attribute, factor) in MEASURES.items():
        sides = [_values(cohort, attribute, index) * factor for cohort in (one, two)]
        rows.append(
            {
                "measure": key,
                "real": _mean_and_sd(sides[0]),
                "synthetic": _mean_and_sd(sides[1]),
                **_compared(_ks, sides[0][:, None], sides[1][:, None], seed),
            }
        )
    there = [np.array([s.volume[index] > 0 for s in c.shapes], np.float64) for c in (one, two)]
    presence: dict[str, Any] = {"distance": None}
    if min(flags.min() for flags in there) == 0:
        presence = _compared(_share_apart, there[0][:, None], there[1][:, None], seed)
    return {
        "name": name,
        "presence_real": float(there[0].mean()),
        "presence_synthetic": float(there[1].mean()),
        **{f"presence_{key}": value for key, value in presence.items()},
        "measures": rows,
    }


def _values(cohort: CohortLabels, attribute: str, index: int) -> NDArray[np.float64]:
    """Return the numbers of the volumes that have the class."""
    found = [getattr(shape, attribute)[index] for shape in cohort.shapes if shape.volume[index] > 0]
    return np.array([value for value in found if value is not None], dtype=np.float64)


def _mean_and_sd(values: NDArray[np.float64]) -> dict[str, float | int | None]:
    if not values.size:
        return {"n": 0, "mean": None, "sd": None}
    return {
        "n": int(values.size),
        "mean": float(values.mean()),
        "sd": float(values.std(ddof=1)) if values.size > 1 else 0.0,
    }


def _compared(
    statistic: Statistic, real: NDArray[np.float64], synthetic: NDArray[np.float64], seed: int
) -> dict[str, Any]:
    """Return ``distance``, as ``Compared``, or None where there is too little to compare."""
    one, two = (rows[np.isfinite(rows).all(axis=1)] for rows in (real, synthetic))
    if len(one) < LEAST_REAL or len(two) < LEAST_SYNTHETIC:
        return {"distance": None}
    return {"distance": compare(statistic, one, two, seed=seed).to_json()}


def _ks(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return kolmogorov_smirnov(first, second)


def _share_apart(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    return float(abs(first.mean() - second.mean()))


def _histogram_distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Wasserstein-1 distance of mean histograms; the range of intensities has length 1."""
    apart = first.mean(axis=0).cumsum() - second.mean(axis=0).cumsum()
    return float(np.abs(apart).sum() / len(apart))


def _mean_contacts(contacts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (K + 1, K + 1): each row's mean over the volumes (N, K + 1, K + 1) with that class."""
    there = contacts.any(axis=2).sum(axis=0)[:, None]
    return np.asarray(contacts.sum(axis=0) / np.maximum(there, 1))


def _contact_rows(
    contacts: NDArray[np.float64], touching: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return of each volume the shares that matter, then which classes have a surface (0 or 1)."""
    return np.hstack([contacts[:, touching], contacts.any(axis=2)])


def _contact_distance(touching: NDArray[np.bool_]) -> Statistic:
    """Return the statistic of two tables of ``_contact_rows``."""
    count = len(touching)
    row = np.nonzero(touching)[0]

    def mean(table: NDArray[np.float64]) -> NDArray[np.float64]:
        there = table[:, -count:].sum(axis=0)
        return np.asarray(table[:, :-count].sum(axis=0) / np.maximum(there, 1)[row])

    def distance(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        # a class that one of them lacks is told by its presence
        drawn = (table[:, -count:].sum(axis=0)[row] > 0 for table in (first, second))
        both = np.logical_and(*drawn)
        return float(0.5 * np.abs(mean(first) - mean(second))[both].sum() / count)

    return distance
