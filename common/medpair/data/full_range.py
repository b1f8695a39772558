"""The ends of a generated image's intensities, which it has too few bright voxels to reach."""

from __future__ import annotations

import numpy as np

from medpair.data.cohort import ROBUST_PERCENTILES

# Beyond these percentiles an image may be stretched, and so much at most.
TAIL_PERCENTILES = (2.0, 98.0)
LONGEST_TAIL = 3.0


def full_range(image: np.ndarray) -> np.ndarray:
    """Stretch the darkest and brightest 2 % of a generated image to the robust range -1..1.

    Every training volume fills that range: it was scaled by its own percentiles. A generated one,
    smoother, may fall short of them (fat and vessels are few voxels), and whoever scales by
    percentiles again, as segmenters do, finds all of its tissues too bright. What lies between the
    2nd and the 98th percentile stays as it is; the ends become at most three times as long.

    Args:
        image: (W, H, D) in -1..1, the volume without padding.
    """
    ends = np.percentile(image, ROBUST_PERCENTILES)
    knots = np.percentile(image, TAIL_PERCENTILES)
    result = np.array(image)
    for end, knot, sign in zip(ends, knots, (-1.0, 1.0), strict=True):
        beyond = (image - knot) * sign
        reach, whole = (end - knot) * sign, (sign - knot) * sign
        if 0 < reach < whole:
            factor = min(whole / reach, LONGEST_TAIL)
            result = np.where(beyond > 0, knot + (image - knot) * factor, result)
    return np.clip(result, -1.0, 1.0)
