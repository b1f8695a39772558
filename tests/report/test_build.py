"""Parts that are kept, run again, or run alone; and the files of a report."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import binary_dilation
from tests.conftest import tiny_dataset

from medpair.data.files import DataError, read_json, write_json
from medpair.report.build import Cohorts, Step, build_report
from medpair.report.pairs import open_pairs
from medpair.report.part import Part
from medpair.report.plots import panels, to_png
from medpair.report.sections import Section, Table


@pytest.fixture
def cohorts(tmp_path):
    real = tiny_dataset(tmp_path / "real", 3, (12, 8, 8), validation=2)
    synthetic = tiny_dataset(tmp_path / "synthetic", 2, (12, 8, 8), seed=1)
    return Cohorts(open_pairs(real), open_pairs(synthetic), open_pairs(real, "validation"))


class Counting:
    """Parts that count how often each was run."""

    def __init__(self) -> None:
        self.runs: dict[str, int] = {}
        self.failing = ""

    def step(self, name: str, **settings) -> Step:
        def run() -> Part:
            if name == self.failing:
                raise KeyboardInterrupt
            self.runs[name] = self.runs.get(name, 0) + 1
            return Part({"number": 1.5}, {"plot": to_png(panels(1)[0])}, [f"a note of {name}"])

        def section(numbers) -> Section:
            table = Table("numbers", ("", "value"), [("number", str(numbers["number"]))])
            figures = [("plot", f"plot of {name}")]
            return Section(name, f"Title of {name}", ["Lead."], figures, [table])

        return Step(run, section, settings)

    def steps(self, **settings) -> dict[str, Step]:
        return {name: self.step(name, **settings.get(name, {})) for name in ("one", "two")}


@pytest.fixture
def counting():
    return Counting()


def build(output: Path, cohorts: Cohorts, steps, **settings) -> Path:
    return build_report(output, cohorts, steps, "medpair report", {"seed": 0, **settings})


def test_report_is_complete(tmp_path, cohorts, counting):
    page = build(tmp_path / "out", cohorts, counting.steps())
    assert page == tmp_path / "out" / "report.html"
    report = read_json(tmp_path / "out" / "report.json")
    assert report["one"] == report["two"] == {"number": 1.5}
    assert report["notes"] == {"one": ["a note of one"], "two": ["a note of two"]}
    assert (report["command"], report["settings"]) == ("medpair report", {"seed": 0})
    counts = [report[key]["volumes"] for key in ("real", "synthetic", "holdout")]
    assert counts == [3, 2, 2]
    assert report["real"]["labels"] == ["class_1", "class_2"]
    assert report["versions"]["torch"]
    text = page.read_text()
    for expected in ("Title of one", "plot of two", "a note of two", "1.5", "medpair report"):
        assert expected in text
    assert text.count("data:image/png;base64,") == 3
    sheet = (tmp_path / "out" / "datasheet.md").read_text()
    assert "a note of one" in sheet
    assert "2 pairs" in sheet
    assert "not examined: do not share" in sheet


def heads(folder: Path) -> Path:
    """Write two cohorts of 128 mm that differ only in what is further than 6 mm from the labels."""
    for name in ("one", "two"):
        tiny_dataset(folder / name, 2, (16, 16, 16), spacing=(8.0, 8.0, 8.0), validation=0)
    for path in sorted((folder / "two" / "imagesTr").iterdir()):
        image = nib.load(path)
        label = nib.load(str(path).replace("imagesTr", "labelsTr").replace("_0000.", "."))
        values = np.asarray(image.dataobj).copy()
        far = ~binary_dilation(np.asarray(label.dataobj) > 0)
        # the same values elsewhere, so that the darkest stays the same
        values[far] = values[far][::-1]
        nib.save(nib.Nifti1Image(values, image.affine, image.header), path)
    return folder


def test_no_head_reaches_the_page_unless_asked_for(tmp_path, counting):
    folder = heads(tmp_path)

    def pictures(name: str, whole: bool) -> list[str]:
        pairs = open_pairs(folder / name)
        output = tmp_path / f"report_{name}_{whole}"
        page = build_report(
            output, Cohorts(pairs, pairs, None), counting.steps(), "medpair report", {}, whole
        )
        return re.findall(r"data:image/png;base64,([^\"']+)", page.read_text())

    assert pictures("one", False) == pictures("two", False)
    assert pictures("one", True) != pictures("two", True)
    assert pictures("one", True) != pictures("one", False)


def test_finished_parts_are_kept(tmp_path, cohorts, counting):
    build(tmp_path / "out", cohorts, counting.steps())
    first = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    build(tmp_path / "out", cohorts, counting.steps())
    assert counting.runs == {"one": 1, "two": 1}
    assert {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()} == first


@pytest.mark.fault(40)
@pytest.mark.parametrize("name", ["part.json", "plot.png"])
@pytest.mark.parametrize("left", [0, 20])
def test_a_damaged_part_is_built_again(tmp_path, cohorts, counting, caplog, name, left):
    build(tmp_path / "out", cohorts, counting.steps())
    whole = {p: p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    (path,) = (p for p in whole if p.name == name and "two" in str(p))
    path.write_bytes(whole[path][:left])
    build(tmp_path / "out", cohorts, counting.steps())
    assert counting.runs == {"one": 1, "two": 2}
    assert path.read_bytes() == whole[path]
    assert str(path) in caplog.text


def test_a_changed_setting_runs_what_depends_on_it(tmp_path, cohorts, counting):
    build(tmp_path / "out", cohorts, counting.steps())
    build(tmp_path / "out", cohorts, counting.steps(two={"weights": "b"}))
    assert counting.runs == {"one": 1, "two": 2}
    build(tmp_path / "out", cohorts, counting.steps(two={"weights": "b"}), seed=1)
    assert counting.runs == {"one": 2, "two": 3}


@pytest.mark.parametrize("role", ["real", "synthetic", "holdout"])
def test_a_changed_file_runs_all_again(tmp_path, cohorts, counting, role):
    build(tmp_path / "out", cohorts, counting.steps())
    label = getattr(cohorts, role).cases[0].label
    os.utime(label, ns=(0, 12345))
    build(tmp_path / "out", cohorts, counting.steps())
    assert counting.runs == {"one": 2, "two": 2}


def test_other_values_of_the_same_classes_run_all_again(tmp_path, cohorts, counting):
    build(tmp_path / "out", cohorts, counting.steps())
    folder = cohorts.real.folder.root
    content = read_json(folder / "dataset.json")
    groups = {"swapped": {"1": {"name": "class_1", "values": [2]}}}
    groups["swapped"]["2"] = {"name": "class_2", "values": [1]}
    write_json(folder / "dataset.json", content | {"label_groups": groups})
    build(
        tmp_path / "out",
        replace(cohorts, real=open_pairs(folder, label_group="swapped")),
        counting.steps(),
    )
    assert counting.runs == {"one": 2, "two": 2}


def test_an_interruption_loses_no_finished_part(tmp_path, cohorts, counting):
    counting.failing = "two"
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "out", cohorts, counting.steps())
    assert not (tmp_path / "out" / "report.html").exists()
    counting.failing = ""
    build(tmp_path / "out", cohorts, counting.steps())
    assert counting.runs == {"one": 1, "two": 1}
    other = Counting()
    build(tmp_path / "whole", cohorts, other.steps())
    for name in ("report.html", "report.json", "datasheet.md"):
        one, two = (tmp_path / folder / name for folder in ("out", "whole"))
        assert one.read_bytes() == two.read_bytes()


def test_half_a_part_is_run_again(tmp_path, cohorts, counting):
    build(tmp_path / "out", cohorts, counting.steps())
    (tmp_path / "out" / "parts" / "one" / "plot.png").unlink()
    (tmp_path / "out" / "parts" / "two" / "part.json").write_text("{}")
    build(tmp_path / "out", cohorts, counting.steps())
    assert counting.runs == {"one": 2, "two": 2}


def test_a_part_alone(tmp_path, cohorts, counting):
    build(tmp_path / "out", cohorts, {"two": counting.step("two")})
    report = read_json(tmp_path / "out" / "report.json")
    assert "one" not in report
    assert "Title of one" not in (tmp_path / "out" / "report.html").read_text()
    build(tmp_path / "out", cohorts, counting.steps())
    assert counting.runs == {"one": 1, "two": 1}


def test_a_failed_page_leaves_the_old_one(tmp_path, cohorts, counting, monkeypatch):
    page = build(tmp_path / "out", cohorts, counting.steps())
    before = page.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("medpair.data.files.os.replace", full)
    with pytest.raises(OSError, match="no space"):
        build(tmp_path / "out", cohorts, counting.steps(), seed=1)
    assert page.read_bytes() == before
    left = [path.name for path in (tmp_path / "out").rglob("*") if path.name.startswith(".")]
    assert left == []


def test_cohorts_that_cannot_be_compared_are_refused(tmp_path, cohorts, counting):
    other = tiny_dataset(tmp_path / "other", 2, (12, 8, 8), num_labels=1)
    with pytest.raises(DataError, match=r"other.dataset\.json: labels: expected the real cohort's"):
        build(tmp_path / "out", replace(cohorts, synthetic=open_pairs(other)), counting.steps())
    cohorts.synthetic.cases[1].image.unlink()
    with pytest.raises(DataError, match=r"case_001_0000\.nii\.gz: expected a NIfTI volume"):
        build(tmp_path / "out", cohorts, counting.steps())
    assert counting.runs == {}


def test_without_holdout_the_page_says_so(tmp_path, cohorts, counting):
    build(tmp_path / "out", replace(cohorts, holdout=None), counting.steps())
    assert read_json(tmp_path / "out" / "report.json")["holdout"] is None
    assert "no held-out real cases" in (tmp_path / "out" / "datasheet.md").read_text()
    assert "it has not seen" not in (tmp_path / "out" / "report.html").read_text()
