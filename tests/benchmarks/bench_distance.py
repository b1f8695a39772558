"""Time the balanced average Hausdorff distance against two full distance transforms.

Run `python tests/benchmarks/bench_distance.py`: it prints one row of a table.
"""

import statistics
import time

import numpy as np
from scipy.ndimage import distance_transform_edt

from medpair.metrics.distance import balanced_average_hausdorff, dice

# Grid and voxel, in mm, of a time-of-flight angiogram as in Subramaniam et al. 2022.
SHAPE = (384, 312, 127)
SPACING = (0.5, 0.5, 0.7)
PAIRS = 5


def two_transforms(prediction, truth, spacing):
    """The definition as it is usually written: one distance transform of the volume per mask."""
    to_prediction = distance_transform_edt(~prediction, sampling=spacing)[truth].sum()
    to_truth = distance_transform_edt(~truth, sampling=spacing)[prediction].sum()
    return 0.5 * (to_prediction + to_truth) / truth.sum()


def random_walks(rng, count, steps):
    """Return smooth paths inside the volume, each (steps, 3) voxels, with a radius."""
    walks = []
    for _ in range(count):
        point, heading = rng.uniform(0.1, 0.9, 3) * SHAPE, rng.normal(size=3)
        path = np.empty((steps, 3))
        for step in range(steps):
            heading += 0.15 * rng.normal(size=3)
            heading /= np.linalg.norm(heading)
            point = np.clip(point + heading, 5, np.subtract(SHAPE, 6))
            path[step] = point
        walks.append((path, rng.uniform(1.5, 4.0)))
    return walks


def tubes(walks, wider=0.0, moved=0.0):
    """Draw each path as a tube, `wider` voxels more in radius and `moved` along every axis."""
    mask = np.zeros(SHAPE, dtype=bool)
    for path, radius in walks:
        reach = np.arange(-5, 6)
        ball = np.stack(np.meshgrid(reach, reach, reach, indexing="ij"), axis=-1).reshape(-1, 3)
        ball = ball[(ball**2).sum(axis=1) <= (radius + wider) ** 2]
        inside = (np.rint(path + moved).astype(int)[:, None] + ball).reshape(-1, 3)
        inside = inside[((inside >= 0) & (inside < SHAPE)).all(axis=1)]
        mask[tuple(inside.T)] = True
    return mask


def main():
    rng = np.random.default_rng(0)
    common, missed, invented = (random_walks(rng, n, 250) for n in (36, 2, 2))
    truth = tubes(common + missed)
    prediction = tubes(common + invented, wider=-0.2, moved=0.5)

    times, errors = [], []
    for _ in range(PAIRS):
        row, values = [], []
        for measure in (two_transforms, balanced_average_hausdorff):
            start = time.perf_counter()
            values.append(measure(prediction, truth, SPACING))
            row.append(time.perf_counter() - start)
        times.append(row)
        errors.append(abs(values[1] / values[0] - 1))

    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    ratio = statistics.median(a / b for a, b in times)
    print(
        f"| bAHD, {'x'.join(map(str, SHAPE))}, {prediction.sum() / 1e3:.0f}k and "
        f"{truth.sum() / 1e3:.0f}k voxels, Dice {dice(prediction, truth):.2f} "
        f"| two transforms {slow:.2f} s | ours {fast:.3f} s | {ratio:.1f}x (median of {PAIRS} "
        f"pairs) | relative error {max(errors):.0e} |"
    )


if __name__ == "__main__":
    main()
