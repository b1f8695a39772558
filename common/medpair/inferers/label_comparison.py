"""Generated label volumes beside real ones: sizes, shapes, pieces, seams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medpair.data.cohort import read_cohort
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_json, read_volume, write_json
from medpair.data.traits import LARGEST_SCORE, Traits
from medpair.inferers.label_writer import LabelVolumeWriter
from medpair.metrics.label_cohort import compare_label_cohorts, format_label_table
from medpair.metrics.label_shape import (
    LabelShape,
    NoSeamError,
    SeamRatio,
    label_shape,
    seam_ratio,
)
from medpair.metrics.summary import bootstrap_interval

STATISTICS = "label_statistics.json"
# Deviations of the cohort by which a class may miss its wanted size without a word
WORTH_MENDING = 0.25
# Volumes from which on it is said; fewer may miss by chance
ENOUGH_VOLUMES = 8


def compare_with_real(
    writer: LabelVolumeWriter,
    dataset_dir: str | Path | None,
    label_group: str | None = None,
    split: str = "training",
) -> Path:
    """Compare all label volumes of the writer's folder with a real cohort.

    Real labels are brought to the generated ones' spacing first. Prints a table, and writes
    ``label_statistics.json`` beside the label maps: per class means, standard deviations and the
    Kolmogorov-Smirnov distance of volumes; the seam ratio; how many volumes were implausible; and,
    where the network is told sizes, how far those that it makes are from those wanted.

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
    voxel = float(np.prod(cohort.spacing))
    # volumes of another height have other sizes than those that are told
    traits = writer.inferer.traits if writer.inferer.height is None else None
    missed = sizes_missed(traits, sidecars, shapes, voxel)
    if missed:
        summary["sizes_missed"] = missed
    path = writer.folder.root / STATISTICS
    write_json(path, summary)
    print(format_label_table(rows))
    print(f"\nchange across window seams, relative to the slices beside them: {_shown(ratio)}")
    print(
        f"implausible volumes: {summary['implausible_kept']} of {len(shapes)} kept, "
        f"{summary['implausible_replaced']} replaced"
    )
    if missed:
        print(_advice(missed, writer.inferer.size_offsets))
    return path


def sizes_missed(
    traits: Traits | None,
    sidecars: Sequence[Mapping[str, Any]],
    shapes: Sequence[LabelShape],
    voxel: float,
) -> dict[str, dict[str, float]]:
    """Return by how much classes came out larger than was wanted, in the cohort's deviations.

    Args:
        traits: what the network is told, if anything.
        sidecars: of the volumes, with the ``sizes`` that were wanted.
        shapes: of the same volumes.
        voxel: volume of one, mm^3.

    Returns:
        For each class the mean, and its 95 % bootstrap interval from ``low`` to ``high``: over the
        volumes that have the class, and only if these are 8 or more. Beyond 3 deviations nothing is
        told, and what is made counts as 3.
    """
    if traits is None:
        return {}
    known = len(traits.names)  # not what has no label, of which no size is told
    volumes = np.array([shape.volume[:known] for shape in shapes])
    made = traits.scores(np.log(volumes + voxel))
    wanted = np.array([[sidecar["sizes"][name] for name in traits.names] for sidecar in sidecars])
    result = {}
    for index, name in enumerate(traits.names):
        beyond = (made - wanted)[volumes[:, index] > 0, index]
        if len(beyond) >= ENOUGH_VOLUMES:
            low, high = bootstrap_interval(beyond)
            result[name] = {"mean": float(beyond.mean()), "low": low, "high": high}
    return result


def _advice(missed: Mapping[str, Mapping[str, float]], offsets: Mapping[str, float]) -> str:
    """Return what to say of sizes that were missed, and the knob that mends it."""
    told = "; ".join(
        f"{name} {row['mean']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
        for name, row in missed.items()
    )
    lines = [f"classes larger than wanted, in deviations of the cohort: {told}"]
    far = {
        name: row["mean"]
        for name, row in missed.items()
        if (row["low"] > 0 or row["high"] < 0) and abs(row["mean"]) >= WORTH_MENDING
    }
    if far:
        mended = {
            name: round(min(max(offsets.get(name, 0.0) - beyond, -LARGEST_SCORE), LARGEST_SCORE), 2)
            for name, beyond in far.items()
        }
        knob = {**offsets, **mended}
        if knob == offsets:
            lines.append("the network is told as much beyond that as it can be (size_offsets)")
        else:
            lines.append(
                f'to have what is wanted, into another output_dir: --size_offsets "{knob}"'
            )
    return "\n".join(lines)


def _shown(seam: SeamRatio | None) -> str:
    if seam is None or seam.ratio is None:
        return "none"
    between = "" if seam.low is None else f" [{seam.low:.2f}, {seam.high:.2f}]"
    return f"{seam.ratio:.2f}{between}"
