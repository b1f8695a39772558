"""The data contract: ``dataset.json`` written and read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medpair.data.dataset import (
    SPLITS,
    as_folders,
    case_name,
    entry,
    load_dataset,
    write_dataset_json,
)
from medpair.data.files import DataError, read_volume
from medpair.data.labels import LabelMap

LABELS = {"background": 0, "vessel": 1}


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    splits = {
        "training": [entry("a"), entry("b", roi=True)],
        "test": [entry("c", "test")],
    }
    path = write_dataset_json(
        tmp_path, "cohort", LABELS, splits, {"0": "TOF"}, licence="CC0", label_groups={}
    )
    assert path == tmp_path / "dataset.json"
    assert json.loads(path.read_text()) == {
        "name": "cohort",
        "channel_names": {"0": "TOF"},
        "labels": LABELS,
        "numTraining": 2,
        "file_ending": ".nii.gz",
        "licence": "CC0",
        "label_groups": {},
        "training": splits["training"],
        "validation": [],
        "test": splits["test"],
    }
    dataset = load_dataset(str(tmp_path))
    assert dataset.name == "cohort"
    assert dataset.labels() == LabelMap(("background", "vessel"), ((0,), (1,)))
    assert [case.name for case in dataset.split("training")] == ["a", "b"]
    first, second = dataset.split("training")
    assert first.item() == {
        "image": str(tmp_path / "imagesTr/a_0000.nii.gz"),
        "label": str(tmp_path / "labelsTr/a.nii.gz"),
    }
    assert second.roi == tmp_path / "roisTr/b.nii.gz"
    assert dataset.split("test")[0].image == tmp_path / "imagesTs/c_0000.nii.gz"


def test_folders_of_a_split_follow_the_raw_format() -> None:
    assert [entry("x", split)["image"] for split in SPLITS] == [
        "imagesTr/x_0000.nii.gz",
        "imagesVl/x_0000.nii.gz",
        "imagesTs/x_0000.nii.gz",
    ]
    assert "roi" not in entry("x")


def test_tiny_dataset_is_what_it_says(tiny_dataset: Callable[..., Path], tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "d", 3, (12, 10, 8), 4, (0.5, 1, 2), "PSR", validation=2)
    dataset = load_dataset(folder)
    assert (len(dataset.split("training")), len(dataset.split("validation"))) == (3, 2)
    images = []
    for split in ("training", "validation"):
        for case in dataset.split(split):
            image, label = read_volume(case.image), read_volume(case.label or "")
            assert image.array.shape == label.array.shape == (12, 10, 8)
            assert image.spacing == label.spacing == (0.5, 1.0, 2.0)
            assert image.orientation == label.orientation == "PSR"
            assert np.unique(label.array).tolist() == [0, 1, 2, 3, 4]
            assert image.array[label.array == 4].mean() > image.array[label.array == 0].mean() + 300
            images.append(case.image.read_bytes())
    assert len(set(images)) == 5
    again = load_dataset(
        tiny_dataset(tmp_path / "e", 3, (12, 10, 8), 4, (0.5, 1, 2), "PSR", validation=2)
    )
    assert [case.image.read_bytes() for case in again.split("training")] == images[:3]


def test_bare_paths_are_images_without_labels(tmp_path: Path) -> None:
    write_dataset_json(tmp_path, "d", LABELS, {})
    content = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(content | {"test": ["imagesTs/x.nii.gz"]}))
    case = load_dataset(tmp_path).split("test")[0]
    assert (case.name, case.label) == ("x", None)
    assert case.item() == {"image": str(tmp_path / "imagesTs/x.nii.gz")}


def test_name_defaults_to_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "thorax"
    folder.mkdir()
    (folder / "dataset.json").write_text("{}")
    assert load_dataset(folder).name == "thorax"


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("imagesTr/case_0000.nii.gz", "case"),
        ("case.nii", "case"),
        ("sub.01.nii.gz", "sub.01"),
        ("case_0001.nii.gz", "case_0001"),
    ],
)
def test_case_name(file: str, name: str) -> None:
    assert case_name(Path(file)) == name


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "dataset.json: expected an object, found list"),
        ({"training": {}}, "dataset.json: training: expected a list, found dict"),
        ({"validation": [3]}, r"dataset.json: validation\[0\]: expected .* found 3"),
        ({"training": [{"label": "x"}]}, r"training\[0\]: expected .* found {'label': 'x'}"),
        (
            {"training": [{"image": "a", "label": "b"}, {"image": "a", "label": 7}]},
            r"training\[1\]: label: expected a path, found 7",
        ),
    ],
)
def test_unusable_json_is_refused_with_its_place(
    tmp_path: Path, content: Any, message: str
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path)


def test_missing_things_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: expected a dataset folder, found no folder"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"dataset\.json: expected a JSON file, found nothing"):
        load_dataset(tmp_path)
    write_dataset_json(tmp_path, "d", LABELS, {"training": [entry("a")]})
    dataset = load_dataset(tmp_path)
    with pytest.raises(DataError, match=r"split: expected one of .* found 'train'"):
        dataset.split("train")
    with pytest.raises(DataError, match=r"dataset\.json: validation: expected cases, found none"):
        dataset.split("validation")
    with pytest.raises(DataError, match=r"dataset\.json: label_group: expected one of \[\]"):
        dataset.labels("tissue")


def test_one_folder_or_several() -> None:
    one, two = Path("/data/a"), Path("/data/b's")
    assert as_folders("/data/a") == [one]
    assert as_folders(one) == [one]
    assert as_folders([one, "/data/b's"]) == [one, two]
    # as a command line passes a list
    assert as_folders("['/data/a']") == [one]
    assert as_folders('["/data/a", "/data/b\'s"]') == [one, two]
    for broken in ("[/data/a]", "[1]"):
        with pytest.raises(DataError, match="dataset_dir: expected a folder or"):
            as_folders(broken)
