"""The verb ``report``: what it refuses, and one report from command to page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from markupsafe import escape

from medpair import cli_evidence
from medpair.data.files import DataError, read_json
from medpair.data.phantoms.cohort import write_phantom_cohort
from medpair.evidence import (
    listed,
    run_report,
    verdict_line,
)
from medpair.report.verdict import summary
from tests.bundles.conftest import BUNDLES, SMALL_UNET, run
from tests.conftest import tiny_dataset
from tests.pretended_gpu import pretended_gpu


def test_parts_as_text_or_list() -> None:
    assert listed("labels,privacy") == listed("labels, privacy") == ["labels", "privacy"]
    assert listed(("labels", "privacy")) == ["labels", "privacy"]


def test_refusals_come_before_any_work(tmp_path: Path) -> None:
    real = tiny_dataset(tmp_path / "real", 2, (8, 6, 6), 1)
    other = tiny_dataset(tmp_path / "other", 2, (8, 6, 6), 2)
    out = tmp_path / "out"
    made = tiny_dataset(tmp_path / "made", 2, (8, 6, 6), 1)
    with pytest.raises(DataError, match=r"parts: expected some of .* found 'fidelty'"):
        run_report(real, made, out, parts="labels,fidelty")
    with pytest.raises(DataError, match="parts: usefulness: expected --utility FOLDER"):
        run_report(real, made, out, parts="usefulness")
    with pytest.raises(DataError, match="critic: expected --holdout FOLDER"):
        run_report(real, made, out, parts="privacy", critic=tmp_path / "checkpoint.pt")
    for wrong in (
        {"seed": -1},
        {"max_volumes": 0},
        {"segmenter_epochs": 0},
        {"device": "cud"},
        {"device": "cuda:9"},
    ):
        with pytest.raises(DataError, match=f"{next(iter(wrong))}: expected"):
            run_report(real, made, out, parts="labels", **wrong)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected a folder for the report, found a file"):
        run_report(real, made, tmp_path / "file")
    with pytest.raises(DataError, match=r"other.dataset\.json: labels: expected the real cohort's"):
        run_report(real, other, out, parts="labels")
    with pytest.raises(DataError, match=r"none\.pt: expected a file, found none there"):
        run_report(real, made, out, parts="labels", segmenter=tmp_path / "none.pt")
    with pytest.raises(DataError, match=r"utility\.json: expected a file, found none there"):
        run_report(real, made, out, parts="labels", utility=tmp_path)
    assert not out.exists()


def test_the_verb_ends_with_the_verdict_and_the_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = tiny_dataset(tmp_path / "real", 3, (12, 10, 8), 1)
    made = tiny_dataset(tmp_path / "made", 3, (12, 10, 8), 1, validation=0, seed=5)
    cli_evidence.report(str(real), str(made), str(tmp_path / "out"), parts="labels")
    said, path = capsys.readouterr().out.splitlines()
    page = tmp_path / "out" / "report.html"
    assert path == str(page)
    # one line, the three sentences that the page begins with
    sentences = summary(read_json(tmp_path / "out" / "report.json"))
    assert len(sentences) == 3
    assert said == verdict_line(page) == " ".join(sentences)
    text = page.read_text(encoding="utf-8")
    assert all(f"<p>{escape(sentence)}</p>" in text for sentence in sentences)
    assert "copies of training cases was not examined" in said


def test_networks_of_a_report_run_on_a_gpu_where_there_is_one(tmp_path: Path) -> None:
    grid: Any = {"size": (16, 16, 16), "spacing": (11.0, 12.0, 10.0)}
    write_phantom_cohort("brain", tmp_path / "real", 6, seed=0, validation=2, **grid)
    write_phantom_cohort("brain", tmp_path / "made", 4, seed=7, **grid)
    real, made = tmp_path / "real", tmp_path / "made"
    run(
        "unet_segmentation",
        ["train"],
        dataset_dir=str(real),
        output_dir=str(tmp_path / "segmenter"),
        **{**SMALL_UNET, "max_epochs": 1},
    )
    asked: Any = {
        "holdout": real,
        "parts": "alignment,privacy",
        "segmenter": tmp_path / "segmenter" / "model.pt",
    }
    run_report(real, made, tmp_path / "cpu", **asked)
    with pretended_gpu() as gpu:
        run_report(real, made, tmp_path / "gpu", **asked)
        assert gpu.transfers
    one, two = (read_json(tmp_path / device / "report.json") for device in ("cpu", "gpu"))
    assert one["alignment"] == two["alignment"]
    assert one["privacy"] == two["privacy"]


def command(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    base = [sys.executable, "-m", "medpair.cli", "report", "--bundles", str(BUNDLES)]
    base += ["--real", "real", "--synthetic", "synthetic", "--output_dir", "out", *words]
    return subprocess.run(base, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_whole_report_of_a_simulated_cohort(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid: Any = {"size": (24, 32, 32), "spacing": (7.0, 6.0, 5.0)}
    write_phantom_cohort("brain", tmp_path / "real", 11, seed=0, validation=3, **grid)
    write_phantom_cohort("brain", tmp_path / "synthetic", 4, seed=7, **grid)
    done = command(tmp_path, "--holdout", "real", "--segmenter_epochs", "1")
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "out"
    *_, said, path = done.stdout.splitlines()
    assert path == "out/report.html"
    report = read_json(out / "report.json")
    volumes = [report[key]["volumes"] for key in ("real", "synthetic", "holdout")]
    assert volumes == [8, 4, 3]
    assert report["holdout"]["split"] == "validation"
    assert "--segmenter_epochs 1" in report["command"]
    parts = ("labels", "fidelity", "diversity", "alignment", "privacy")
    assert list(report["notes"]) == list(parts)
    assert "segmenter_bottleneck" in report["fidelity"]["features"]
    assert 0 <= report["alignment"]["mean"]["holdout"]["mean"] <= 1
    assert "difference" in report["alignment"]
    assert {"alarm", "reasons"} <= set(report["privacy"])
    page = (out / "report.html").read_text(encoding="utf-8")
    assert said == verdict_line(out / "report.html")
    assert [page.index(f'id="{part}"') for part in parts] == sorted(
        page.index(f'id="{part}"') for part in parts
    )
    assert "simulated_brain" in page
    assert "## Privacy" in (out / "datasheet.md").read_text(encoding="utf-8")
    assert len(list(out.glob("segmenter/*/model.pt"))) == 1
    # again: nothing is trained or measured anew
    before = {path: path.stat().st_mtime_ns for path in (out / "parts").rglob("*")}
    monkeypatch.chdir(tmp_path)
    run_report("real", "synthetic", "out", "real", segmenter_epochs=1, bundles=BUNDLES)
    assert {path: path.stat().st_mtime_ns for path in (out / "parts").rglob("*")} == before
