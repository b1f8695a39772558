"""Generated label volumes beside real ones: sizes, shapes, pieces, seams."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from medpair.data.cohort import read_cohort
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_json, read_volume, write_json
from medpair.inferers.label_writer import LabelVolumeWriter
from medpair.metrics.label_cohort import compare_label_cohorts, format_label_table
from medpair.metrics.label_shape import NoSeamError, SeamRatio, label_shape, seam_ratio

STATISTICS = "label_statistics.json"


def compare_with_real(
    writer: LabelVolumeWriter,
    dataset_dir: str | Path | None,
    label_group: str | None = None,
    split: str = "training",
) -> Path:
    """Compare all label volumes of the writer's folder with a real cohort.

    Real labels are brought to the generated ones' spacing first. Prints a table, and writes
    ``label_statistics.json`` beside the label maps: per class means, standard deviations and the
    Kolmogorov-Smirnov distance of volumes; the seam ratio; how many volumes were implausible.

    Args:
        writer: of the generated folder, which is complete.
        dataset_dir: the real cohort.
        label_group: merge of its labels.
        split: which of its lists.

    Raises:
        DataError: if there is no real cohort, or its classes differ.
    """
    if dataset_dir is None:
        raise DataError("dataset_dir: expected the real cohort to compare with, found none")
    cohort, axis = writer.cohort, writer.inferer.axis
    real, volumes = read_cohort(
        dataset_dir, label_group, cohort.spacing, split, unlabelled=cohort.unlabelled
    )
    if real.labels[1:] != cohort.labels[1:]:  # the background's name is free
        raise DataError(
            f"{dataset_dir}: expected the labels {list(cohort.labels)}, found {list(real.labels)}"
        )

    def shape(label: np.ndarray) -> Any:
        return label_shape(label, cohort.num_labels, cohort.spacing, axis)

    folder = load_dataset(writer.folder.root, images=False)
    cases = folder.split(writer.folder.split)
    sidecars = [read_json(folder.root / "provenance" / f"{case.name}.json") for case in cases]
    shapes = []

    def generated() -> Iterator[np.ndarray]:
        """Yield one label map after the other, measured on its way: a cohort may be large."""
        for case in cases:
            assert case.label is not None
            label = read_volume(case.label, np.int64).array
            shapes.append(shape(label))
            yield label

    seams = [sidecar["seams"] for sidecar in sidecars]
    try:
        ratio = seam_ratio(generated(), seams, axis, cohort.num_labels)
    except NoSeamError:  # volumes of one window
        ratio = None
    rows = compare_label_cohorts(
        [shape(volume.label) for volume in volumes], shapes, cohort.labels[1:]
    )
    summary = {
        "real": str(dataset_dir),
        "classes": rows,
        "seams": None if ratio is None else ratio.to_json(),
        "volumes": len(shapes),
        "implausible_kept": sum(not sidecar["plausible"] for sidecar in sidecars),
        "implausible_replaced": sum(int(sidecar["attempt"]) for sidecar in sidecars),
    }
    path = writer.folder.root / STATISTICS
    write_json(path, summary)
    print(format_label_table(rows))
    print(f"\nchange across window seams, relative to the slices beside them: {_shown(ratio)}")
    print(
        f"implausible volumes: {summary['implausible_kept']} of {len(shapes)} kept, "
        f"{summary['implausible_replaced']} replaced"
    )
    return path


def _shown(seam: SeamRatio | None) -> str:
    if seam is None or seam.ratio is None:
        return "none"
    between = "" if seam.low is None else f" [{seam.low:.2f}, {seam.high:.2f}]"
    return f"{seam.ratio:.2f}{between}"
