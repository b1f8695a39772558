"""The demo on a small dataset of one's own: every step, and starting it again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medpair import demo
from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, read_json, read_volume, write_volume
from medpair.evidence import verdict_line
from tests.bundles.conftest import BUNDLES
from tests.conftest import tiny_dataset
from tests.damage import edit_json


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {"max_epochs": 1, "iterations_per_epoch": 2, "val_interval": 1, "batch_size": 2}
    wgan = {**steps, "filters": 16, "critic_filters": 16, "latent_size": 8}
    for name, knobs in (("WGAN", wgan), ("UNET", {**steps, "channels": [4, 8, 8]})):
        monkeypatch.setattr(demo, f"DEMO_{name}", knobs)
        monkeypatch.setattr(demo, f"OWN_{name}", knobs)
    monkeypatch.setattr(demo, "DEMO_SYNTHETIC", 3)


@pytest.mark.usefixtures("small", "in_this_process")
def test_the_whole_job_on_ones_own_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tiny_dataset(tmp_path / "own", count=5, validation=0)
    output = tmp_path / "demo"
    first: list[Any] = []
    monkeypatch.setattr(demo, "show_shipped", lambda *words: first.append(words))
    demo.run_demo(output, BUNDLES, dataset)
    assert first == [(output, BUNDLES, dataset)]
    real = load_dataset(output / "real")
    assert [len(real.cases[name]) for name in ("training", "validation")] == [4, 1]
    assert errors_of(check_dataset(output / "synthetic")) == []
    results = read_json(output / "results.json")
    assert set(results) == {"volume: class_1", "volume: class_2", "volume: mean"}
    assert "dsc_synthetic" in results["volume: mean"]
    assert (output / "pairs.png").stat().st_size > 1000
    report = read_json(output / "report" / "report.json")
    assert [report[name]["volumes"] for name in ("real", "synthetic", "holdout")] == [4, 3, 1]
    told = capsys.readouterr().out
    assert "U-Net trained on        synthetic" in told
    assert told.splitlines()[-2] == verdict_line(output / "report" / "report.html")
    assert told.splitlines()[-1] == f"report: {output / 'report' / 'report.html'}"

    ran: list[str] = []
    monkeypatch.setattr(demo, "run_bundle", lambda bundle, *rest: ran.append(bundle.name))
    demo.run_demo(output, BUNDLES, dataset)
    assert ran == ["wgan_sn_mp"]  # generation looks for itself what is missing
    before = (output / "real" / "dataset.json").read_bytes()
    for other in (tiny_dataset(tmp_path / "other", validation=0, seed=9), None):
        with pytest.raises(DataError, match="earlier run"):
            demo.run_demo(output, BUNDLES, other)
    assert (output / "real" / "dataset.json").read_bytes() == before


def test_a_dataset_with_held_out_cases_is_used_where_it_is(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "own", validation=1)
    assert demo.own_cohort(dataset, tmp_path / "demo") == dataset
    assert not (tmp_path / "demo").exists()


def test_a_faulty_dataset_is_refused(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "own")
    next((dataset / "imagesTr").iterdir()).unlink()
    with pytest.raises(DataError, match="clean dataset"):
        demo.run_demo(tmp_path / "demo", BUNDLES, dataset)
    assert not (tmp_path / "demo").exists()  # another dataset may still have the folder


def test_a_demo_never_writes_into_a_dataset_of_its_users(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "work" / "real", count=3, validation=0)
    before = (dataset / "dataset.json").read_bytes()
    for own in (dataset, tiny_dataset(tmp_path / "own", count=3, validation=0), None):
        with pytest.raises(DataError, match=r"own cohort, found a dataset"):
            demo.run_demo(tmp_path / "work", BUNDLES, own)
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["real"]
    assert (dataset / "dataset.json").read_bytes() == before


def test_a_corrected_label_map_is_copied_again(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "own", count=3, validation=0)
    made = demo.own_cohort(dataset, tmp_path / "demo")
    label = next((dataset / "labelsTr").iterdir())
    volume = read_volume(label, None)
    write_volume(label, replace(volume, array=np.flip(volume.array, 0)), np.uint8)
    assert demo.own_cohort(dataset, tmp_path / "demo") == made
    assert (made / "labelsTr" / label.name).read_bytes() == label.read_bytes()


def test_partly_labelled_test_cases_are_not_what_is_held_out(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "own", count=4, validation=2)

    def partly(content: dict[str, Any]) -> None:
        first, second = content.pop("validation")
        content |= {"validation": [], "test": [first, {"image": second["image"]}]}

    edit_json(dataset, partly)
    made = demo.own_cohort(dataset, tmp_path / "demo")
    assert len(load_dataset(made).cases["validation"]) == 1


@pytest.mark.usefixtures("small", "in_this_process")
def test_both_families_on_simulated_thoraxes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    simulated = {"count": 3, "size": (24, 24, 16), "spacing": (16.0, 16.0, 18.0), "validation": 1}
    monkeypatch.setattr(demo, "DEMO_THORAX", demo.DEMO_THORAX | simulated)
    monkeypatch.setattr(demo, "DEMO_MEDGEN3D_SAMPLES", 2)
    monkeypatch.setattr(demo, "show_shipped", lambda *_: None)
    asked: dict[str, Any] = {}

    def generate(folder: Path, bundles: Path, num_samples: int, **knobs: Any) -> Path:
        asked.update(knobs, num_samples=num_samples, bundles=bundles)
        for name in ("labels", "images", "pairs"):
            tiny_dataset(folder / name, count=2, validation=0)
        return folder / "pairs"

    monkeypatch.setattr(demo, "generate_medgen3d", generate)
    demo.run_demo(tmp_path, BUNDLES, None)
    assert errors_of(check_dataset(tmp_path / "real")) == []
    assert len(load_dataset(tmp_path / "real").cases["validation"]) == 1
    assert asked["dataset"] == tmp_path / "real"
    assert asked["preset"] == "compact"
    organs = {name.removeprefix("volume: ") for name in read_json(tmp_path / "results.json")}
    assert organs >= {"lungs", "heart", "body", "mean"}
    picture = np.asarray(Image.open(tmp_path / "stages.png"))
    assert picture.std() > 10
    assert "a pair of the WGAN" in capsys.readouterr().out


def test_ones_own_cases_may_say_more_than_their_files(tmp_path: Path) -> None:
    dataset = tiny_dataset(tmp_path / "own", count=3, validation=0)
    (tmp_path / "beside.txt").write_text("nobody's business")
    more = {"roi": None, "age": 61, "patient": "P17", "note": "../beside.txt"}
    edit_json(dataset, lambda content: [case.update(more) for case in content["training"]])
    made = demo.own_cohort(dataset, tmp_path / "deep" / "demo")
    assert check_dataset(made) == []
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["demo"]
