"""The ends of a generated image's intensities, which it has too few bright voxels to reach."""

from __future__ import annotations

import numpy as np

from medpair.data.intensity import ROBUST_PERCENTILES

# Beyond these percentiles an image may be stretched, and so much at most.
TAIL_PERCENTILES = (2.0, 98.0)
LONGEST_TAIL = 3.0
# A class that is put back pulls the end with it: after so many times both are where they belong.
ROUNDS = 5


def full_range(image: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Stretch the darkest and brightest 2 % of a generated image to the robust range -1..1.

    Every training volume fills that range: it was scaled by its own percentiles. A generated one,
    smoother, may fall short of them (fat and vessels are few voxels), and whoever scales by
    percentiles again, as segmenters do, finds all of its tissues too bright. What lies between the
    2nd and the 98th percentile is not stretched; the ends become at most three times as long.

    Each foreground class is then put back to the mean that it was drawn with: a small bright one
    would lie beyond the 98th percentile as a whole, and be carried away with the fat.

    Args:
        image: (W, H, D) in -1..1, the volume without padding.
        label: (W, H, D) class values, 0 the background.
    """
    result = np.array(image)
    classes = [label == value for value in np.unique(label) if value]
    means = [image[inside].mean() for inside in classes]
    left = [LONGEST_TAIL, LONGEST_TAIL]
    for _ in range(ROUNDS):
        _stretch(result, left)
        for inside, mean in zip(classes, means, strict=True):
            result[inside] += mean - result[inside].mean()
    return np.clip(result, -1.0, 1.0)


def _stretch(image: np.ndarray, left: list[float]) -> None:
    """Stretch both ends in place, by no more than what is ``left`` for each."""
    ends = np.percentile(image, ROBUST_PERCENTILES)
    knots = np.percentile(image, TAIL_PERCENTILES)
    for side, (end, knot, sign) in enumerate(zip(ends, knots, (-1.0, 1.0), strict=True)):
        reach, whole = (end - knot) * sign, (sign - knot) * sign
        if 0 < reach < whole:
            factor = min(whole / reach, left[side])
            beyond = (image - knot) * sign > 0
            image[beyond] = knot + (image[beyond] - knot) * factor
            left[side] /= factor
