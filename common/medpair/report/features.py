"""What the report asks of a feature extractor; the extractors are in ``features_*.py``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from medpair.report.pairs import Pair


@dataclass(frozen=True)
class FeatureSet:
    """Feature vectors of a cohort, and the volume that each comes from.

    Vectors of one volume are not independent: an interval is resampled by volume.

    Attributes:
        values: (M, D) float32.
        volume: (M,) position in the cohort of the volume that a vector comes from; a volume may
            have several vectors, or none.
    """

    values: np.ndarray
    volume: np.ndarray


class FeatureExtractor(Protocol):
    """Volumes to feature vectors.

    Attributes:
        name: short, for keys and file names.
        dimension: D, the length of a vector.
    """

    name: str
    dimension: int

    def describe(self) -> dict[str, Any]:
        """Return weights' file, SHA-256 and preprocessing as plain data for JSON."""

    def features(self, pairs: Iterable[Pair]) -> dict[str, FeatureSet]:
        """Return {view: vectors}; an extractor of whole volumes has the one view ``volume``.

        A vector depends on its volume alone, never on the rest of the cohort; between batches of
        other composition only floating-point rounding differs.
        """


def volume_features(vectors: list[np.ndarray], dimension: int) -> dict[str, FeatureSet]:
    """Return one vector per volume as the view ``volume``."""
    values = np.asarray(vectors, np.float32).reshape(len(vectors), dimension)
    return {"volume": FeatureSet(values, np.arange(len(vectors)))}
