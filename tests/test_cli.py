"""The command ``medpair``, as it is typed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from medpair import __version__
from medpair.data.dataset import load_dataset
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
