"""Dataset folders to nnU-Net's raw format and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from tests.conftest import tiny_dataset
from tests.nnunet import verify
from tests.sharing.folders import assert_same, rich_dataset

from medpair.data.check import check_dataset
from medpair.data.cohort import read_cohort
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, read_json, write_json
from medpair.sharing.convert_bids import export_bids
from medpair.sharing.convert_nnunet import export_nnunet
from medpair.sharing.convert_nnunet_read import import_nnunet
from medpair.sharing.convert_volumes import read_image


def test_there_and_back(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = rich_dataset(tmp_path / "rich")
    made = export_nnunet(source, tmp_path / "raw", 501)
    folder = tmp_path / "raw" / "Dataset501_rich_set"
    assert made == folder / "dataset.json"
    content = read_json(made)
    assert content["labels"] == {"background": 0, "left": 1, "right": 2}
    assert content["label_values"] == {"background": [0], "left": [7], "right": [300]}
    assert (content["numTraining"], content["file_ending"]) == (3, ".nii.gz")
    assert content["origin"] == {"seed": 3}
    fold = {"train": ["case_000", "case_001"], "val": ["case_003"]}
    assert read_json(folder / "splits_final.json") == [fold]
    assert (folder / "imagesTs" / "case_002_0000.nii.gz").exists()
    assert (folder / "labelsTs" / "case_002.nii.gz").exists()
    back = import_nnunet(folder, tmp_path / "back").parent
    assert errors_of(check_dataset(back)) == []
    assert_same(source, back, roi=False)
    assert read_json(back / "provenance" / "case_000.json") == {"index": 0, "seed": 3}
    assert read_json(back / "dataset.json")["licence"] == "CC BY 4.0"
    verify(folder)
    assert "Warning" not in capfd.readouterr().out


def test_a_label_group_is_merged(tmp_path: Path) -> None:
    source = rich_dataset(tmp_path / "rich", 2)
    made = export_nnunet(source, tmp_path / "raw", 7, "Merged", label_group="both")
    assert made.parent.name == "Dataset007_Merged"
    assert read_json(made)["labels"] == {"background": 0, "organ": 1}
    assert read_json(made)["label_values"]["organ"] == [7, 300]
    back = import_nnunet(made.parent, tmp_path / "back").parent
    assert_same(source, back, roi=False, group="both")


def test_a_killed_export_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2)
    folder = export_nnunet(source, tmp_path / "raw", 1).parent
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    times = {path: path.stat().st_mtime_ns for path in files}
    lost = folder / "imagesTr" / "case_001_0000.nii.gz"
    lost.unlink()
    (folder / "imagesTr" / ".partial-x-case_001_0000.nii.gz").write_bytes(b"half")
    (folder / "dataset.json").unlink()
    export_nnunet(source, tmp_path / "raw", 1)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files
    kept = folder / "imagesTr" / "case_000_0000.nii.gz"
    assert kept.stat().st_mtime_ns == times[kept]
    assert lost.stat().st_mtime_ns != times[lost]
    tiny_dataset(tmp_path / "tiny", 2, seed=1)
    with pytest.raises(DataError, match="another source_sha256"):
        export_nnunet(source, tmp_path / "raw", 1)
    with pytest.raises(DataError, match=r"expected an id that is free, found 1 taken"):
        export_nnunet(source, tmp_path / "raw", 1, "Other")


def test_both_ways_can_be_repeated(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2)
    for _ in range(2):  # the lists are written anew, with what they said
        made = export_nnunet(source, tmp_path / "raw", 1)
        import_nnunet(made.parent, tmp_path / "back")
    assert_same(source, tmp_path / "back", roi=False)


def rename(folder: Path, **names: str) -> None:
    """Give cases other names."""
    text = (folder / "dataset.json").read_text()
    for old, new in names.items():
        for path in folder.rglob(f"{old}*.nii.gz"):
            path.rename(path.with_name(path.name.replace(old, new)))
        text = text.replace(old, new)
    (folder / "dataset.json").write_text(text)


def test_what_cannot_be_said_is_refused(tmp_path: Path) -> None:
    strange = tiny_dataset(tmp_path / "strange", 3)
    rename(strange, case_000="a b", case_001="Case_x", case_002="case_X")
    with pytest.raises(DataError, match=r"found 2:\n.*found 'a b'\n.*'Case_x' and 'case_X'$"):
        export_nnunet(strange, tmp_path / "raw", 1)
    ignored = tiny_dataset(tmp_path / "ignored", 1)
    content = read_json(ignored / "dataset.json")
    content["labels"]["ignore"] = content["labels"].pop("class_1")
    write_json(ignored / "dataset.json", content)
    with pytest.raises(DataError, match=r"another name of a class .* found 'ignore'"):
        export_nnunet(ignored, tmp_path / "raw", 2)
    broken = tiny_dataset(tmp_path / "broken", 2)
    (broken / "labelsTr" / "case_000.nii.gz").unlink()
    (broken / "imagesTr" / "case_001_0000.nii.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"(?s)case_000.*case_001|case_001.*case_000"):
        export_nnunet(broken, tmp_path / "raw", 3)
    assert not (tmp_path / "raw").exists()
    good = tiny_dataset(tmp_path / "good", 1)
    with pytest.raises(ValueError, match="id: expected a whole number from 1 to 999, found 1000"):
        export_nnunet(good, tmp_path / "raw", 1000)
    with pytest.raises(DataError, match="expected an output folder outside"):
        export_nnunet(good, good, 5)


def test_a_licence_in_american_goes_along(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2)
    change(source, lambda content: content.update(license="CC BY-NC 4.0"))
    raw = export_nnunet(source, tmp_path / "raw", 1).parent
    assert read_json(raw / "dataset.json")["licence"] == "CC BY-NC 4.0"
    change(raw, lambda content: content.update(license=content.pop("licence")))
    made = import_nnunet(raw, tmp_path / "back")
    assert read_json(made)["licence"] == "CC BY-NC 4.0"
    bids = export_bids(source, tmp_path / "bids", "T1w")
    assert read_json(bids)["License"] == "CC BY-NC 4.0"
    assert "Licence: CC BY-NC 4.0" in (bids.parent / "README.md").read_text()
    assert read_cohort(source)[0].licence == "CC BY-NC 4.0"


def test_the_modality_of_decathlon_is_the_channel(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 1, validation=0)
    change(source, lambda content: content.update(modality={"0": "CT"}))
    change(source, lambda content: content.pop("channel_names"))
    raw = export_nnunet(source, tmp_path / "raw", 1)
    assert read_json(raw)["channel_names"] == {"0": "CT"}
    bids = export_bids(source, tmp_path / "bids").parent
    assert (bids / "sub-case000" / "anat" / "sub-case000_ct.nii.gz").exists()
    change(raw.parent, lambda content: content.update(modality=content.pop("channel_names")))
    made = import_nnunet(raw.parent, tmp_path / "back")
    assert read_json(made)["channel_names"] == {"0": "CT"}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two cases with two channels each, made by hand."""
    folder = export_nnunet(tiny_dataset(tmp_path / "tiny", 2, validation=0), tmp_path, 9).parent
    for path in sorted((folder / "imagesTr").iterdir()):
        image = nib.load(path)
        second = nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1000), image.affine)
        nib.save(second, str(path).replace("_0000", "_0001"))
    change(folder, lambda content: content.update(channel_names={"0": "T1", "1": "T2"}))
    return folder


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = read_json(folder / "dataset.json")
    edit(content)
    write_json(folder / "dataset.json", content)


@pytest.mark.parametrize(
    ("train", "val", "fault"),
    [
        ("case_000", [], r"\[0\]\.train: expected a list of cases, found 'case_000'$"),
        (["case_000"], None, r"\[0\]\.val: expected a list of cases, found None$"),
        ([["case_000"]], [], r"\[0\]\.train: expected a list of cases, found \[\['case_000'\]\]$"),
        ([0], [1], r"\[0\]\.train: expected a list of cases, found \[0\]$"),
    ],
)
def test_splits_of_the_wrong_kind(
    raw: Path, tmp_path: Path, train: Any, val: Any, fault: str
) -> None:
    write_json(raw / "splits_final.json", [{"train": train, "val": val}])
    with pytest.raises(DataError, match=r"splits_final\.json: " + fault):
        import_nnunet(raw, tmp_path / "out", channel=0)


def test_one_of_several_channels(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"found 2 \(0 T1, 1 T2\); choose one with --channel$"):
        import_nnunet(raw, tmp_path / "out")
    with pytest.raises(DataError, match="expected 'FLAIR' among them, found 0 T1, 1 T2"):
        import_nnunet(raw, tmp_path / "out", channel="FLAIR")
    made = import_nnunet(raw, tmp_path / "out", channel="T2").parent
    assert read_json(made / "dataset.json")["channel_names"] == {"0": "T2"}
    second = read_image(raw / "imagesTr" / "case_000_0001.nii.gz").array
    first_case = load_dataset(made).split("training")[0]
    np.testing.assert_array_equal(read_image(first_case.image).array, second)
    (raw / "imagesTr" / "case_001_0001.nii.gz").unlink()
    with pytest.raises(DataError, match="case_001: expected 2 channels, found none for 1"):
        import_nnunet(raw, tmp_path / "again", channel=0)


def test_regions_become_groups_and_ignore_is_refused(raw: Path, tmp_path: Path) -> None:
    change(raw, lambda c: c.update(labels={"background": 0, "whole": [1, 2], "core": 2}))
    made = import_nnunet(raw, tmp_path / "out", channel=0).parent
    folder = load_dataset(made)
    assert folder.content["labels"] == {"background": 0, "value_1": 1, "core": 2}
    assert folder.labels("whole").names == ("background", "whole")
    assert folder.labels("whole").values == ((0,), (1, 2))
    assert errors_of(check_dataset(made, "whole")) == []
    change(raw, lambda c: c.update(labels={"background": 0, "one": 1, "ignore": 2}))
    with pytest.raises(DataError, match=r"found an ignore label .*--ignore_as_background"):
        import_nnunet(raw, tmp_path / "other", channel=0)
    made = import_nnunet(raw, tmp_path / "o", channel=0, ignore_as_background=True).parent
    for case in load_dataset(made).split("training"):
        before = read_image(raw / "labelsTr" / f"{case.name}.nii.gz").array
        np.testing.assert_array_equal(read_image(case.label).array, before * (before == 1))
    change(raw, lambda c: c.update(labels={"0": "background", "1": "one"}))
    with pytest.raises(DataError, match="nnUNetv2_convert_old_nnUNet_dataset"):
        import_nnunet(raw, tmp_path / "old", channel=0)


def test_every_missing_piece_is_listed(raw: Path, tmp_path: Path) -> None:
    (raw / "labelsTr" / "case_000.nii.gz").unlink()
    (raw / "imagesTr" / "case_001_0000.nii.gz").unlink()
    (raw / "imagesTr" / "loose.nii.gz").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        import_nnunet(raw, tmp_path / "out", channel=0)
    text = str(caught.value)
    assert "found 3:" in text
    for piece in ("loose.nii.gz", "case_000.nii.gz: expected a label", "case_001: expected 2"):
        assert piece in text
    change(raw, lambda c: c.update(file_ending=".png"))
    with pytest.raises(DataError, match=r"expected files with the ending \.png, found"):
        import_nnunet(raw, tmp_path / "out", channel=0)


def test_splits_must_name_every_case_once(raw: Path, tmp_path: Path) -> None:
    fold = {"train": ["case_000"], "val": ["case_000", "nobody"]}
    write_json(tmp_path / "splits.json", [fold])
    with pytest.raises(DataError) as caught:
        import_nnunet(raw, tmp_path / "out", channel=0, splits=tmp_path / "splits.json")
    for piece in ("found 'nobody'", "'case_000' in train or val, found it in both", "'case_001'"):
        assert piece in str(caught.value)
    with pytest.raises(DataError, match="expected a list with fold 4, found 1"):
        import_nnunet(raw, tmp_path / "out", channel=0, splits=tmp_path / "splits.json", fold=4)


def test_label_and_image_must_share_a_grid(raw: Path, tmp_path: Path) -> None:
    path = raw / "labelsTr" / "case_001.nii.gz"
    label = nib.load(path)
    shifted = label.affine.copy()
    shifted[0, 3] += 1
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), shifted), path)
    with pytest.raises(DataError, match=r"case_001.nii.gz: expected .* differs by up to 1$"):
        import_nnunet(raw, tmp_path / "out", channel=0)
    assert not (tmp_path / "out" / "dataset.json").exists()


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_other_endings_are_read_with_their_geometry(raw: Path, tmp_path: Path, ending: str) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    plain = import_nnunet(raw, tmp_path / "plain", channel=0).parent
    for path in sorted(raw.rglob("*.nii.gz")):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ending))
        path.unlink()
    change(raw, lambda c: c.update(file_ending=ending))
    made = import_nnunet(raw, tmp_path / "itk", channel=0).parent
    assert_same(plain, made, roi=False)


@pytest.mark.skipif("MEDPAIR_DATA" not in os.environ, reason="MEDPAIR_DATA names no folder")
def test_real_folders_pass_nnunets_own_check(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Five hippocampi and five heads stored as PSR, the heads with merged labels."""
    for number, (name, group) in enumerate(
        (("hippocampus_mr", None), ("brain_t1", "four_tissues")), start=1
    ):
        source = Path(os.environ["MEDPAIR_DATA"]) / name
        some = tmp_path / name
        some.mkdir()
        content = read_json(source / "dataset.json")
        content.update(training=content["training"][:3], validation=content["validation"][:2])
        content.pop("numTraining", None)
        for case in [*content["training"], *content["validation"]]:
            for path in case.values():
                (some / path).parent.mkdir(exist_ok=True)
                (some / path).write_bytes((source / path).read_bytes())
        write_json(some / "dataset.json", content)
        folder = export_nnunet(some, tmp_path / "raw", number, label_group=group).parent
        verify(folder)
        back = import_nnunet(folder, tmp_path / f"{name}_back").parent
        assert_same(some, back, roi=False, group=group)
    assert "Warning" not in capfd.readouterr().out
