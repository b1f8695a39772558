"""The table of `measure_steps.py`: label statistics by solver and number of steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import permutation_test

from medpair.data.sampling import numpy_generator
from medpair.metrics.label_cohort import kolmogorov_smirnov
from medpair.metrics.label_shape import LabelShape
from medpair.metrics.summary import bootstrap_interval

Line = dict[str, Any]
HEADINGS = (
    "solver",
    "steps",
    "log-SNR",
    "evidence",
    "volumes",
    "evaluations a volume",
    "s a volume",
    "KS of volume [95 %], of real ones",
    "energy distance [95 %]",
    "ml by class",
    "change of ml by class, % [95 %]",
    "pieces by class",
    "seams",
    "implausible",
    "p",
)
RESAMPLES = 2000
LEVEL = 0.05


def describe_steps(lines: Sequence[Line], real: Sequence[Line], names: Sequence[str]) -> str:
    """Return a Markdown table, a row for each way of sampling, and how few steps will do.

    - KS: mean over the classes of the distance of class volumes to the real ones; beside it, what
      as many real volumes are from the others, in the mean of many draws.
    - Energy distance: of `Features`, in their standard deviations; rows of unlike numbers of
      volumes compare.
    - Seams: change across them over change beside them.
    - Change and p are against the solver's row of most steps, and of these that over the widest
      span, volume by volume with the same noise. p: that a row is no further from the real cohort
      (energy distance); see ``worse``.
    """
    features = Features(real)
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), _real_row(real, features)]
    knees = []
    for solver in sorted({line["solver"] for line in lines}):
        ways: dict[Way, list[Line]] = {}
        for line in lines:
            if line["solver"] == solver:
                ways.setdefault(way_of(line), []).append(line)
        base = max(ways, key=lambda way: (way.steps, way.span is None, way.span or ()))
        p = {way: worse(ways[way], ways[base], features) for way in ways}
        order = sorted(ways, key=lambda way: (str(way.span), way.evidence, way.offsets, way.steps))
        rows += [_row(way, ways[way], ways[base], real, features, p[way]) for way in order]
        for group in dict.fromkeys(way[1:] for way in order):
            span, evidence, _ = group
            kind = {w.steps: p[w] for w in order if w[1:] == group}
            few = knee(kind)
            told = f"from {few} steps on" if kind[few] >= LEVEL else "with none of these steps"
            what = f"{solver}, log-SNR {span_text(span)}, evidence {evidence:g}"
            knees.append(f"{what}: not told from {base.steps} steps {told}.")
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"Classes: {', '.join(names)}.\n\n{table}\n\n" + "\n".join(knees)


class Way(NamedTuple):
    """How volumes were sampled by one solver."""

    steps: int
    span: tuple[float, ...] | None
    evidence: float
    offsets: tuple[tuple[str, float], ...] = ()


def way_of(line: Line) -> Way:
    """Return how a line's volume was sampled; older lines do not say where steps were spread."""
    span = line.get("log_snr")
    offsets = tuple(sorted(line.get("size_offsets", {}).items()))
    spread = None if span is None else tuple(span)
    return Way(line["steps"], spread, line.get("evidence", 1.0), offsets)


def span_text(span: tuple[float, ...] | None) -> str:
    """Return where steps were spread, in words."""
    return "all" if span is None else f"{span[0]:g} to {span[1]:g}"


class Features:
    """What a label map is like, in standard deviations of the real ones around their mean.

    Per class: roots of volume and surface, centroid, overlap of neighbouring slices, log of pieces;
    per pair of classes, the share of their surface that they have in common.
    """

    def __init__(self, real: Sequence[Line]) -> None:
        raw = np.stack([self._raw(line) for line in real])
        self.mean = np.nanmean(raw, axis=0)
        spread = np.nanstd(raw, axis=0, ddof=1)
        self.spread = np.where(spread > 1e-6, spread, 1.0)  # of equal numbers it is no exact 0
        self.real = self.of(real)

    def of(self, lines: Sequence[Line]) -> np.ndarray:
        """Return (N, F) numbers; what an absent class does not have counts as the mean."""
        raw = np.stack([self._raw(line) for line in lines])
        return np.nan_to_num((raw - self.mean) / self.spread)

    @staticmethod
    def _raw(line: Line) -> np.ndarray:
        shape = LabelShape.from_json(line["shape"])
        classes = shape.num_labels
        centroids = [centroid or (np.nan,) * 3 for centroid in shape.centroid]
        contact = np.asarray(line["adjacency"])[np.triu_indices(classes + 1, 1)]
        parts = (
            np.cbrt(shape.volume),
            np.sqrt(shape.surface),
            np.ravel(centroids),
            np.array(shape.slice_overlap, dtype=np.float64),
            np.log1p(shape.components),
            contact,
        )
        return np.concatenate(parts)


class EnergyDistance:
    """Energy distance (Székely & Rizzo 2013) of sets drawn from some label maps to the real ones.

    ``2 E|x - y| - E|x - x'| - E|y - y'|`` of `Features`, |.| being the root mean square. Without
    bias, and linear far away, where Frechet's square and a cubic kernel only show the farthest.
    """

    def __init__(self, values: np.ndarray, real: np.ndarray) -> None:
        def apart(one: np.ndarray, two: np.ndarray) -> np.ndarray:
            return np.asarray(cdist(one, two) / np.sqrt(one.shape[1]))

        self.inner = apart(values, values)
        self.cross = apart(values, real).mean(axis=1)
        self.real = apart(real, real).sum() / (len(real) * (len(real) - 1))

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Return (M,) distances for (M, N) counts of the volumes; no volume is its own pair."""
        total = weights.sum(axis=1)
        pairs = ((weights @ self.inner) * weights).sum(axis=1)
        count = np.maximum(np.square(total) - np.square(weights).sum(axis=1), 1)
        return np.asarray(2 * weights @ self.cross / total - pairs / count - self.real)


def knee(p: dict[int, float]) -> int:
    """Return the fewest steps from which on no number of steps is worse but by chance."""
    found = max(p)
    for steps in sorted(p, reverse=True):
        if p[steps] < LEVEL:
            break
        found = steps
    return found


def worse(few: Sequence[Line], most: Sequence[Line], features: Features) -> float:
    """Return the p of a test that swaps pairs: are few steps further from the real cohort.

    A pair are the volumes of one seed and index, which begin with the same noise. 1 without pairs.
    """
    pairs = same_noise(few, most)
    if few is most or len(pairs) < 2:
        return 1.0
    count = len(pairs)
    lines = [line for line, _ in pairs] + [other for _, other in pairs]
    whole = EnergyDistance(features.of(lines), features.real)

    def difference(one: np.ndarray, two: np.ndarray, axis: int) -> np.ndarray:
        sides = []
        for indices in np.broadcast_arrays(one, two):
            chosen = np.zeros((*indices.shape[:-1], 2 * count))
            np.put_along_axis(chosen, indices.astype(np.intp), 1.0, axis=-1)
            sides.append(whole(chosen.reshape(-1, 2 * count)).reshape(indices.shape[:-1]))
        return np.asarray(sides[0] - sides[1])

    tested = permutation_test(
        (np.arange(count), np.arange(count, 2 * count)),
        difference,
        permutation_type="samples",
        vectorized=True,
        alternative="greater",
        n_resamples=RESAMPLES,
        random_state=numpy_generator(0, 0),
    )
    return float(tested.pvalue)


def volume_distance(lines: Sequence[Line], real: Sequence[Line]) -> float:
    """Return the mean over the classes of the KS distance of class volumes."""
    one, two = (np.array([line["shape"]["volume"] for line in group]) for group in (lines, real))
    return float(np.mean([kolmogorov_smirnov(a, b) for a, b in zip(one.T, two.T, strict=True)]))


def chance_distance(real: Sequence[Line], count: int) -> float:
    """Return the mean ``volume_distance`` of so many real volumes (half at most) to the others."""
    count, rng, found = min(count, len(real) // 2), numpy_generator(0, 1), []
    for _ in range(200):
        order = rng.permutation(len(real))
        groups = [[real[i] for i in part] for part in (order[:count], order[count:])]
        found.append(volume_distance(*groups))
    return float(np.mean(found))


def _row(
    way: Way,
    group: Sequence[Line],
    base: Sequence[Line],
    real: Sequence[Line],
    features: Features,
    p: float,
) -> list[str]:
    count, rng = len(group), numpy_generator(0, 2)
    draws = rng.integers(count, size=(RESAMPLES, count))
    ks = [volume_distance([group[i] for i in draw], real) for draw in draws[:200]]
    distance = EnergyDistance(features.of(group), features.real)
    weights = np.stack([np.bincount(draw, minlength=count) for draw in draws])
    energy = distance(weights[(weights > 0).sum(axis=1) > 1].astype(np.float64))
    whole = distance(np.ones((1, count)))[0] if count > 1 else np.nan
    seams = np.sum([line["seams"] for line in group], axis=0)
    return [
        group[0]["solver"],
        str(way.steps),
        span_text(way.span),
        f"{way.evidence:g}" + "".join(f", {name} {more:+g}" for name, more in way.offsets),
        str(count),
        f"{np.mean([line['windows'] * line['steps'] for line in group]):.0f}",
        f"{np.mean([line['seconds'] for line in group]):.1f}",
        f"{volume_distance(group, real):.2f} {_interval(ks)}, {chance_distance(real, count):.2f}",
        f"{whole:.2f} {_interval(energy)}",
        *_by_class(group, base),
        f"{seams[0] / seams[1]:.2f}" if seams[1] else "-",
        f"{sum(bool(line['implausible']) for line in group)}",
        f"{p:.3f}",
    ]


def _real_row(real: Sequence[Line], features: Features) -> list[str]:
    """Return the row of the real cohort: of halves of it, where it is a distance."""
    rng, found, half = numpy_generator(0, 3), [], len(real) // 2
    for _ in range(200):
        order = rng.permutation(len(real))
        one, two = features.real[order[:half]], features.real[order[half:]]
        found.append(EnergyDistance(one, two)(np.ones((1, half)))[0])
    ks = f"{chance_distance(real, half):.2f} (halves)"
    energy = f"{np.mean(found):.2f} {_interval(found)} (halves)"
    blank = ["-", "-"]
    return ["real", "", "", "", str(len(real)), *blank, ks, energy, *_by_class(real), "-", "-", ""]


def _by_class(group: Sequence[Line], base: Sequence[Line] = ()) -> list[str]:
    shapes = [LabelShape.from_json(line["shape"]) for line in group]
    volume = np.array([shape.volume for shape in shapes]) / 1000
    spread = volume.std(axis=0, ddof=min(1, len(group) - 1))
    sizes = [f"{m:.0f} ± {s:.0f}" for m, s in zip(volume.mean(axis=0), spread, strict=True)]
    pieces = np.mean([shape.components for shape in shapes], axis=0)
    changes = " / ".join(_changes(group, base)) or "-"
    return [" / ".join(sizes), changes, " / ".join(f"{count:.1f}" for count in pieces)]


def _changes(group: Sequence[Line], base: Sequence[Line]) -> list[str]:
    """Return by how much each class is more than in the base's volumes with the same noise."""
    if not base or group is base:
        return []
    pairs = [(a["shape"]["volume"], b["shape"]["volume"]) for a, b in same_noise(group, base)]
    if len(pairs) < 2:
        return []
    one, two = np.array(pairs, dtype=np.float64).swapaxes(0, 1)
    found = []
    for change in (100 * (one - two) / np.maximum(two.mean(axis=0), 1)).T:
        low, high = bootstrap_interval(change)
        found.append(f"{change.mean():+.1f} [{low:+.1f}, {high:+.1f}]")
    return found


def same_noise(few: Sequence[Line], most: Sequence[Line]) -> list[tuple[Line, Line]]:
    """Return the pairs of one seed and index, which begin with the same noise."""
    there = {(line["seed"], line["index"]): line for line in most}
    keys = [(line["seed"], line["index"]) for line in few]
    return [(line, there[key]) for line, key in zip(few, keys, strict=True) if key in there]


def _interval(values: Sequence[float] | np.ndarray) -> str:
    if not len(values):
        return "[-]"
    low, high = np.quantile(values, (0.025, 0.975))
    return f"[{low:.2f}, {high:.2f}]"
