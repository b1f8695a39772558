"""Time the distances between cohorts against their usual, plain forms.

Run `python tests/benchmarks/bench_frechet.py`: it prints the rows of a table, in some minutes.
"""

import statistics
import time

import numpy as np
import torch
from monai.metrics.regression import compute_ms_ssim
from scipy.linalg import sqrtm
from sklearn.cluster import MiniBatchKMeans

from medpair.data.sampling import derive_seed
from medpair.metrics.diversity import SCALE_WEIGHTS, ms_ssim, window_and_scales
from medpair.metrics.frechet import frechet_distance
from medpair.metrics.prd import prd_curve

PAIRS = 3
# Features of the usual Inception network.
WIDTH = 2048


def matrix_square_root(first, second):
    """The definition as it is usually written: two covariances and the root of their product."""
    one, two = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    apart = first.mean(axis=0) - second.mean(axis=0)
    root = np.real(sqrtm(one @ two))
    return float(apart @ apart + np.trace(one) + np.trace(two) - 2 * np.trace(root))


def clustered_as_they_are(real, synthetic):
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
    return np.mean(curves, axis=0)


def precision_and_recall(real, synthetic):
    found = prd_curve(real, synthetic)
    return np.stack([found.precision, found.recall])


def monai_ms_ssim(first, second):
    window, scales = window_and_scales(first.shape)
    weights = np.array(SCALE_WEIGHTS[:scales]) / sum(SCALE_WEIGHTS[:scales])
    one, two = (torch.from_numpy(volume)[None, None] for volume in (first, second))
    value = compute_ms_ssim(one, two, 3, kernel_size=window, weights=weights.tolist())
    return float(value)


def our_ms_ssim(first, second):
    return ms_ssim(first, second, 1.0)


def row(name, plain, ours, arguments, pairs=PAIRS):
    """Time both forms by turns and print their ratio and how far their values are apart."""
    times, errors = [], []
    for _ in range(pairs):
        seconds, values = [], []
        for measure in (plain, ours):
            start = time.perf_counter()
            values.append(np.asarray(measure(*arguments)))
            seconds.append(time.perf_counter() - start)
        times.append(seconds)
        errors.append(np.abs(values[1] - values[0]).max() / np.abs(values[0]).max())
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(
        f"| {name} | plain {slow:.3g} s | ours {fast:.3g} s | {ratio:.1f}x (median of {pairs} "
        f"pairs) | relative difference {max(errors):.0e} |",
        flush=True,
    )


def cohorts(rng, count, modes=8):
    """Two cohorts of correlated, skewed features about some modes."""
    mixing = rng.normal(size=(64, WIDTH))
    centres = 2 * rng.normal(size=(modes, 64))
    both = []
    for shift in (0.0, 0.3):
        hidden = centres[rng.integers(0, modes, count)] + rng.normal(size=(count, 64)) + shift
        noise = rng.normal(size=(count, WIDTH))
        both.append(np.maximum(hidden @ mixing / 8 + noise, 0))
    return both


def main():
    rng = np.random.default_rng(0)
    few, many = cohorts(rng, 200), cohorts(rng, 2048)
    row(f"Frechet, 200 x {WIDTH}", matrix_square_root, frechet_distance, few)
    row(f"Frechet, 2048 x {WIDTH}", matrix_square_root, frechet_distance, many)
    row(f"PRD, 200 x {WIDTH}", clustered_as_they_are, precision_and_recall, few)
    row(f"PRD, 2048 x {WIDTH}", clustered_as_they_are, precision_and_recall, many)
    for shape in ((40, 48, 32), (80, 80, 80)):
        volumes = rng.random((2, *shape), dtype=np.float32)
        size = " x ".join(map(str, shape))
        row(f"MS-SSIM against MONAI, {size}", monai_ms_ssim, our_ms_ssim, volumes)


if __name__ == "__main__":
    main()
