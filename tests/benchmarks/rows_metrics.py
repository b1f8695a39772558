"""Distances between masks and between cohorts."""

from __future__ import annotations

import numpy as np
from harness import Row, Setting, Sides, largest_difference
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from scipy.ndimage import distance_transform_edt
from sklearn.cluster import MiniBatchKMeans
from torch import from_numpy

from medpair.data.sampling import derive_seed
from medpair.metrics.distance import balanced_average_hausdorff, dice
from medpair.metrics.frechet import frechet_distance
from medpair.metrics.prd import max_f_beta, prd_curve

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
Walk = tuple[Array, float]

# Voxel, in mm, of a time-of-flight angiogram as in Subramaniam et al. 2022
SPACING = (0.5, 0.5, 0.7)
# Features of the usual Inception network
WIDTH = 2048
# Both cluster by k-means; where a cluster ends is chance. The authors' procedure itself, begun from
# another seed, moves F by up to 0.02 and the curve by up to 0.03 on the larger cohorts.
F_LIMIT, CURVE_LIMIT = 0.04, 0.1


def two_transforms(prediction: Mask, truth: Mask) -> float:
    """The definition as it is usually written: one distance transform of the volume per mask."""
    to_prediction = distance_transform_edt(~prediction, sampling=SPACING)[truth].sum()
    to_truth = distance_transform_edt(~truth, sampling=SPACING)[prediction].sum()
    return float(0.5 * (to_prediction + to_truth) / truth.sum())


def random_walks(
    rng: np.random.Generator, count: int, steps: int, shape: tuple[int, ...]
) -> list[Walk]:
    """Return smooth paths inside the volume, each (steps, 3) voxels, with a radius."""
    walks = []
    for _ in range(count):
        point, heading = rng.uniform(0.1, 0.9, 3) * shape, rng.normal(size=3)
        path = np.empty((steps, 3))
        for step in range(steps):
            heading += 0.15 * rng.normal(size=3)
            heading /= np.linalg.norm(heading)
            point = np.clip(point + heading, 5, np.subtract(shape, 6))
            path[step] = point
        walks.append((path, rng.uniform(1.5, 4.0)))
    return walks


def tubes(
    walks: list[Walk], shape: tuple[int, ...], wider: float = 0.0, moved: float = 0.0
) -> Mask:
    """Draw each path as a tube, `wider` voxels more in radius and `moved` along every axis."""
    mask = np.zeros(shape, dtype=bool)
    reach = np.arange(-5, 6)
    for path, radius in walks:
        ball = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
        ball = ball[(ball**2).sum(axis=1) <= (radius + wider) ** 2]
        inside = (np.rint(path + moved).astype(int)[:, None] + ball).reshape(-1, 3)
        inside = inside[((inside >= 0) & (inside < shape)).all(axis=1)]
        mask[tuple(inside.T)] = True
    return mask


def hausdorff(setting: Setting) -> Sides:
    """Two segmentations of vessels that mostly agree."""
    shape, scale = ((64, 52, 24), 6) if setting.small else ((384, 312, 127), 1)
    rng = np.random.default_rng(0)
    counts = (36 // scale, max(1, 2 // scale), max(1, 2 // scale))
    common, missed, invented = (random_walks(rng, n, 250 // scale, shape) for n in counts)
    truth = tubes(common + missed, shape)
    prediction = tubes(common + invented, shape, wider=-0.2, moved=0.5)

    def ours() -> float:
        return balanced_average_hausdorff(prediction, truth, SPACING)

    def check() -> str:
        usual, found = two_transforms(prediction, truth), ours()
        apart = abs(found - usual) / usual
        assert apart <= 1e-6, f"{usual:.9g} and {found:.9g} mm"
        return f"{found:.4g} mm, relative difference {apart:.0e} (limit 1e-6)"

    note = (
        f"{prediction.sum() / 1e3:.0f}k and {truth.sum() / 1e3:.0f}k voxels, "
        f"Dice {dice(prediction, truth):.2f}"
    )
    return Sides(
        lambda: two_transforms(prediction, truth), ours, check, count_flops=False, notes=note
    )


def cohorts(count: int, width: int, modes: int = 8) -> tuple[Array, Array]:
    """Two cohorts of correlated, skewed features about some modes."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(64, width))
    centres = 2 * rng.normal(size=(modes, 64))
    both = []
    for shift in (0.0, 0.3):
        hidden = centres[rng.integers(0, modes, count)] + rng.normal(size=(count, 64)) + shift
        noise = rng.normal(size=(count, width))
        both.append(np.maximum(hidden @ mixing / 8 + noise, 0))
    return both[0], both[1]


def matrix_square_root(first: Array, second: Array) -> float:
    """The definition as it is usually written: two covariances and the root of their product."""
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = first.mean(axis=0) - second.mean(axis=0)
    root = np.real(sqrtm(one @ two))
    return float(apart @ apart + np.trace(one) + np.trace(two) - 2 * np.trace(root))


def frechet(setting: Setting, count: int) -> Sides:
    """Two cohorts of as many rows of features."""
    first, second = cohorts(*((40, 64) if setting.small else (count, WIDTH)))

    def check() -> str:
        usual, found = matrix_square_root(first, second), frechet_distance(first, second)
        apart = abs(found - usual) / usual
        # the usual root of a singular product is not exact itself
        assert apart <= 1e-5, f"{usual:.9g} and {found:.9g}"
        return f"relative difference {apart:.0e} (limit 1e-5)"

    return Sides(
        lambda: matrix_square_root(first, second),
        lambda: frechet_distance(first, second),
        check,
        count_flops=False,
    )


def clustered_as_they_are(real: Array, synthetic: Array) -> Array:
    """The authors' procedure: cluster all features, and the curve at angles inside the ends."""
    slopes = np.tan(np.linspace(1e-10, np.pi / 2 - 1e-10, 1001))[:, None]
    curves = []
    for run in range(10):
        means = MiniBatchKMeans(10, n_init=10, random_state=derive_seed(0, run) % 2**32)
        labels = means.fit_predict(np.concatenate([real, synthetic]))
        p = np.bincount(labels[: len(real)], minlength=10) / len(real)
        q = np.bincount(labels[len(real) :], minlength=10) / len(synthetic)
        precision = np.minimum(p * slopes, q).sum(axis=1)
        curves.append((precision, precision / slopes[:, 0]))
    return np.clip(np.mean(curves, axis=0), 0, 1)


def precision_and_recall(real: Array, synthetic: Array) -> Array:
    found = prd_curve(real, synthetic)
    return np.stack([found.precision, found.recall])


def prd(setting: Setting, count: int) -> Sides:
    """Two cohorts of as many rows of features."""
    real, synthetic = cohorts(*((100, 64) if setting.small else (count, WIDTH)))

    def check() -> str:
        usual, found = clustered_as_they_are(real, synthetic), precision_and_recall(real, synthetic)
        apart = [abs(max_f_beta(*usual, beta) - max_f_beta(*found, beta)) for beta in (8.0, 1 / 8)]
        told = f"F8 and F1/8 differ by {apart[0]:.3f} and {apart[1]:.3f}"
        assert max(apart) <= F_LIMIT, f"{told}, more than {F_LIMIT}"
        curve = largest_difference(from_numpy(usual), from_numpy(found), CURVE_LIMIT)
        return f"{told} (limit {F_LIMIT}); curves: {curve}"

    return Sides(
        lambda: clustered_as_they_are(real, synthetic),
        lambda: precision_and_recall(real, synthetic),
        check,
        count_flops=False,
    )


AUTHORS = "the authors' procedure: 10 runs of MiniBatchKMeans with n_init 10"

ROWS: list[Row] = [
    Row(
        "balanced average Hausdorff distance, 384 x 312 x 127",
        "two distance transforms",
        {"cpu": 8.0},
        hausdorff,
    ),
    *(
        Row(
            f"Frechet distance, {count} x {WIDTH}",
            "square root of the covariances' product",
            {"cpu": 5.0},
            lambda setting, count=count: frechet(setting, count),
        )
        for count in (200, 2048)
    ),
    *(
        Row(
            f"precision and recall, {count} x {WIDTH}",
            AUTHORS,
            {"cpu": 5.0},
            lambda setting, count=count: prd(setting, count),
        )
        for count in (200, 2048)
    ),
]
