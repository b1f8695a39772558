"""Dataset folders to BIDS and back; the specification's own validator judges the export."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import tiny_dataset
from tests.sharing.folders import assert_same, rich_dataset

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, Volume, read_json, write_json, write_volume
from medpair.sharing.convert_bids import export_bids
from medpair.sharing.convert_bids_read import import_bids
from medpair.sharing.convert_volumes import read_image


def validate(folder: Path) -> list[str]:
    """Return codes and places of the validator's errors."""
    pytest.importorskip("bids_validator_deno", reason="the BIDS validator is not installed")
    command = Path(sys.executable).parent / "bids-validator-deno"
    # it asks for nothing beyond the folder; its cache goes there too
    environment = {**os.environ, "DENO_DIR": str(folder.parent / "deno"), "NO_COLOR": "1"}
    words = [str(command), str(folder), "--format", "json", "--ignoreWarnings"]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    issues = json.loads(done.stdout)["issues"]["issues"]
    errors = [issue for issue in issues if issue.get("severity") == "error"]
    return [f"{issue['code']} {issue.get('subCode', '')} {issue['location']}" for issue in errors]


def test_there_and_back(tmp_path: Path) -> None:
    source = rich_dataset(tmp_path / "rich")
    out = tmp_path / "derivatives" / "medpair"
    made = export_bids(source, out, authors=["Ada Lovelace", 'O"Neill'])
    assert made == out / "dataset_description.json"
    about = read_json(made)
    assert about["DatasetType"] == "derivative"
    assert about["GeneratedBy"][0]["Name"] == "MedPair"
    assert about["License"] == "CC BY 4.0"
    table = (out / "sub-case000" / "anat" / "sub-case000_dseg.tsv").read_text()
    assert table == "index\tname\n0\tbackground\n7\tleft\n300\tright\n"
    sidecar = read_json(out / "sub-case000" / "anat" / "sub-case000_T1w.json")
    assert sidecar["MedPair"] == {"index": 0, "seed": 3}
    sources = read_json(out / "sub-case000" / "anat" / "sub-case000_dseg.json")
    assert sources["Sources"] == ["bids::sub-case000/anat/sub-case000_T1w.nii.gz"]
    assert validate(out) == []
    back = import_bids(out, tmp_path / "back").parent
    assert errors_of(check_dataset(back)) == []
    assert_same(source, back)
    content = read_json(back / "dataset.json")
    assert content["labels"] == {"background": 0, "left": 7, "right": 300}
    assert content["licence"] == "CC BY 4.0"
    assert read_json(back / "provenance" / "case_000.json") == {"index": 0, "seed": 3}


def test_the_validator_finds_what_is_broken(tmp_path: Path) -> None:
    """So that an empty list above means something."""
    out = tmp_path / "out"
    export_bids(tiny_dataset(tmp_path / "tiny", 1, validation=0), out, "angio")
    anat = out / "sub-case000" / "anat"
    (anat / "sub-case000_dseg.nii.gz").rename(anat / "sub-case000_segmentation.nii.gz")
    (out / "dataset_description.json").write_text("{}")
    codes = " ".join(validate(out))
    assert "sub-case000_segmentation.nii.gz" in codes
    assert "JSON_KEY_REQUIRED" in codes


def test_merged_labels_and_ct(tmp_path: Path) -> None:
    source = rich_dataset(tmp_path / "rich", 2)
    out = export_bids(source, tmp_path / "out", "ct", label_group="both").parent
    assert "*_ct.nii.gz" in (out / ".bidsignore").read_text()
    table = (out / "sub-case000" / "anat" / "sub-case000_dseg.tsv").read_text()
    assert table == "index\tname\n0\tbackground\n1\torgan\n"
    assert validate(out) == []
    back = import_bids(out, tmp_path / "back").parent
    assert read_json(back / "dataset.json")["channel_names"] == {"0": "CT"}
    for split in ("training", "validation"):
        for case in load_dataset(back).split(split):
            before = source / f"labels{'Tr' if split == 'training' else 'Vl'}" / case.label.name
            expected = read_image(before).array > 0
            np.testing.assert_array_equal(read_image(case.label).array, expected)


@pytest.mark.parametrize(
    ("channel", "suffix"),
    [("T1", "T1w"), ("TOF-MRA (simulated)", "angio"), ("CT", "ct"), ("t2w", "T2w"), ("MRI", None)],
)
def test_the_suffix_follows_the_channel(tmp_path: Path, channel: str, suffix: str | None) -> None:
    source = tiny_dataset(tmp_path / "tiny", 1, validation=0)
    content = read_json(source / "dataset.json")
    write_json(source / "dataset.json", {**content, "channel_names": {"0": channel}})
    if suffix is None:
        with pytest.raises(DataError, match="found 'MRI'; say --suffix, one of T1w, T2w"):
            export_bids(source, tmp_path / "out")
        return
    export_bids(source, tmp_path / "out")
    assert (tmp_path / "out" / "sub-case000" / "anat" / f"sub-case000_{suffix}.nii.gz").exists()


def test_a_killed_export_goes_on(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2)
    out = export_bids(source, tmp_path / "out", "T1w").parent
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    kept = out / "sub-case000" / "anat" / "sub-case000_T1w.nii.gz"
    time = kept.stat().st_mtime_ns
    (out / "sub-case001" / "anat" / "sub-case001_T1w.nii.gz").unlink()
    (out / "dataset_description.json").unlink()
    export_bids(source, out, "T1w")
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
    assert kept.stat().st_mtime_ns == time
    with pytest.raises(DataError, match=r"conversion.json: .* another options"):
        export_bids(source, out, "T2w")


def test_names_that_become_one_subject_are_refused(tmp_path: Path) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2, validation=0)
    for part, end in (("imagesTr", "_0000"), ("labelsTr", "")):
        folder = source / part
        (folder / f"case_001{end}.nii.gz").rename(folder / f"case-000{end}.nii.gz")
    text = (source / "dataset.json").read_text().replace("case_001", "case-000")
    (source / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"'case_000' and 'case-000', both sub-case000$"):
        export_bids(source, tmp_path / "out", "T1w")


def put(root: Path, name: str, array: Any, pipeline: str = "") -> Path:
    """Write a volume under its BIDS name, sessions and all."""
    parts = dict(p.split("-", 1) for p in name.split("_")[:-1])
    folder = root / "derivatives" / pipeline if pipeline else root
    folder /= f"sub-{parts['sub']}"
    folder = (folder / f"ses-{parts['ses']}" if "ses" in parts else folder) / "anat"
    path = folder / f"{name}.nii.gz"
    write_volume(path, Volume(np.asarray(array), np.diag([1.0, 1.0, 2.0, 1.0]), "LPS"))
    return path


def balls(*places: Sequence[int]) -> np.ndarray:
    """Return a label map with value k + 1 in a corner of each place."""
    label = np.zeros((8, 9, 10), np.uint8)
    for k, (x, y, z) in enumerate(places, start=1):
        label[x : x + 2, y : y + 2, z : z + 2] = k
    return label


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Raw images of two sessions and runs; label maps in a derivative with inherited names."""
    root = tmp_path / "study"
    rng = np.random.default_rng(0)
    for name in ("sub-01_ses-a", "sub-01_ses-b_run-1", "sub-01_ses-b_run-2", "sub-02"):
        put(root, f"{name}_T1w", rng.integers(0, 900, (8, 9, 10)).astype(np.int16))
        put(root, f"{name}_space-orig_desc-hand_dseg", balls((1, 1, 1), (4, 4, 4)), "hand")
        put(root, f"{name}_space-MNI_desc-hand_dseg", balls((1, 1, 1)), "hand")
    (root / "derivatives" / "hand" / "dseg.tsv").write_text("index\tname\n1\tone\n2\ttwo\n")
    write_json(root / "dataset_description.json", {"Name": "study", "License": "CC0"})
    return root


def test_sessions_runs_and_inherited_names(study: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        import_bids(study, tmp_path / "out")
    assert len(re.findall("space-MNI_desc-hand_dseg.* found none", str(caught.value))) == 4
    for path in study.rglob("*space-MNI*"):
        path.unlink()
    made = import_bids(study, tmp_path / "out").parent
    folder = load_dataset(made)
    names = [case.name for case in folder.split("training")]
    assert names == ["sub-01_ses-a", "sub-01_ses-b_run-1", "sub-01_ses-b_run-2", "sub-02"]
    assert folder.content["labels"] == {"background": 0, "one": 1, "two": 2}
    assert folder.name == "study"
    for case in folder.split("training"):
        anat = next(study.rglob(f"{case.name}_T1w.nii.gz"))
        np.testing.assert_array_equal(read_image(case.image).array, read_image(anat).array)
        assert read_image(case.image).orientation == "LPS"
        assert (read_image(case.label).array == 2).sum() == 8


def test_masks_of_single_labels(study: Path, tmp_path: Path) -> None:
    shutil.rmtree(study / "derivatives")
    for name in ("sub-01_ses-a", "sub-01_ses-b_run-1", "sub-01_ses-b_run-2", "sub-02"):
        put(study, f"{name}_label-B_mask", balls((4, 4, 4)), "masks")
        put(study, f"{name}_label-A_desc-x_mask", balls((1, 1, 1)), "masks")
    made = import_bids(study, tmp_path / "out").parent
    assert read_json(made / "dataset.json")["labels"] == {"background": 0, "A": 1, "B": 2}
    for case in load_dataset(made).split("training"):
        label = read_image(case.label).array
        assert [(label == value).sum() for value in (1, 2)] == [8, 8]
    put(study, "sub-02_label-B_mask", balls((2, 2, 2)), "masks")
    with pytest.raises(DataError, match=r"sub-02_label-B_mask.*found 1 voxels in two$"):
        import_bids(study, tmp_path / "twice")


def test_what_does_not_fit_is_refused_and_listed(study: Path, tmp_path: Path) -> None:
    for path in study.rglob("*space-MNI*"):
        path.unlink()
    put(study, "sub-02_space-orig_desc-auto_dseg", balls((0, 0, 0)), "auto")
    put(study, "sub-03_T1w", balls((0, 0, 0)))
    put(study, "sub-04_dseg", balls((0, 0, 0)), "auto")
    with pytest.raises(DataError) as caught:
        import_bids(study, tmp_path / "out")
    text = str(caught.value)
    assert "found 3:" in text
    for piece in (
        r"sub-02_T1w.nii.gz: expected one _dseg, .*--segmentation",
        r"sub-03_T1w.nii.gz: expected a _dseg .*--matched_only",
        r"sub-04_dseg.nii.gz: expected an image",
    ):
        assert re.search(piece, text)
    made = import_bids(study, tmp_path / "out", segmentation="hand", matched_only=True).parent
    assert len(load_dataset(made).split("training")) == 4
    with pytest.raises(DataError, match=r"auto_dseg.nii.gz: expected a _dseg.tsv .*--labels"):
        import_bids(study, tmp_path / "o", segmentation="auto", matched_only=True)
    put(study, "sub-02_T2w", balls((0, 0, 0)))
    with pytest.raises(DataError, match=r"images of one suffix .* found T1w, T2w"):
        import_bids(study, tmp_path / "p")
    table = study / "derivatives" / "hand" / "sub-02" / "dseg.tsv"
    table.write_text("index\tname\n2\tone\n")
    with pytest.raises(DataError, match="'one' as 1 and as 2"):
        import_bids(study, tmp_path / "q", "T1w", segmentation="hand", matched_only=True)
    (study / "participants.tsv").write_text("participant_id\tsplit\nsub-02\ttrain\n")
    with pytest.raises(DataError, match=r"participants.tsv: split: .* found \['train'\]"):
        import_bids(study, tmp_path / "r", "T1w", segmentation="hand", matched_only=True)
