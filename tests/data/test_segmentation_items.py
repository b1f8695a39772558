"""The cases of several folders together: each has a name of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.conftest import tiny_dataset

from medpair.data.files import DataError
from medpair.data.segmentation import load_items
from medpair.engines.settings import training_cases


def cohort(folder: Path, names: list[str]) -> Path:
    """Write a folder of training cases with these names."""
    tiny_dataset(folder, count=len(names), size=(8, 8, 8), validation=0)
    path = folder / "dataset.json"
    text = path.read_text(encoding="utf-8")
    for index, name in enumerate(names):
        (folder / f"imagesTr/case_{index:03d}_0000.nii.gz").rename(
            folder / f"imagesTr/{name}_0000.nii.gz"
        )
        text = text.replace(f"imagesTr/case_{index:03d}_", f"imagesTr/{name}_")
    path.write_text(text, encoding="utf-8")
    return folder


def test_names_are_numbered_from_the_second_folder_on(tmp_path: Path) -> None:
    one, two, three = (cohort(tmp_path / name, ["a", "b"]) for name in ("one", "two", "three"))
    items = load_items([one, two, three])
    assert [item["case"] for item in items] == ["a", "b", "2_a", "2_b", "3_a", "3_b"]
    assert [item["case"] for item in load_items(two)] == ["a", "b"]
    assert [item["case"] for item in load_items(f"['{one}','{one}']")][2:] == ["2_a", "2_b"]
    # other names, not other files
    assert [i | {"case": "x"} for i in items[2:4]] == [i | {"case": "x"} for i in load_items(two)]
    # checkpoints go on with the names that they always had
    assert list(training_cases([one, two])) == ["a", "b", "2:a", "2:b"]


def test_a_name_that_another_folder_has_anyway_is_refused(tmp_path: Path) -> None:
    one, two = cohort(tmp_path / "one", ["2_a"]), cohort(tmp_path / "two", ["a"])
    with pytest.raises(DataError) as caught:
        load_items([one, two])
    assert str(caught.value) == (
        f"{two}/dataset.json: training: expected names that no earlier folder has, found 2_a"
    )
    assert len(load_items([two, one])) == 2
