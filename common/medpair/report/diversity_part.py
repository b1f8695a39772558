"""How much the volumes of a cohort differ among themselves, synthetic beside real."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medpair.data.patches import PAD_IMAGE
from medpair.data.slices import framed
from medpair.metrics.diversity import ms_ssim, pairwise_diversity, window_and_scales
from medpair.report.pairs import PairFolder
from medpair.report.part import Part

PAIRS = 60
LEAST = 3
Distance = Callable[[np.ndarray, np.ndarray], float]


class Framed(Sequence[np.ndarray]):
    """The images of a cohort in -1..1 on one frame, read when asked for."""

    def __init__(self, pairs: PairFolder, frame: Sequence[int]) -> None:
        self.pairs, self.frame = pairs, frame

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: Any) -> Any:
        return framed(self.pairs[index].unit(), self.frame, PAD_IMAGE)


def structural(first: np.ndarray, second: np.ndarray) -> float:
    """Return MS-SSIM of two volumes in -1..1."""
    return ms_ssim(first, second, 2.0)


def diversity_part(
    real: PairFolder,
    synthetic: PairFolder,
    learned: Mapping[str, Distance],
    left_out: Mapping[str, str],
    seed: int = 0,
) -> Part:
    """Return the mean similarity or distance of random pairs within each cohort.

    MS-SSIM is a similarity: higher in the synthetic cohort means less diverse. LPIPS, which
    MedGen3D reports, is a distance: lower means less diverse. Both cohorts are brought to one
    frame, the median size of the real volumes.

    Args:
        real: the real cohort.
        synthetic: the synthetic one.
        learned: {name: distance of two volumes in -1..1}, beside MS-SSIM.
        left_out: {name: why} of those that cannot be had.
        seed: of the pairs.
    """
    part = Part({"left_out": dict(left_out), "measures": {}})
    part.notes = [f"{name} is left out: {why}." for name, why in left_out.items()]
    if min(len(real), len(synthetic)) < LEAST:
        part.notes.append(f"Fewer than {LEAST} volumes in a cohort: diversity is not given.")
        return part
    sizes = [real[index].image.shape for index in range(min(len(real), 20))]
    frame = np.median(sizes, axis=0).round().astype(int).tolist()
    measures: dict[str, tuple[str, Distance]] = {}
    try:
        window, scales = window_and_scales(frame)
    except ValueError as error:
        part.notes.append(f"MS-SSIM is left out: {error}.")
    else:
        measures["ms_ssim"] = ("similarity", structural)
        part.numbers["ms_ssim_window"], part.numbers["ms_ssim_scales"] = window, scales
    measures |= {name: ("distance", distance) for name, distance in learned.items()}
    for name, (kind, distance) in measures.items():
        part.numbers["measures"][name] = {
            "kind": kind,
            **{
                cohort: pairwise_diversity(Framed(pairs, frame), distance, PAIRS, seed).to_json()
                for cohort, pairs in (("real", real), ("synthetic", synthetic))
            },
        }
    part.numbers["frame"] = frame
    return part
