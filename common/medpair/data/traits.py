"""Traits: a few numbers per volume that vary from patient to patient, and how they vary together.

What belongs to a whole volume, such as how large each organ is or how bright, is hard to find in
the noise of a few slices: a network that has to guess it draws the average patient. So it is told.
For a generated volume the traits are drawn from the Gaussian that has the cohort's means,
deviations and correlations; nothing else of the training volumes is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpair.data.card import CARD, Sampling, card_of_knob, part_of
from medpair.data.cohort import Cohort, LabelledVolume
from medpair.data.files import DataError

# In standard deviations: no cohort of ours shows what lies beyond
LARGEST_SCORE = 3.0
# A trait that varies less than this is the same for all: its scores are not blown up
SMALLEST_DEVIATION = 0.01


@dataclass(frozen=True)
class Traits:
    """Means, deviations and correlations of K traits in a cohort.

    Attributes:
        names: of the traits.
        mean: of each.
        deviation: standard deviation of each, at least 0.01.
        root: (K, K) symmetric square root of the correlations.

    Raises:
        ValueError: if their numbers of traits differ, or something is no finite number.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    root: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        counts = {len(self.names), len(self.mean), len(self.deviation), len(self.root)}
        if len(counts | {len(row) for row in self.root}) != 1:
            raise ValueError(f"traits: expected as many of everything, found {sorted(counts)}")
        if not np.isfinite(np.array([self.mean, self.deviation, *self.root], np.float64)).all():
            raise ValueError("traits: expected finite numbers, found others")

    @classmethod
    def fit(cls, names: Sequence[str], values: np.ndarray) -> Traits:
        """Describe ``values`` (N, K), N >= 1; NaN where a volume does not have a trait."""
        present = np.isfinite(values)
        count = np.maximum(present.sum(0), 1)
        filled = np.where(present, values, 0.0)
        mean = filled.sum(0) / count
        centred = np.where(present, values - mean, 0.0)
        freedom = np.maximum(count - 1, 1)
        deviation = np.maximum(np.sqrt((centred**2).sum(0) / freedom), SMALLEST_DEVIATION)
        scores = centred / deviation
        correlation = scores.T @ scores / max(len(values) - 1, 1)
        root = symmetric_root(correlation)
        return cls(
            tuple(names),
            tuple(round(float(v), 6) for v in mean),
            tuple(round(float(v), 6) for v in deviation),
            tuple(tuple(round(float(v), 5) for v in row) for row in root),
        )

    @classmethod
    def from_json(cls, **content: Any) -> Traits:
        """Build from what ``dataclasses.asdict`` gave, read from JSON."""
        content["root"] = tuple(tuple(row) for row in content["root"])
        return cls(**{key: tuple(value) for key, value in content.items()})

    def scores(self, values: np.ndarray) -> np.ndarray:
        """Return values (..., K) in deviations from the mean, at most 3; 0 for NaN."""
        scores = (values - np.asarray(self.mean)) / np.asarray(self.deviation)
        limited = np.clip(np.nan_to_num(scores), -LARGEST_SCORE, LARGEST_SCORE)
        return limited.astype(np.float32)

    def draw(self, generator: torch.Generator, wanted: Mapping[str, float] | None = None) -> Tensor:
        """Return (K,) scores of a volume that does not exist.

        Args:
            generator: decides them.
            wanted: scores of some traits; the others are drawn as they are in volumes like that.
        """
        root = torch.tensor(self.root, dtype=torch.float64)
        noise = torch.randn(len(root), generator=generator, dtype=torch.float64)
        scores = root @ noise
        if wanted:
            places = [self.names.index(name) for name in wanted]
            target = torch.tensor(list(wanted.values()), dtype=torch.float64)
            # a Gaussian given some of its values: the rest moves by their regression on these
            covariance = root @ root
            inner = torch.linalg.pinv(covariance[places][:, places])
            scores = scores + covariance[:, places] @ inner @ (target - scores[places])
            scores[places] = target
        return scores.clamp(-LARGEST_SCORE, LARGEST_SCORE).float()

    def shifted(self, scores: Tensor, offsets: Mapping[str, float]) -> Tensor:
        """Return scores (K,) with something added to those of some traits; 3 at most."""
        added = torch.tensor([offsets.get(name, 0.0) for name in self.names])
        return (scores + added).clamp(-LARGEST_SCORE, LARGEST_SCORE)


def traits_of(card: Mapping[str, Any], key: str) -> Traits:
    """Return the traits that a card has under ``key``.

    Raises:
        DataError: if there are none, or they are not those of the card's classes.
    """
    traits = part_of(card, key, Traits.from_json)
    cohort = card["cohort"]
    known = len(cohort["labels"]) - len(cohort.get("unlabelled", ()))
    classes = tuple(cohort["labels"][1:known])
    if traits.names != classes:
        path = getattr(card, "path", CARD)
        raise DataError(
            f"{path}: {key}: expected those of the classes {list(classes)}, "
            f"found those of {list(traits.names)}"
        )
    return traits


def symmetric_root(matrix: np.ndarray) -> np.ndarray:
    """Return the symmetric square root of a covariance matrix (K, K), whatever its rank."""
    square, axes = np.linalg.eigh(matrix)
    return axes * np.sqrt(np.maximum(square, 0.0)) @ axes.T


def class_sizes(label: np.ndarray, num_labels: int, voxel: float) -> np.ndarray:
    """Return (K,) logarithms of the volumes of the foreground classes.

    Args:
        label: class indices; those beyond K do not count.
        num_labels: K.
        voxel: volume of one, mm^3. Every class counts one more, for that of an absent class.
    """
    counts = np.bincount(label.ravel(), minlength=num_labels + 1)[1 : num_labels + 1]
    return np.log((counts + 1.0) * voxel)


def class_means(image: np.ndarray, label: np.ndarray, num_labels: int) -> np.ndarray:
    """Return (K,) mean intensities of the first foreground classes; NaN for an absent one."""
    classes = label.ravel()
    voxels = np.bincount(classes, minlength=num_labels + 1)
    total = np.bincount(classes, image.ravel(), minlength=num_labels + 1)
    return np.where(voxels > 0, total / np.maximum(voxels, 1), np.nan)[1 : num_labels + 1]


def wanted_scores(
    traits: Traits | None, wanted: Mapping[str, float] | None, knob: str, training: str
) -> dict[str, float]:
    """Return the scores that a user wants of some traits.

    Args:
        traits: what the weights can be told, if anything.
        wanted: {name: standard deviations from the cohort's mean}.
        knob: what they are asked for by, for messages.
        training: knob of the training that makes weights tellable.

    Raises:
        ValueError: if the weights are told nothing, or have no such trait, or it lies too far out.
    """
    if wanted is None:
        return {}
    if not isinstance(wanted, Mapping):
        raise ValueError(f"{knob}: expected {{class: standard deviations}}, found {wanted!r}")
    if not wanted:
        return {}
    if traits is None:
        raise ValueError(
            f"{knob}: expected None for weights trained without {training}, found {dict(wanted)}"
        )
    for name, score in wanted.items():
        if name not in traits.names:
            raise ValueError(f"{knob}: expected classes among {list(traits.names)}, found {name!r}")
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if not number or not abs(score) <= LARGEST_SCORE:
            raise ValueError(
                f"{knob}: {name}: expected -{LARGEST_SCORE:g} to {LARGEST_SCORE:g} standard "
                f"deviations, found {score!r}"
            )
    return {name: float(score) for name, score in wanted.items()}


def size_offsets_of(card: Mapping[str, Any], traits: Traits | None) -> dict[str, float]:
    """Return what a card says that its network is told beyond the wanted sizes.

    Args:
        card: of a label generator; ``sampling`` says it, if anything does.
        traits: the sizes that the network is told, if any.

    Raises:
        DataError: if it cannot be told that; names the file.
    """

    offsets = Sampling.of(card).size_offsets
    try:
        return wanted_scores(traits, offsets, "size_offsets", "size_conditioning")
    except ValueError as error:
        raise DataError(f"{getattr(card, 'path', CARD)}: sampling: {error}") from error


def sampling_entry(content: Mapping[str, Any], traits: Traits | None = None) -> dict[str, Any]:
    """Return what a card says of sampling, once it is known to suit the network.

    Args:
        content: of ``Sampling``.
        traits: the sizes that the network is told, if any.

    Raises:
        DataError: if it is something else.
    """
    size_offsets_of(card_of_knob("sampling", content), traits)
    return dict(content)


def _sizes(volumes: Sequence[LabelledVolume], cohort: Cohort) -> np.ndarray:
    voxel = float(np.prod(cohort.spacing))
    known = cohort.labelled.num_labels
    return np.stack([class_sizes(v.label, known, voxel) for v in volumes])


def size_traits(
    volumes: Sequence[LabelledVolume], cohort: Cohort, wanted: bool = True
) -> Traits | None:
    """Return how the classes' sizes vary in a cohort, or None where that is not ``wanted``.

    Not those of unlabelled tissue: how large a head is, jaw and all, would name the patient.
    """
    return Traits.fit(cohort.labelled.labels[1:], _sizes(volumes, cohort)) if wanted else None


def size_scores(
    volumes: Sequence[LabelledVolume], cohort: Cohort, traits: Traits | None
) -> np.ndarray | None:
    """Return the scores (N, K) of the classes' sizes in each volume, or None without traits."""
    return None if traits is None else traits.scores(_sizes(volumes, cohort))


def contrast_traits(
    volumes: Sequence[LabelledVolume], cohort: Cohort, wanted: bool = True
) -> Traits | None:
    """Return how the classes' mean intensities vary in a cohort, or None if not ``wanted``.

    Not the background's, nor those of the classes that it was divided into: what surrounds the
    labels is whatever a patient has there, and its brightness would name the patient.
    """
    if not wanted:
        return None
    labels = cohort.labelled.labels[1:]
    means = [class_means(v.image, v.label, len(labels)) for v in volumes]
    return Traits.fit(labels, np.stack(means))


def traits_entry(traits: Traits | None) -> dict[str, Any] | None:
    """Return traits for a card."""
    return None if traits is None else asdict(traits)
