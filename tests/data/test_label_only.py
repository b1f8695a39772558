"""Folders of label maps alone: what a label generator writes and an image generator reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from medpair.data.check import check_dataset, require_valid
from medpair.data.cohort import read_cohort
from medpair.data.dataset import load_dataset, write_dataset_json
from medpair.data.faults import errors_of
from medpair.data.files import DataError, Volume, write_volume
from medpair.report.preview import preview_datasets

LABELS = {"background": 0, "organ": 1}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "labels_alone"
    for index in range(2):
        label = np.zeros((8, 7, 6), np.uint8)
        label[2:5, 2:5, 1 + index : 4] = 1
        write_volume(root / f"labelsTr/map_{index}.nii.gz", Volume(label, np.eye(4)))
    entries = [{"label": f"labelsTr/map_{index}.nii.gz"} for index in range(2)]
    write_dataset_json(root, "labels_alone", LABELS, {"training": entries}, {})
    return root


def edit(folder: Path, **changes: object) -> None:
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_label_maps_alone_are_read_where_they_will_do(folder: Path) -> None:
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {}
    cases = load_dataset(folder, images=False).split("training")
    assert [(case.name, case.image) for case in cases] == [("map_0", None), ("map_1", None)]
    assert cases[1].item() == {"label": str(folder / "labelsTr/map_1.nii.gz")}


def test_a_folder_with_images_is_read_the_same_either_way(tiny_dataset, tmp_path: Path) -> None:
    pairs = tiny_dataset(tmp_path / "pairs", count=2, size=(8, 8, 6))
    assert load_dataset(pairs, images=False).cases == load_dataset(pairs).cases


def test_where_images_are_needed_the_entry_is_named(folder: Path) -> None:
    for read in (load_dataset, read_cohort):
        with pytest.raises(DataError, match=r"dataset\.json: training\[0\]: expected .*image"):
            read(folder)


def test_check_accepts_them_and_reads_their_voxels(folder: Path) -> None:
    assert check_dataset(folder) == []
    require_valid(folder)
    path = folder / "labelsTr/map_1.nii.gz"
    write_volume(path, Volume(np.full((8, 7, 6), 9, np.uint8), np.eye(4)))
    (fault,) = errors_of(check_dataset(folder))
    assert (fault.file, fault.key) == (str(path), "values")
    assert "[9]" in fault.found


def test_an_image_of_null_is_no_image(folder: Path) -> None:
    edit(folder, training=[{"image": None, "label": f"labelsTr/map_{i}.nii.gz"} for i in range(2)])
    assert check_dataset(folder) == []
    assert [c.name for c in load_dataset(folder, images=False).split("training")] == [
        "map_0",
        "map_1",
    ]


def test_images_may_only_be_absent_where_the_folder_says_so(folder: Path) -> None:
    edit(folder, channel_names={"0": "CT"})
    faults = errors_of(check_dataset(folder))
    assert [fault.key for fault in faults] == ["training[0]", "training[1]"]
    edit(folder, channel_names={"0": "CT", "1": "PET"})
    assert "channel_names" in [fault.key for fault in check_dataset(folder)]


def test_an_entry_without_anything_is_a_fault(folder: Path) -> None:
    edit(folder, training=[{"label": "labelsTr/map_0.nii.gz"}, {}])
    assert [fault.key for fault in errors_of(check_dataset(folder))] == ["training[1]"]
    with pytest.raises(DataError, match=r"training\[1\]"):
        load_dataset(folder, images=False)


def test_names_must_differ_as_those_of_images_must(folder: Path) -> None:
    twin = np.zeros((8, 7, 6), np.uint8)
    twin[3, 3, 3] = 1
    write_volume(folder / "more/map_0.nii.gz", Volume(twin, np.eye(4)))
    edit(
        folder,
        training=[{"label": "labelsTr/map_0.nii.gz"}, {"label": "more/map_0.nii.gz"}],
    )
    (fault,) = errors_of(check_dataset(folder))
    assert fault.key == "training[1].label"
    assert "'map_0'" in fault.found


def test_preview_shows_them_on_their_silhouette(folder: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    preview_datasets([folder], tmp_path / "sheet.png", count=2)
    sheet = imread(tmp_path / "sheet.png")[..., :3]
    # what is not grey is the label; without labels nothing would be coloured
    assert (np.ptp(sheet, axis=2) > 0.2).any()
