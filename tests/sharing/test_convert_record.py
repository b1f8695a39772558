"""Conversions that were refused go on after the repair; nothing stale stays behind."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tests.conftest import tiny_dataset
from tests.damage import edit_json
from tests.sharing.folders import assert_same

from medpair.data.atomic import atomic_path
from medpair.data.check import check_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, Volume, read_json, read_volume, write_volume
from medpair.sharing.convert_bids import export_bids
from medpair.sharing.convert_bids_read import import_bids
from medpair.sharing.convert_nnunet import export_nnunet
from medpair.sharing.convert_nnunet_read import import_nnunet
from medpair.sharing.convert_record import CaseFiles, claim
from medpair.sharing.convert_volumes import read_image


def put(path: Path, array: np.ndarray) -> None:
    """Write other voxels into a file, later than before."""
    before = path.stat().st_mtime_ns
    write_volume(path, Volume(array, read_volume(path).affine))
    os.utime(path, ns=(before + 10**9, before + 10**9))


def stamps(folder: Path, pattern: str = "*") -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob(pattern) if path.is_file()}


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Three cases in nnU-Net's format; the label map of the second has a value too many."""
    source = tiny_dataset(tmp_path / "tiny", 3, validation=0)
    folder = export_nnunet(source, tmp_path, 9).parent
    label = read_image(folder / "labelsTr" / "case_001.nii.gz").array
    put(folder / "labelsTr" / "case_001.nii.gz", np.where(label == 2, 5, label))
    with pytest.raises(DataError, match=r"case_001.nii.gz: expected label values in .*found \[5\]"):
        import_nnunet(folder, tmp_path / "out")
    return folder


def repair(raw: Path) -> None:
    path = raw / "labelsTr" / "case_001.nii.gz"
    label = read_image(path).array
    put(path, np.where(label == 5, 2, label))


def test_a_repaired_case_is_converted_and_the_others_are_kept(raw: Path, tmp_path: Path) -> None:
    written = stamps(tmp_path / "out", "*.nii.gz")
    assert len(written) == 4  # two of three cases
    repair(raw)
    made = import_nnunet(raw, tmp_path / "out").parent
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert_same(tmp_path / "tiny", made, roi=False)
    finished = stamps(made, "*.nii.gz")
    import_nnunet(raw, tmp_path / "out")
    assert stamps(made, "*.nii.gz") == finished


def test_a_case_that_changed_after_it_was_written_is_written_anew(
    raw: Path, tmp_path: Path
) -> None:
    image = raw / "imagesTr" / "case_000_0000.nii.gz"
    put(image, read_image(image).array + 7)
    with pytest.raises(DataError, match="case_001"):  # still broken, and case_000 already anew
        import_nnunet(raw, tmp_path / "out")
    repair(raw)
    label = raw / "labelsTr" / "case_002.nii.gz"
    put(label, np.flip(read_image(label).array, 1))
    made = import_nnunet(raw, tmp_path / "out").parent
    for name in ("case_000", "case_001", "case_002"):
        for part, end in (("imagesTr", "_0000"), ("labelsTr", "")):
            file = f"{part}/{name}{end}.nii.gz"
            np.testing.assert_array_equal(
                read_image(made / file).array, read_image(raw / file).array
            )


def test_a_killed_run_leaves_nothing_stale(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between making way and the record, the run after it makes way again."""
    image = raw / "imagesTr" / "case_000_0000.nii.gz"
    put(image, read_image(image).array + 7)
    repair(raw)
    with monkeypatch.context() as patch:
        patch.setattr("medpair.sharing.convert_record.write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            import_nnunet(raw, tmp_path / "out")
    made = import_nnunet(raw, tmp_path / "out").parent
    changed = read_image(made / "imagesTr" / image.name).array
    np.testing.assert_array_equal(changed, read_image(image).array)


def test_what_is_finished_another_dataset_and_other_settings_are_refused(
    raw: Path, tmp_path: Path
) -> None:
    repair(raw)
    with pytest.raises(DataError, match="another options"):
        import_nnunet(raw, tmp_path / "out", ignore_as_background=True)
    os.rename(raw, tmp_path / "first")
    other = tiny_dataset(tmp_path / "second" / "tiny", 3, validation=0, seed=1)
    export_nnunet(other, tmp_path, 9)
    with pytest.raises(DataError, match="another source_sha256"):
        import_nnunet(raw, tmp_path / "out")
    made = import_nnunet(tmp_path / "first", tmp_path / "out").parent
    before = stamps(made)
    label = tmp_path / "first" / "labelsTr" / "case_002.nii.gz"
    put(label, np.flip(read_image(label).array, 1))
    with pytest.raises(DataError, match="another source_sha256"):
        import_nnunet(tmp_path / "first", tmp_path / "out")
    assert stamps(made) == before


def test_a_label_that_is_gone_is_gone(raw: Path, tmp_path: Path) -> None:
    """Cases of a test list may lose theirs."""
    for part, end in (("images", "_0000"), ("labels", "")):
        (raw / f"{part}Ts").mkdir(exist_ok=True)
        old = raw / f"{part}Tr" / f"case_000{end}.nii.gz"
        (raw / f"{part}Ts" / f"test_000{end}.nii.gz").write_bytes(old.read_bytes())
    with pytest.raises(DataError, match="case_001"):
        import_nnunet(raw, tmp_path / "two")
    assert (tmp_path / "two" / "labelsTs" / "test_000.nii.gz").exists()
    (raw / "labelsTs" / "test_000.nii.gz").unlink()
    repair(raw)
    made = import_nnunet(raw, tmp_path / "two").parent
    assert not (made / "labelsTs" / "test_000.nii.gz").exists()
    assert list(read_json(made / "dataset.json")["test"][0]) == ["image"]


def test_a_bids_folder_goes_on_after_a_repair(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2)
    folder = export_bids(source, tmp_path / "bids", "T1w").parent
    path = folder / "sub-case001" / "anat" / "sub-case001_dseg.nii.gz"
    good = read_image(path).array
    put(path, np.where(good == 2, 5, good))
    with pytest.raises(DataError, match=r"sub-case001_dseg.nii.gz: .*found \[5\]"):
        import_bids(folder, tmp_path / "out")
    written = stamps(tmp_path / "out", "*.nii.gz")
    put(path, good)
    made = import_bids(folder, tmp_path / "out").parent
    assert_same(source, made, roi=False)
    assert {path: path.stat().st_mtime_ns for path in written} == written


def as_scaled_floats(path: Path) -> None:
    """Store whole numbers as nibabel stores floats in int16: with a scale, and rounding."""
    image = nib.load(path)
    image = nib.Nifti1Image(np.asarray(image.dataobj, np.float64), image.affine)
    image.set_data_dtype(np.int16)
    nib.save(image, path)


def test_labels_that_check_rounds_are_converted(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2, roi=True)
    strange = tiny_dataset(tmp_path / "strange" / "tiny", 2, roi=True)
    for path in (*strange.glob("labels*/*.nii.gz"), *strange.glob("rois*/*.nii.gz")):
        as_scaled_floats(path)
    values = np.unique(read_image(strange / "labelsTr" / "case_000.nii.gz").array)
    assert not np.array_equal(values, np.rint(values))
    faults = check_dataset(strange)
    assert {fault.level for fault in faults} == {"warning"}
    raw = export_nnunet(strange, tmp_path / "raw", 1).parent
    assert_same(source, import_nnunet(raw, tmp_path / "one").parent, roi=False)
    bids = export_bids(strange, tmp_path / "bids", "T1w").parent
    assert_same(source, import_bids(bids, tmp_path / "two").parent)
    for path in raw.glob("labels*/*.nii.gz"):
        as_scaled_floats(path)
    assert_same(source, import_nnunet(raw, tmp_path / "three").parent, roi=False)


def test_a_conversion_that_wrote_nothing_may_be_corrected(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2)
    bids = export_bids(source, tmp_path / "bids", "T1w").parent
    for path in bids.rglob("*_dseg.tsv"):
        path.unlink()
    with pytest.raises(DataError, match="expected label values in"):
        import_bids(bids, tmp_path / "out", labels={"class_1": 1})
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert left == ["conversion.json"]
    made = import_bids(bids, tmp_path / "out", labels={"class_1": 1, "class_2": 2}).parent
    assert check_dataset(made) == []


def test_a_file_that_is_being_written_is_left_to_its_writer(raw: Path, tmp_path: Path) -> None:
    repair(raw)
    (tmp_path / "out" / "imagesTr" / ".partial-00000000-killed.nii.gz").write_text("x")
    with atomic_path(tmp_path / "out" / "imagesTr" / "other.nii.gz") as partial:
        import_nnunet(raw, tmp_path / "out")
        partial.write_text("whole")
    assert (tmp_path / "out" / "imagesTr" / "other.nii.gz").read_text() == "whole"
    assert not list((tmp_path / "out").rglob(".partial-*"))


def test_a_run_killed_while_it_wrote_the_record_can_be_repeated(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 1, validation=0)
    raw, bids = tmp_path / "raw" / "Dataset001_tiny", tmp_path / "bids"
    left = [raw / ".partial-0123abcd-conversion.json", bids / "code/.partial-0123abcd-x.json"]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_text("{")
    export_nnunet(source, tmp_path / "raw", 1, "tiny")
    export_bids(source, bids, "T1w")
    assert not any(path.exists() for path in left)
    with (
        atomic_path(tmp_path / "out" / "conversion.json"),  # another run's, which lives
        pytest.raises(DataError, match="expected an empty folder or none"),
    ):
        import_nnunet(raw, tmp_path / "out")
    assert not (tmp_path / "out" / "dataset.json").exists()
    (tmp_path / "mine" / "code").mkdir(parents=True)
    (tmp_path / "mine" / "code" / "own.py").write_text("x")
    with pytest.raises(DataError, match="expected an empty folder or none"):
        export_bids(source, tmp_path / "mine", "T1w")


def test_files_outside_the_source_are_read_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Paths that nnU-Net's list gives, and links; none is outside where all lie in the folder."""
    source = tiny_dataset(tmp_path / "tiny", 3, validation=0)
    raw = export_nnunet(source, tmp_path / "raw", 1, "tiny").parent
    import_nnunet(raw, tmp_path / "inside")
    assert "outside" not in caplog.text
    listed = {}
    for name in ("case_000", "case_001", "case_002"):
        image, label = f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"
        listed[name] = {"images": [image], "label": label}
    away = tmp_path / "away"
    away.mkdir()
    (raw / "imagesTr/case_000_0000.nii.gz").rename(away / "first.nii.gz")
    listed["case_000"]["images"] = [str(away / "first.nii.gz")]
    (raw / "labelsTr/case_002.nii.gz").rename(away / "third.nii.gz")
    (raw / "labelsTr/case_002.nii.gz").symlink_to(away / "third.nii.gz")
    edit_json(raw, lambda content: content.update(dataset=listed))
    made = import_nnunet(raw, tmp_path / "out").parent
    assert_same(source, made, roi=False)
    found = "2 files that are read lie outside this folder, the first"
    (line,) = [record.getMessage() for record in caplog.records if "outside" in record.getMessage()]
    assert line == f"{raw}: {found} {away / 'first.nii.gz'}"
    assert {record.levelname for record in caplog.records if "outside" in record.msg} == {"WARNING"}


def test_names_that_are_no_text_can_be_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "source" / os.fsdecode(b"M\xfcller")
    try:
        folder.mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes no such name")
    (folder / "a.tsv").write_text("x")
    files = {"case": CaseFiles({"image": [folder / "a.tsv"]}, [tmp_path / "out" / "a.nii.gz"])}
    claim(tmp_path / "out", "import", tmp_path / "source", [folder / "a.tsv"], files, {})
    assert (tmp_path / "out" / "conversion.json").exists()


def test_negative_values_are_refused_by_all(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2)
    edit_json(source, lambda content: content["labels"].update({"unlabelled": -1}))
    assert errors_of(check_dataset(source)) == []
    with pytest.raises(DataError, match="expected values from 0 to 65535, found -1"):
        export_bids(source, tmp_path / "bids", "T1w")
