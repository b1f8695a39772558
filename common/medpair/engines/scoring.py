"""Scores of predicted label maps: per case, per class, over the volume and inside the roi."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.transforms import SaveImaged

from medpair.data.atomic import remove_partials
from medpair.data.dataset import as_folders, load_dataset
from medpair.data.files import DataError, Volume, write_json, write_text, write_volume
from medpair.data.locks import hold
from medpair.data.orientation import axis_codes, to_ras
from medpair.data.segmentation import read_truth
from medpair.engines.distributed import gathered, is_main_rank, main_rank_first
from medpair.metrics.class_overlap import class_masks
from medpair.metrics.distance import balanced_average_hausdorff, dice
from medpair.metrics.summary import summarize

logger = logging.getLogger(__name__)

MEASURES = ("dsc", "bahd_mm", "bahd_voxel")
FIELDS = ("case", "region", "class", *MEASURES, "truth_voxels", "predicted_voxels")


def require_truth(
    dataset_dir: str | Path | Sequence[str | Path],
    split: str,
    labels: Sequence[str],
    label_group: str | None = None,
) -> None:
    """Refuse, before anything is computed, cases that it could not be compared with.

    Args:
        dataset_dir: a folder, or several.
        split: which of their lists; a test list may have images alone.
        labels: class names of the network, background first.
        label_group: merge of the datasets' labels, or None.

    Raises:
        DataError: for other classes, or for a case without a label.
    """
    for root in as_folders(dataset_dir):
        folder, path = load_dataset(root), root / "dataset.json"
        require_classes(path, folder.labels(label_group).names, labels)
        for index, case in enumerate(folder.split(split)):
            if case.label is None:
                raise DataError(
                    f"{path}: {split}[{index}].label: expected a label to score against, found none"
                )


def require_classes(path: str | Path, names: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse a dataset whose classes are not the network's; the background's name is free.

    Raises:
        DataError: names ``path``.
    """
    if list(names[1:]) != list(labels[1:]):
        raise DataError(
            f"{path}: labels: expected the network's classes {list(labels[1:])}, "
            f"found {list(names[1:])}"
        )


class SaveImageLabels(SaveImaged):
    """Write each prediction as a label map on the grid and in the orientation of its image.

    Applications that want the label map and no file (MONAI Label, MONAI Deploy) leave out
    transforms of the class ``SaveImaged``, or with ``SaveImage`` in their name.

    The run has the folder to itself.

    Args:
        output_dir: gets ``labels/CASE.nii.gz``, and ``labels.json``.
        labels: names of the classes, in the order of their values in the files.

    Raises:
        DataError: if another process predicts into the folder.
    """

    def __init__(self, output_dir: str | Path, labels: Sequence[str] = ()) -> None:
        super().__init__(keys="pred", output_dir=output_dir, print_log=False)
        self.labels = {name: value for value, name in enumerate(labels)}
        self.folder = Path(output_dir) / "labels"
        self._lock: Any = None

    def take_folder(self) -> None:
        """Take the folder for this run; of several processes the main one holds it for all."""
        self._lock = False

        def take() -> None:
            self._lock = hold(self.folder.parent)
            remove_partials(self.folder)
            if self.labels:  # the dataset's own values may be others
                write_json(self.folder.parent / "labels.json", self.labels)

        main_rank_first(take)

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Write ``pred`` (1, W, H, D) class indices with its affine."""
        if self._lock is None:
            self.take_folder()
        array, affine = native(data["pred"])
        volume = Volume(array, affine, axis_codes(affine))
        write_volume(self.folder / f"{data['case']}.nii.gz", volume)
        return data


class CaseScores:
    """Compare predictions with the truth on the truth's own grid, and write the tables.

    Leaves ``scores.csv`` (a line per case, region and class) and ``scores.json`` (the same, with
    mean, standard deviation and 95 % bootstrap interval per region and class). Empty masks have
    the documented values of ``medpair.metrics.distance`` and are counted in ``scores.json``.

    Args:
        output_dir: where the tables go.
        labels: class names of the network, background first.
        label_group: merge of the dataset's labels, or None.
        info: entries copied into ``scores.json``.
    """

    def __init__(
        self,
        output_dir: str | Path,
        labels: Sequence[str],
        label_group: str | None = None,
        info: dict[str, Any] | None = None,
    ) -> None:
        self.folder = Path(output_dir)
        self.labels = list(labels)
        self.label_group = label_group
        self.info = info or {}
        self.rows: list[dict[str, Any]] = []

    def __call__(self, data: dict[str, Any]) -> dict[str, Any]:
        """Score ``pred`` (1, W, H, D) of one case against its label file."""
        (truth, spacing), roi, labels = read_truth(data, self.label_group)
        require_classes(data["dataset_dir"], labels.names, self.labels)
        array, affine = native(data["pred"])
        prediction, _ = to_ras(array, affine)
        regions = {"volume": None} | ({"roi": roi} if roi is not None else {})
        for region, mask in regions.items():
            pairs = class_masks((prediction, truth), len(self.labels) - 1, mask)
            for name, pair in zip(self.labels[1:], pairs, strict=True):
                row = score(*pair, spacing)
                self.rows.append({"case": data["case"], "region": region, "class": name} | row)
        return data

    def complete(self) -> dict[str, Any]:
        """Write the tables over all processes' cases, log a summary, and return it.

        Raises:
            DataError: if another run is at work in the folder.
        """
        lock = hold(self.folder) if is_main_rank() else None
        try:
            return self._complete()
        finally:
            if lock is not None:
                lock.release()

    def _complete(self) -> dict[str, Any]:
        self.rows = [row for rows in gathered(self.rows) for row in rows]
        content: dict[str, Any] = {
            "info": self.info,
            "summary": {},
            "empty": {},
            "cases": self.rows,
        }
        for region in sorted({row["region"] for row in self.rows}, reverse=True):
            rows = [row for row in self.rows if row["region"] == region]
            content["summary"][region] = self._summary(rows)
            content["empty"][region] = {
                "truth": sum(row["truth_voxels"] == 0 for row in rows),
                "prediction": sum(row["predicted_voxels"] == 0 for row in rows),
            }
        if not is_main_rank():
            return content
        write_json(self.folder / "scores.json", content)
        text = io.StringIO()
        writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.folder / "scores.csv", text.getvalue())
        logger.info("%s\n%s", self.folder / "scores.json", table(content["summary"]))
        return content

    def _summary(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Summaries per class, and of each case's mean over the classes."""
        summary: dict[str, Any] = {}
        cases = sorted({row["case"] for row in rows})
        for measure in MEASURES:
            values = {(row["case"], row["class"]): row[measure] for row in rows}
            for name in self.labels[1:]:
                per_class = [values[case, name] for case in cases]
                summary.setdefault(name, {})[measure] = summarize(per_class)
            means = [float(np.mean([values[c, n] for n in self.labels[1:]])) for c in cases]
            summary.setdefault("mean", {})[measure] = summarize(means)
        return summary


def score(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> dict[str, Any]:
    """Return DSC, balanced average Hausdorff distance (mm, voxels) and sizes of two masks."""
    return {
        "dsc": dice(prediction, truth),
        "bahd_mm": balanced_average_hausdorff(prediction, truth, spacing),
        "bahd_voxel": balanced_average_hausdorff(prediction, truth),
        "truth_voxels": int(truth.sum()),
        "predicted_voxels": int(prediction.sum()),
    }


def native(prediction: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a prediction's classes (W, H, D) and affine (4, 4) on its image's own grid."""
    array = torch.as_tensor(prediction)[0].detach().cpu().numpy()
    affine = torch.as_tensor(prediction.affine).cpu().numpy().astype(np.float64)
    return array.astype(np.uint8 if array.max() < 256 else np.uint16), affine


def table(summary: dict[str, Any]) -> str:
    """Return the summary as aligned text."""
    lines = [f"{'region':8} {'class':24} {'n':>4} {'DSC':>24} {'bAHD mm':>24} {'bAHD voxel':>24}"]
    for region, classes in summary.items():
        for name, measures in classes.items():
            cells = [
                f"{m['mean']:.3f} ±{m['std']:.3f} [{m['low']:.3f}, {m['high']:.3f}]"
                for m in (measures[key] for key in MEASURES)
            ]
            count = measures["dsc"]["n"]
            lines.append(
                f"{region:8} {name:24.24} {count:>4} " + " ".join(f"{c:>24}" for c in cells)
            )
    return "\n".join(lines)
