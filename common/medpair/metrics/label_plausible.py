"""Is a generated label map plausible, judged by the label maps a model was trained on.

A model keeps a `LabelReference`, a few numbers per class, so that whoever runs it needs no
training data to tell a label map without a liver from one that could be real.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from medpair.metrics.label_shape import LabelShape, PlainData

# From this many training volumes on, margins count once.
ENOUGH_VOLUMES = 3


@dataclass(frozen=True)
class LabelReference(PlainData):
    """What a model remembers of its training labels; entry k - 1 is that of class k.

    The ranges are of the volumes that have the class, and None for a class that none has.

    Attributes:
        volumes: number of training volumes, N.
        presence: share of them that have the class.
        volume: smallest and largest volume in mm^3.
        largest_share: smallest share of a class's largest component.
        components: largest number of components.
    """

    volumes: int
    presence: tuple[float, ...]
    volume: tuple[tuple[float, float] | None, ...]
    largest_share: tuple[float | None, ...]
    components: tuple[int | None, ...]


def label_reference(shapes: Sequence[LabelShape]) -> LabelReference:
    """Summarise the training labels, N >= 1 shapes of the same classes, for `implausible`.

    Raises:
        ValueError: there are no shapes, or they differ in the number of classes.
    """
    num_labels = same_classes(shapes)
    presence, volume, share, components = [], [], [], []
    for index in range(num_labels):
        having = [shape for shape in shapes if shape.volume[index] > 0]
        sizes = [shape.volume[index] for shape in having]
        presence.append(len(having) / len(shapes))
        volume.append((min(sizes), max(sizes)) if sizes else None)
        share.append(min((shape.largest_share[index] for shape in having), default=None))
        components.append(max((shape.components[index] for shape in having), default=None))
    return LabelReference(
        len(shapes), tuple(presence), tuple(volume), tuple(share), tuple(components)
    )


def implausible(
    shape: LabelShape,
    reference: LabelReference,
    volume_margin: float = 0.5,
    components_margin: float = 1.0,
    share_margin: float = 0.1,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Return what a label map has that no training volume comes near, one sentence per reason.

    Few training volumes show less than their population's range, so a margin counts
    ``w = max(1, 3 / n)`` times where n training volumes have the class: three times for one
    volume, one and a half times for two, once from three on. Training volumes always pass.

    Of log-normal volumes with a standard deviation of 0.3 in the logarithm, the default range
    refuses 0.2 % after one training volume, 2 % after two, 4 % after three and under 1 % after
    ten; without w it would be 22 % and 8 % after one and two.

    Args:
        shape: what to judge.
        reference: what the training volumes were like.
        volume_margin: in [0, 1); volumes may lie in
            ``[min * (1 - margin) ** w, max * (1 + margin) ** w]``.
        components_margin: the components may be ``max * (1 + margin * w)``. At 1, an organ that
            is always whole may have one more piece: a stray one is no broken organ, and a large
            one is found by its share.
        share_margin: the largest component may hold ``min - margin * w`` of the class.
        names: names of the foreground classes for the sentences; default "class 1", ...

    Returns:
        An empty list if the label map is plausible.

    Raises:
        ValueError: the shape, reference and names differ in the number of classes, or a margin is
            out of range.
    """
    names = class_names(names, shape.num_labels)
    if len(reference.volume) != shape.num_labels:
        raise ValueError(
            f"shape: expected {len(reference.volume)} classes, found {shape.num_labels}"
        )
    if not 0 <= volume_margin < 1 or components_margin < 0 or share_margin < 0:
        raise ValueError(
            "margins: expected numbers from 0, below 1 for the volume, found "
            f"{volume_margin}, {components_margin} and {share_margin}"
        )
    margins = volume_margin, components_margin, share_margin
    return [
        f"{name}: {reason}"
        for index, name in enumerate(names)
        for reason in _class_reasons(shape, reference, index, margins)
    ]


def _class_reasons(
    shape: LabelShape, reference: LabelReference, index: int, margins: tuple[float, float, float]
) -> list[str]:
    """Return the reasons against one class; margins of the volume, components and share."""
    size, known = shape.volume[index], reference.volume[index]
    share, pieces = reference.largest_share[index], reference.components[index]
    if size == 0:
        always = reference.presence[index] == 1
        expected = f"expected, as all training volumes have it ({reference.volumes})"
        return [f"{expected}, found nowhere."] if always else []
    if known is None or share is None or pieces is None:
        return ["expected nowhere, as no training volume has it, found."]
    times = max(1.0, ENOUGH_VOLUMES / round(reference.presence[index] * reference.volumes))
    low = known[0] * (1 - margins[0]) ** times
    high = known[1] * (1 + margins[0]) ** times
    most, least = pieces * (1 + margins[1] * times), share - margins[2] * times
    reasons = []
    if not low <= size <= high:
        reasons.append(
            f"expected a volume from {_ml(low)} to {_ml(high)} ml "
            f"(training {_ml(known[0])} to {_ml(known[1])}), found {_ml(size)} ml."
        )
    if shape.largest_share[index] < least:
        reasons.append(
            f"expected at least {least:.0%} in one piece (training from {share:.0%}), "
            f"found {shape.largest_share[index]:.0%}."
        )
    if shape.components[index] > most:
        reasons.append(
            f"expected at most {math.floor(most)} pieces (training up to {pieces}), "
            f"found {shape.components[index]}."
        )
    return reasons


def class_names(names: Sequence[str] | None, num_labels: int) -> Sequence[str]:
    """Return the names of the foreground classes, checked, or "class 1", ... for None."""
    if names is None:
        return [f"class {index}" for index in range(1, num_labels + 1)]
    if len(names) != num_labels:
        raise ValueError(
            f"names: expected those of {num_labels} foreground classes, found {list(names)}"
        )
    return names


def same_classes(shapes: Sequence[LabelShape]) -> int:
    """Return the number of classes of a cohort."""
    counts = {shape.num_labels for shape in shapes}
    if len(counts) != 1:
        raise ValueError(
            "shapes: expected at least one, of the same number of classes, found "
            f"{len(shapes)} with {sorted(counts)} classes"
        )
    return counts.pop()


def _ml(volume: float) -> str:
    """Return a volume in mm^3 as millilitres with three digits."""
    return np.format_float_positional(volume / 1000, precision=3, fractional=False, trim="-")
