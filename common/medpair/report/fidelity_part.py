"""Distances of two cohorts in the features of networks, each beside its floor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medpair.data.sampling import numpy_generator
from medpair.metrics.compared import Statistic, compare
from medpair.metrics.frechet import frechet_distance, kernel_distance
from medpair.metrics.prd import PRD, prd_curve
from medpair.report.features import FeatureExtractor, FeatureSet
from medpair.report.fidelity_plots import plot_prd
from medpair.report.pairs import Pair, PairFolder
from medpair.report.part import Part
from medpair.report.sections import name_of

CLUSTERS = (10, 20)  # Subramaniam et al. 2022; Sajjadi et al. 2018
# Fewer volumes on a side say nothing; a floor needs two halves of the real cohort
LEAST_REAL, LEAST_SYNTHETIC = 8, 4
DISTANCES: dict[str, Statistic] = {"frechet": frechet_distance, "kernel": kernel_distance}
Progress = Callable[[Iterable[Pair], str], Iterable[Pair]]


def fidelity_part(
    real: PairFolder,
    synthetic: PairFolder,
    extractors: Sequence[FeatureExtractor],
    left_out: Mapping[str, str],
    seed: int = 0,
    progress: Progress = lambda items, _: items,
) -> Part:
    """Compare two cohorts in the features of each extractor.

    Intervals and floors are drawn by volume: slices of one volume are not independent.

    Args:
        real: the real cohort.
        synthetic: the synthetic one.
        extractors: networks whose features are compared.
        left_out: {name: why} of extractors that cannot be had.
        seed: of all draws.
        progress: wraps the reading of each cohort.
    """
    part = Part(
        {
            "real_volumes": len(real),
            "synthetic_volumes": len(synthetic),
            "features": {},
            "left_out": dict(left_out),
        }
    )
    part.notes = [f"{name} is left out: {why}." for name, why in left_out.items()]
    if len(real) < LEAST_REAL or len(synthetic) < LEAST_SYNTHETIC:
        part.notes.append(
            f"{len(real)} real and {len(synthetic)} synthetic volumes are too few for distances of "
            f"distributions; {LEAST_REAL} and {LEAST_SYNTHETIC} are needed."
        )
        return part
    curves: dict[str, dict[int, tuple[PRD, PRD]]] = {}
    for extractor in extractors:
        one = extractor.features(progress(real, extractor.name))
        two = extractor.features(progress(synthetic, extractor.name))
        seen = [len(_seen(features)) for features in (one, two)]
        if seen[0] < LEAST_REAL or seen[1] < LEAST_SYNTHETIC:
            part.notes.append(
                f"{name_of(extractor.name)}: {seen[0]} real and {seen[1]} synthetic volumes show "
                "anything at all; that is too few for distances of distributions."
            )
            continue
        numbers, drawn = compare_features(one, two, len(real), len(synthetic), seed)
        curves[extractor.name] = drawn
        part.numbers["features"][extractor.name] = {"extractor": extractor.describe(), **numbers}
        least = min(len(real) // 2, len(synthetic))
        if least <= extractor.dimension:
            part.notes.append(
                f"{name_of(extractor.name)}: with {least} volumes a side for {extractor.dimension} "
                "features even two real cohorts are far apart by the Fréchet distance: it means "
                "something beside that of the real halves alone, and their ratio understates."
            )
        if len(numbers["prd"]) < len(CLUSTERS):
            part.notes.append(
                f"{name_of(extractor.name)}: too few volumes for precision and recall with "
                f"{max(CLUSTERS)} clusters."
            )
    if any(curves.values()):
        part.figures["prd"] = plot_prd(curves)
    return part


def compare_features(
    real: Mapping[str, FeatureSet],
    synthetic: Mapping[str, FeatureSet],
    real_count: int,
    synthetic_count: int,
    seed: int = 0,
) -> tuple[dict[str, Any], dict[int, tuple[PRD, PRD]]]:
    """Compare the features of two cohorts, view by view and over all views.

    Args:
        real: {view: features}.
        synthetic: of the same views.
        real_count: volumes of the real cohort, those without a vector included.
        synthetic_count: of the synthetic one.
        seed: of all draws.

    Returns:
        ``views`` (a distance of each kind per view), ``mean`` over the views, ``prd`` by number of
        clusters; and the curves, synthetic and floor.
    """
    ids = np.arange(real_count + synthetic_count, dtype=np.float64)[:, None]
    first, second = ids[_seen(real)], ids[real_count + _seen(synthetic)]
    numbers: dict[str, Any] = {"views": {}, "mean": {}, "prd": {}}
    for name, distance in DISTANCES.items():
        views = {
            view: _by_volume(distance, real[view], synthetic[view], real_count, synthetic_count)
            for view in real
        }
        mean = _mean(list(views.values()))
        numbers["mean"][name] = compare(mean, first, second, seed=seed).to_json()
        if len(views) > 1:
            for view, statistic in views.items():
                numbers["views"].setdefault(view, {})[name] = float(statistic(first, second))
    curves = {}
    pooled = [np.concatenate([side[view].values for view in real]) for side in (real, synthetic)]
    owners = np.concatenate([real[view].volume for view in real])
    # one part of the real volumes against another is the floor, and against the synthetic ones
    # the figure: of one size, since more samples look better
    order = numpy_generator(seed).permutation(_seen(real))
    count = min(len(order) // 2, len(second))
    parts = [pooled[0][np.isin(owners, order[k * count : (k + 1) * count])] for k in (0, 1)]
    size = min(len(rows) for rows in (*parts, pooled[1]))
    base = parts[0][numpy_generator(seed, 1).permutation(len(parts[0]))[:size]]
    for clusters in CLUSTERS:
        if clusters > size:  # not even two rows a cluster
            continue
        curves[clusters] = (
            prd_curve(base, pooled[1], clusters, seed=seed),
            prd_curve(base, parts[1], clusters, seed=seed),
        )
        numbers["prd"][str(clusters)] = {
            "f8": curves[clusters][0].f8,
            "f1_8": curves[clusters][0].f1_8,
            "floor_f8": curves[clusters][1].f8,
            "floor_f1_8": curves[clusters][1].f1_8,
            "samples": curves[clusters][0].size,
        }
    return numbers, curves


def _by_volume(
    distance: Statistic, real: FeatureSet, synthetic: FeatureSet, real_count: int, count: int
) -> Statistic:
    """Return the distance as a function of numbers of volumes: real ones first, then synthetic."""
    rows = np.concatenate([real.values, synthetic.values]).astype(np.float64)
    volume = np.concatenate([real.volume, real_count + synthetic.volume])
    members = [np.flatnonzero(volume == number) for number in range(real_count + count)]

    def statistic(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        one, two = (
            np.concatenate([members[int(number)] for number in side[:, 0]])
            for side in (first, second)
        )
        return distance(rows[one], rows[two])

    return statistic


def _seen(features: Mapping[str, FeatureSet]) -> NDArray[np.intp]:
    """Return the volumes that have vectors in every view: flat ones have none."""
    return reduce(np.intersect1d, (np.unique(view.volume) for view in features.values()))


def _mean(statistics: Sequence[Statistic]) -> Statistic:
    def statistic(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
        return float(np.mean([part(first, second) for part in statistics]))

    return statistic
