"""Names of folders, cases and classes with all that shells, formats and pages make something of."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from medpair.data.check import check_dataset
from medpair.data.files import read_json, write_json
from medpair.report.build import Cohorts, Step, build_report
from medpair.report.label_part import label_part
from medpair.report.pairs import open_pairs
from medpair.report.sections import label_section
from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
    run,
)
from tests.conftest import tiny_dataset

ODD = "ä 名 'q' \"d\" $(touch pwned) `touch pwned` ;&|<b> {{7*7}} %s %(x)s @a#b::c *?~ [1] \\n !"
CASE = ODD + " é"
# in a knob MONAI takes @a#b for a reference and writes @a::b
FOLDER = ODD.replace("#", "")


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset all of whose names are odd; nothing may appear beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tiny_dataset(tmp_path / f"set {FOLDER}", count=3, validation=1)
    content = read_json(folder / "dataset.json")
    content |= {"name": ODD, "licence": ODD, "description": ODD}
    content["labels"] = {"background": 0, f"first {ODD}": 1, f"second {ODD}": 2}
    for split in ("training", "validation"):
        for case in content[split]:
            for role, listed in case.items():
                path = Path(listed)
                new = path.with_name(path.name.replace("case", CASE))
                (folder / path).rename(folder / new)
                case[role] = str(new)
    write_json(folder / "dataset.json", content)
    return folder


def sound(folder: Path) -> list[str]:
    """Assert that a generated folder has no fault; return the names of its cases."""
    assert [str(f) for f in check_dataset(folder) if f.level == "error"] == []
    return sorted(path.stem for path in (folder / "provenance").iterdir())


def names(folder: Path) -> list[str]:
    return sorted(p.name.removesuffix(".nii.gz") for p in (folder / "labelsTr").iterdir())


def test_odd_names_go_through_generator_and_segmenter(odd: Path, tmp_path: Path) -> None:
    assert check_dataset(odd) == []
    out = tmp_path / f"out {FOLDER}"
    knobs: dict[str, Any] = {"dataset_dir": str(odd), "output_dir": str(out / "gan")}
    run("wgan_sn_mp", ["train", "compact"], **knobs, **{**SMALL_WGAN, "max_epochs": 1})
    knobs = {"ckpt_path": str(out / "gan" / "model.pt"), "output_dir": str(out / "pairs")}
    run("wgan_sn_mp", ["inference"], "infer", **knobs, num_samples=2)
    assert len(sound(out / "pairs")) == 2
    assert list(read_json(out / "pairs" / "dataset.json")["labels"]) == list(
        read_json(odd / "dataset.json")["labels"]
    )
    knobs = {"dataset_dir": [str(odd), str(out / "pairs")], "output_dir": str(out / "unet")}
    run("unet_segmentation", ["train"], **knobs, **{**SMALL_UNET, "max_epochs": 1})
    scored = {
        "ckpt_path": str(out / "unet" / "model.pt"),
        "dataset_dir": str(odd),
        "output_dir": str(out / "scores"),
        "split": "validation",
    }
    run("unet_segmentation", ["inference", "evaluate"], "infer", **scored)
    rows = json.loads((out / "scores" / "scores.json").read_text())["cases"]
    assert {row["case"] for row in rows} == {f"{CASE}_003"}
    assert {row["class"] for row in rows} == {f"first {ODD}", f"second {ODD}"}
    assert not list(tmp_path.rglob("pwned"))


def test_odd_names_go_through_medgen3d(odd: Path, tmp_path: Path) -> None:
    out = tmp_path / f"out {FOLDER}"

    def stage(bundle: str, small: dict[str, Any], source: Path, **knobs: Any) -> Path:
        """Train a stage on the odd cohort and run it on ``source``."""
        weights, made = out / bundle / "weights", out / bundle / "made"
        small = {**small, "max_epochs": 1, "iterations_per_epoch": 1}
        run(bundle, ["train"], dataset_dir=str(odd), output_dir=str(weights), **small)
        read = {} if bundle == "medgen3d_mcdpm" else {"dataset_dir": str(source)}
        knobs |= {"ckpt_path": str(weights / "model.pt"), "output_dir": str(made)}
        run(bundle, ["inference"], "infer", **read, **knobs)
        return made

    labels = stage("medgen3d_mcdpm", SMALL_MCDPM, odd, num_samples=1, steps=2)
    assert len(sound(labels)) == 1
    # images and pairs keep the names of the cases that they are made of
    pairs = stage("medgen3d_vid2vid", SMALL_VID2VID, odd)
    assert sound(pairs) == names(odd)
    refined = stage("medgen3d_semantic_refiner", SMALL_REFINER, pairs, refine_steps=1)
    assert sound(refined) == names(odd)
    assert not list(tmp_path.rglob("pwned"))


def test_odd_names_go_through_the_verbs(
    odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from medpair.cli import main

    for verb in (["check"], ["preview", "--output", str(tmp_path / f"{ODD}.png"), "--count", "1"]):
        # the runner of verbs reads what looks like a Python value as one, so not through a shell
        monkeypatch.setattr(sys, "argv", ["medpair", verb[0], str(odd), *verb[1:]])
        main()
    said = capsys.readouterr().out
    assert "no fault found" in said
    assert (tmp_path / f"{ODD}.png").stat().st_size > 1000
    cohorts = Cohorts(open_pairs(odd), open_pairs(odd), open_pairs(odd, "validation"))
    steps = {"labels": Step(lambda: label_part(cohorts.real, cohorts.synthetic), label_section)}
    page = build_report(tmp_path / f"report {ODD}", cohorts, steps, ODD, {}).read_text()
    assert "&amp;|&lt;b&gt; {{7*7}} %s" in page
    assert "|<b>" not in page
    assert not list(tmp_path.rglob("pwned"))
