"""The command ``medpair``, as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpair import __version__
from medpair.data.dataset import load_dataset
from tests.command_line import refusal, verbs_as_called
from tests.conftest import tiny_dataset


def medpair(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medpair.cli", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def test_check_passes_and_fails(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "my set")
    good = medpair("check", "my set", cwd=tmp_path)
    assert good.returncode == 0, good.stderr
    (folder / "imagesTr" / "case_000_0000.nii.gz").write_bytes(b"")
    (folder / "labelsTr" / "case_001.nii.gz").unlink()
    bad = medpair("check", "my set", cwd=tmp_path)
    assert bad.returncode == 1
    assert "case_000_0000.nii.gz" in bad.stdout
    assert "case_001.nii.gz" in bad.stdout
    assert "Traceback" not in bad.stderr


def test_phantom_and_preview(tmp_path: Path) -> None:
    words = ("--count", "3", "--size", "32,32,16", "--validation", "1")
    made = medpair("phantom", "vessels", "out", *words, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    folder = load_dataset(tmp_path / "out")
    assert [len(folder.cases[split]) for split in ("training", "validation")] == [2, 1]
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.nii.gz")}
    (tmp_path / "out" / "labelsTr" / "vessels_0001.nii.gz").unlink()
    medpair("phantom", "vessels", "out", *words, cwd=tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    drawn = medpair("preview", "out", "--output", "x.png", "--count", "2", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert min(Image.open(tmp_path / "x.png").size) > 50


def test_a_picture_of_the_cases_that_are_named(tmp_path: Path) -> None:
    tiny_dataset(tmp_path / "cohort", count=3, validation=0)
    names = [case.name for case in load_dataset(tmp_path / "cohort").split("training")]
    pictures = []
    for words in ([names[2], names[0]], [names[2]], [names[0]]):
        done = medpair("preview", "cohort", "--cases", ",".join(words), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        pictures.append(np.asarray(Image.open(tmp_path / "preview.png")))
    both, third, first = pictures
    assert np.array_equal(both, np.hstack([third, first]))
    assert not np.array_equal(third, first)
    wrong = medpair("preview", "cohort", "--cases", f"{names[0]},nobody", cwd=tmp_path)
    assert wrong.returncode == 1
    assert wrong.stderr.strip().endswith(
        f"dataset.json: training: expected cases named {names[0]}, nobody, "
        f"found no nobody among 3 such as {names[0]}"
    )


def test_the_version_is_one_line(tmp_path: Path) -> None:
    done = medpair("--version", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"medpair {__version__}\n"


def test_errors_are_one_line(tmp_path: Path) -> None:
    for words in (
        ("phantom", "lungs", "out"),
        ("phantom", "vessels", "out", "--size", "32,32"),
        ("preview", "nowhere"),
        ("preview",),
    ):
        result = medpair(*words, cwd=tmp_path)
        assert result.returncode == 1
        assert result.stderr.count("\n") == 1
        assert "expected" in result.stderr
        assert "found" in result.stderr


def test_a_misspelt_flag_is_refused_before_anything_runs(tmp_path: Path) -> None:
    words = ("--real", "a", "--synthetic", "b", "--outputdir", "xx")
    wrong = medpair("report", *words, cwd=tmp_path)
    assert wrong.returncode == 1
    line = "medpair: --outputdir: expected a flag of medpair report, found none; "
    assert wrong.stderr.strip() == line + "did you mean --output_dir?"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "flag", "found"),
    [
        (("check", "v", "--quick", "false"), "quick", "false"),
        (("check", "v", "--quick=0"), "quick", "0"),
        (("check", "v", "-q", "no"), "quick", "no"),
        (("check", "v", "None", "false"), "quick", "false"),
        (("check", "--quick", "v"), "quick", "v"),
        (("utility", "a", "b", "--plan", "true"), "plan", "true"),
        (("report", "a", "b", "--whole_images", "off"), "whole_images", "off"),
        (("export", "bids", "a", "b", "--skull_stripped", "false"), "skull_stripped", "false"),
        (("import", "bids", "a", "b", "--matched-only", "None"), "matched_only", "None"),
        (
            ("import", "nnunet", "a", "b", "--ignore_as_background", "false"),
            "ignore_as_background",
            "false",
        ),
    ],
)
def test_a_switch_is_true_or_false(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    flag: str,
    found: str,
) -> None:
    error = refusal(tmp_path, monkeypatch, capsys, words)
    assert error == f"medpair: --{flag}: expected True or False, found {found!r}"


@pytest.mark.parametrize(
    ("words", "quick"),
    [
        ((), False),
        (("--quick",), True),
        (("--noquick",), False),
        (("--quick", "True"), True),
        (("--quick=False",), False),
        (("-q",), True),
        (("None", "True"), True),
    ],
)
def test_a_switch_can_be_said_in_all_of_fires_ways(
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    quick: bool,
) -> None:
    seen: list[tuple[object, ...]] = []

    def check(folder: str, group: str | None, *, quick: bool, progress: bool) -> list[object]:
        seen.append((folder, group, quick))
        return []

    monkeypatch.setattr("medpair.data.check.check_dataset", check)
    assert verbs_as_called(monkeypatch, "check", "v", *words) == 0
    assert seen == [("v", None, quick)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("report", "--real", "--synthetic", "b"), "--real: expected a value, found none"),
        (("phantom", "vessels", "--output_dir"), "--output_dir: expected a value, found none"),
        (("phantom", "vessels", "v", "--count"), "--count: expected a value, found none"),
        (("check", "v", "--noquick=3"), "--noquick: expected no value, found '3'"),
        (("check", "v", "--nolabel_group"), "--nolabel_group: expected a flag of medpair check"),
    ],
)
def test_a_flag_without_its_value_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    line: str,
) -> None:
    assert refusal(tmp_path, monkeypatch, capsys, words).startswith(f"medpair: {line}")


# Folders whose names are Python literals, or have what is a comment there
NAMES = ("2024", "2024_05_01", "1e3", "0x10", "cohort#2", "a,b", "[a]", "True", "'q'", "(1, 2)")


@pytest.mark.parametrize("name", NAMES)
def test_names_are_taken_as_they_are_typed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
) -> None:
    """Positional and as flags, with and without an equals sign, and among any number of them."""
    monkeypatch.chdir(tmp_path)
    tiny_dataset(tmp_path / name, 1, validation=0)
    assert verbs_as_called(monkeypatch, "check", name) == 0, capsys.readouterr().out
    assert verbs_as_called(monkeypatch, "check", "--dataset", name) == 0
    assert verbs_as_called(monkeypatch, "check", f"--dataset={name}") == 0
    assert verbs_as_called(monkeypatch, "export", "bids", name, "out", "--suffix", "T1w") == 0
    assert verbs_as_called(monkeypatch, "import", "bids", "out", f"--output_dir=new {name}") == 0
    assert (tmp_path / f"new {name}" / "dataset.json").is_file()
    picture = f"{name}.png"
    assert verbs_as_called(monkeypatch, "preview", name, name, f"--output={picture}") == 0
    assert (tmp_path / picture).is_file()
    made = {path.name for path in tmp_path.iterdir()}
    assert made == {name, "out", f"new {name}", picture}


def test_cases_are_drawn_by_the_names_that_were_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = tiny_dataset(tmp_path / "set", 3, validation=0)
    for old, new in zip(("case_000", "case_001", "case_002"), ("0000", "2#1", "2"), strict=True):
        for path in (*dataset.glob(f"*/{old}*"),):
            path.rename(path.with_name(path.name.replace(old, new)))
        text = (dataset / "dataset.json").read_text()
        (dataset / "dataset.json").write_text(text.replace(old, new))
    drawn: list[Any] = []
    monkeypatch.setattr(
        "medpair.report.preview.preview_datasets", lambda *given: drawn.append(given[5])
    )
    for words in ("0000,2#1", "['0000', '2#1']", "2#1", "0000"):
        assert verbs_as_called(monkeypatch, "preview", "set", "--cases", words) == 0
    assert drawn == [["0000", "2#1"], ["0000", "2#1"], ["2#1"], ["0000"]]


def test_a_phantom_does_not_replace_another_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tiny_dataset(tmp_path / "mine", 1, validation=0)
    before = (dataset / "dataset.json").read_bytes()
    (tmp_path / "here").mkdir()
    words = ("phantom", "brain", str(dataset), "--count", "1")
    line = refusal(tmp_path / "here", monkeypatch, capsys, words)
    assert line.startswith(f"medpair: {dataset}: expected an empty folder or one with phantom.json")
    assert (dataset / "dataset.json").read_bytes() == before
    assert not (dataset / "phantom.json").exists()


def test_numbers_name_folders_that_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--count", "1", "--size", "32,32,16", "--spacing=2,2,2")
    assert verbs_as_called(monkeypatch, "phantom", "vessels", "2024", *words) == 0
    assert capsys.readouterr().out == "2024/dataset.json\n"
    (case,) = load_dataset(tmp_path / "2024").split("training")
    assert case.image is not None
    assert case.image.is_file()


def test_bundles_are_told_of_folders_in_words_that_are_no_literals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their runner reads its command line as Python, too."""
    told: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "medpair.chain.generate_medgen3d", lambda output, _, __, dataset, *more: told.append(output)
    )
    for name in ("2024", "cohort#2", "runs/2024", "brains"):
        assert verbs_as_called(monkeypatch, "generate", "medgen3d", "--output_dir", name) == 0
    assert told == [tmp_path / "2024", tmp_path / "cohort#2", Path("runs/2024"), Path("brains")]


def test_lists_and_options_are_read_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(
        "medpair.utility.run_utility", lambda *values: seen.update(enumerate(values)) or "table"
    )
    words = ("--seeds", "0,1,2", "--real_cases=10,20", "--protocols", "E2-1,E2-3", "--plan")
    options = ("--options", "{'batch_size': 2}", "--label_group", "2024")
    assert verbs_as_called(monkeypatch, "utility", "r", "s", *words, *options) == 0
    values = list(seen.values())
    for expected in ((0, 1, 2), (10, 20), {"batch_size": 2}, "2024", True):
        assert expected in values


def test_help_lists_what_a_verb_takes_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verbs_as_called(monkeypatch, "phantom", "--help") == 0
    page = capsys.readouterr().err
    assert "medpair phantom KIND OUTPUT_DIR <flags>" in page
    assert "metadata" not in page.lower()


@pytest.mark.parametrize(
    ("words", "of"),
    [
        (("generate", "medgen3d", "--help"), "generate FAMILY"),
        (("phantom", "vessels", "folder", "-h"), "phantom KIND"),
        (("report", "--real", "a", "--help", "--synthetic", "b"), "report REAL"),
        (("export", "nnunet", "a", "b", "--help"), "export nnunet DATASET"),
        (("check", "folder", "--unknown", "--help"), "check DATASET"),
    ],
)
def test_asked_for_help_nothing_is_run(
    words: tuple[str, ...],
    of: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verbs_as_called(monkeypatch, *words) == 0
    assert f"medpair {of}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("value", ["two", "1.5", "None"])
@pytest.mark.parametrize("joined", [True, False])
def test_a_count_is_a_whole_number(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    value: str,
    joined: bool,
) -> None:
    flag = (f"--count={value}",) if joined else ("--count", value)
    error = refusal(tmp_path, monkeypatch, capsys, ("phantom", "thorax", "new", *flag))
    assert error == f"medpair: --count: expected a whole number, found {value!r}"
