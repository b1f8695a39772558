"""Scores and predicted files of several folders; what cannot be scored is refused beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from monai.data import MetaTensor
from tests.conftest import tiny_dataset

from medpair.data.files import DataError, read_json, read_volume, write_json
from medpair.data.segmentation import load_items
from medpair.engines.scoring import CaseScores, SaveImageLabels, require_truth

LABELS = ["background", "class_1", "class_2"]


def test_equal_names_in_two_folders_are_four_cases_and_four_files(tmp_path: Path) -> None:
    folders = [
        tiny_dataset(tmp_path / name, 2, (12, 10, 8), seed=seed, validation=0)
        for seed, name in enumerate(("a", "b"))
    ]
    writer = SaveImageLabels(tmp_path / "out", LABELS)
    scores = CaseScores(tmp_path / "out", LABELS)
    items = load_items([str(folder) for folder in folders])
    for number, item in enumerate(items):
        truth = read_volume(item["truth"], None)
        # the first folder's cases are found, the second's are not
        array = truth.array if number < 2 else np.zeros_like(truth.array)
        data = {**item, "pred": MetaTensor(array[None].astype(np.int32), affine=truth.affine)}
        scores(writer(data))
    files = {
        path.name: read_volume(path, None).array for path in (tmp_path / "out/labels").iterdir()
    }
    names = ["case_000", "case_001", "2_case_000", "2_case_001"]
    assert sorted(files) == sorted(f"{name}.nii.gz" for name in names)
    assert [bool(files[f"{name}.nii.gz"].any()) for name in names] == [True, True, False, False]
    summary = scores.complete()["summary"]["volume"]["class_1"]["dsc"]
    assert (summary["n"], summary["mean"]) == (4, pytest.approx(0.5))
    # what the values in the files mean
    assert read_json(tmp_path / "out" / "labels.json") == dict(zip(LABELS, range(3), strict=True))


def test_what_cannot_be_scored_is_refused(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 3, (12, 10, 8), validation=0)
    path = folder / "dataset.json"
    content = read_json(path)
    content["test"] = [content["training"].pop(), content["training"].pop()["image"]]
    groups = {"one": {"1": {"name": "all", "values": [1, 2]}}}
    write_json(path, {**content, "label_groups": groups})
    require_truth(folder, "training", LABELS)
    require_truth([folder, folder], "training", ["nothing", "all"], "one")
    for wrong, words in (
        (("test", LABELS), "test[1].label: expected a label to score against, found none"),
        (("validation", LABELS), "validation: expected cases, found none"),
        (
            ("training", ["background", "all"]),
            "labels: expected the network's classes ['all'], found ['class_1', 'class_2']",
        ),
    ):
        with pytest.raises(DataError) as caught:
            require_truth(folder, *wrong)
        assert str(caught.value) == f"{path}: {words}"
