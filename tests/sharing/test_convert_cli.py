"""``medpair export`` and ``medpair import`` as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.command_line import refusal, verbs_as_called
from tests.conftest import tiny_dataset
from tests.sharing.folders import assert_same

from medpair.data.files import read_json


def test_verbs_print_what_they_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_dataset(tmp_path / "tiny", 2)
    steps = [
        (("export", "nnunet", source, tmp_path / "raw", "--id", 501), "raw/Dataset501_tiny"),
        (("import", "nnunet", tmp_path / "raw/Dataset501_tiny", tmp_path / "one"), "one"),
        (("export", "bids", source, tmp_path / "bids", "--suffix=T1w", "--authors=A B,C"), "bids"),
        (("import", "bids", tmp_path / "bids", tmp_path / "two"), "two"),
    ]
    for words, folder in steps:
        assert verbs_as_called(monkeypatch, *words) == 0, capsys.readouterr().err
        name = "dataset_description.json" if folder == "bids" else "dataset.json"
        assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / folder / name)
    for folder in ("one", "two"):
        assert_same(source, tmp_path / folder, roi=False)
    citation = (tmp_path / "bids" / "CITATION.cff").read_text()
    assert '  - name: "A B"\n  - name: "C"\n' in citation
    assert read_json(tmp_path / "one" / "dataset.json")["name"] == "tiny"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("export",), "export: expected one of nnunet, bids, found none"),
        (("import", "nifti", "a"), "import: expected one of nnunet, bids, dicom, found nifti"),
        (
            ("export", "nnunet", "a", "b", "--ids", "3"),
            "--ids: expected a flag of medpair export nnunet, found none; did you mean --id?",
        ),
        (("import", "dicom", "nowhere", "b"), "nowhere: expected a folder of DICOM files"),
        (("import", "bids", "nowhere", "b"), "nowhere: expected a BIDS folder"),
        (("import", "nnunet", "nowhere", "b"), "nowhere/dataset.json: expected a JSON file"),
        (("export", "nnunet", "nowhere", "b", "--id=1"), "nowhere: folder: expected a dataset"),
    ],
)
def test_refusals_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    line: str,
) -> None:
    assert refusal(tmp_path, monkeypatch, capsys, words).startswith(f"medpair: {line}")
