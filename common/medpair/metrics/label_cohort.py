"""Two cohorts of label maps, compared class by class.

The comparison works on the `LabelShape` of each volume, so that a cohort is measured once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_volume
from medpair.data.labels import whole_values
from medpair.metrics.label_plausible import class_names, same_classes
from medpair.metrics.label_shape import LabelShape, label_shape

# What is compared: {key: (attribute of LabelShape, factor to the unit of the key)}
MEASURES = {
    "volume_ml": ("volume", 1e-3),
    "surface_cm2": ("surface", 1e-2),
    "components": ("components", 1.0),
    "largest_share": ("largest_share", 1.0),
    "slice_overlap": ("slice_overlap", 1.0),
}


def compare_label_cohorts(
    real: Sequence[LabelShape], synthetic: Sequence[LabelShape], names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """Compare two cohorts class by class, as plain data for a JSON file.

    Args:
        real: shapes of the one cohort, at least one.
        synthetic: shapes of the other; of the same classes.
        names: names of the foreground classes; default "class 1", ...

    Returns:
        One row per class: `class` (its index), `name`, `real` and `synthetic`, which each have
        `volumes` (their number), `presence` (share of them that have the class) and for each of
        ``MEASURES`` `mean` and `sd` (divided by n - 1, and 0.0 for one value) over the volumes
        that have the class, None where none has; and `volume_ks`, the distance of the volumes.

    Raises:
        ValueError: a cohort is empty, or the number of classes differs.
    """
    num_labels = same_classes(real)
    if same_classes(synthetic) != num_labels:
        raise ValueError(
            f"synthetic: expected {num_labels} classes, found {synthetic[0].num_labels}"
        )
    return [
        {
            "class": index + 1,
            "name": name,
            "real": _class_summary(real, index),
            "synthetic": _class_summary(synthetic, index),
            "volume_ks": kolmogorov_smirnov(
                [shape.volume[index] for shape in real],
                [shape.volume[index] for shape in synthetic],
            ),
        }
        for index, name in enumerate(class_names(names, num_labels))
    ]


def kolmogorov_smirnov(first: ArrayLike, second: ArrayLike) -> float:
    """Return the largest difference of two samples' distribution functions, in [0, 1].

    An absent class has the volume 0 here, so a class that one cohort lacks is 1 away. Samples of
    one distribution differ too, by about ``0.87 * sqrt(1 / n + 1 / m)`` in the mean.
    """
    one, two = np.sort(np.ravel(first)), np.sort(np.ravel(second))
    steps = np.concatenate([one, two])
    shares = [np.searchsorted(sample, steps, side="right") / sample.size for sample in (one, two)]
    return float(np.abs(shares[0] - shares[1]).max())


def format_label_table(rows: Iterable[dict[str, Any]]) -> str:
    """Return the rows of `compare_label_cohorts` as a plain text table, two lines per class."""
    measures = [key.replace("_", " ") for key in MEASURES]
    lines = [["class", "cohort", "present", *measures, "volume KS"]]
    for row in rows:
        for cohort in ("real", "synthetic"):
            side = row[cohort]
            first = cohort == "real"
            lines.append(
                [
                    row["name"] if first else "",
                    cohort,
                    f"{side['presence']:.0%} of {side['volumes']}",
                    *(_mean_and_sd(side[key]) for key in MEASURES),
                    f"{row['volume_ks']:.2f}" if first else "",
                ]
            )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def label_statistics_of_folder(
    folder: str | Path,
    label_group: str | None = None,
    split: str = "training",
    axis: int = 2,
    limit: int | None = None,
) -> tuple[tuple[str, ...], list[LabelShape]]:
    """Measure the label maps of one split of a dataset folder, in RAS order.

    Args:
        folder: a folder with a ``dataset.json``.
        label_group: the merge of classes to apply, None for none.
        split: training, validation or test.
        axis: the axis of the slices, 0 to 2 for x, y and z.
        limit: measure only the first so many; None for all.

    Returns:
        The names of the foreground classes, and one shape per volume.

    Raises:
        DataError: the folder, split or a label map cannot be read, or a case has no label map.
    """
    dataset = load_dataset(folder, images=False)
    classes = dataset.labels(label_group)
    shapes = []
    for case in dataset.split(split)[:limit]:
        if case.label is None:
            raise DataError(
                f"{dataset.root}: {split}: expected a label for {case.name}, found none"
            )
        volume, source = read_volume(case.label, None), str(case.label)
        label = classes.encode(whole_values(volume.array, source), source)
        shapes.append(label_shape(label, classes.num_labels, volume.spacing, axis))
    return tuple(classes.names[1:]), shapes


def _class_summary(shapes: Sequence[LabelShape], index: int) -> dict[str, Any]:
    having = [shape for shape in shapes if shape.volume[index] > 0]
    summary: dict[str, Any] = {
        "volumes": len(shapes),
        "presence": len(having) / len(shapes),
    }
    for key, (attribute, factor) in MEASURES.items():
        found = [getattr(shape, attribute)[index] for shape in having]
        values = factor * np.array([value for value in found if value is not None], np.float64)
        summary[key] = {
            "mean": float(values.mean()) if values.size else None,
            "sd": float(values.std(ddof=min(1, values.size - 1))) if values.size else None,
        }
    return summary


def _mean_and_sd(entry: dict[str, float | None]) -> str:
    if entry["mean"] is None or entry["sd"] is None:
        return "-"
    # three digits for small numbers, whole ones from 1000 on: no exponents
    places = max(0, min(2, 2 - math.floor(math.log10(max(abs(entry["mean"]), 1e-9)))))
    return f"{entry['mean']:.{places}f} ± {entry['sd']:.{places}f}"
