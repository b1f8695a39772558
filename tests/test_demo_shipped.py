"""The demo's first part: what the bundles' own weights make, and what is said of it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from medpair import demo_shipped
from medpair.chain import SEGMENTATION, STAGES, WGAN
from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, file_sha256, read_json, save_torch, write_json
from medpair.demo_shipped import find_shipped, plain_name, show_shipped, weights_of
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import BUNDLES
from tests.conftest import tiny_dataset


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    """Bundles with no weights but the hippocampus's: generator and segmenter."""
    root = tmp_path / "bundles"
    for bundle in (WGAN, SEGMENTATION, *STAGES):
        (root / bundle / "models").mkdir(parents=True)
        (root / bundle / "configs").symlink_to(BUNDLES / bundle / "configs")
    for bundle in (WGAN, SEGMENTATION):
        for name in ("model.pt", "model.json"):
            shutil.copy(BUNDLES / bundle / "models" / name, root / bundle / "models")
    return root


def hippocampi(folder: Path) -> Path:
    """Balls of a hippocampus's classes and size."""
    tiny_dataset(folder, 4, (35, 50, 36), validation=2)
    content = read_json(folder / "dataset.json")
    content["labels"] = {"background": 0, "anterior": 1, "posterior": 2}
    write_json(folder / "dataset.json", content)
    return folder


def test_pairs_of_the_shipped_weights_are_made_once_and_judged(
    bundles: Path,
    in_this_process: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(demo_shipped, "WGAN_PAIRS", 3)
    output = tmp_path / "demo"
    show_shipped(output, bundles)
    assert in_this_process == [f"generate {WGAN}", f"generate {SEGMENTATION}"]
    folder = output / "shipped" / "wgan_hippocampus_mr"
    assert errors_of(check_dataset(folder / "pairs")) == []
    assert len(load_dataset(folder / "pairs").split("training")) == 3
    assert np.asarray(Image.open(folder / "pairs.png")).std() > 10
    told = capsys.readouterr().out
    dice = read_json(folder / "scores" / "scores.json")["summary"]["volume"]["mean"]["dsc"]["mean"]
    assert dice > 0.7  # 0.85 over many
    assert f"finds the labels in the images: Dice {dice:.3f}" in told
    # nothing is said of likeness without real volumes; how to ask is
    assert f"--synthetic {folder / 'pairs'}" in told
    assert "--real COHORT" in told
    assert not (folder / "report").exists()

    # again, with real volumes: only the report is new, and of privacy it cannot speak
    monkeypatch.setattr(demo_shipped, "LEAST_FOR_REPORT", 3)
    in_this_process.clear()
    real = hippocampi(tmp_path / "real")
    show_shipped(output, bundles, real)
    assert in_this_process == []
    report = read_json(folder / "report" / "report.json")
    assert [report[name]["volumes"] for name in ("real", "synthetic", "holdout")] == [4, 3, 2]
    assert set(report["notes"]) == set(demo_shipped.WITHOUT_MEMBERS)
    told = capsys.readouterr().out
    assert "not examined" in told
    assert f"{real} is not known to be what it was trained on" in told

    # a cohort that the weights are recorded to have seen
    cases = load_dataset(real).split("training")
    data = {c.name: {"image": file_sha256(c.image)} for c in cases if c.image is not None}
    write_json(bundles / WGAN / "models" / "model.training.json", {"data": data})
    show_shipped(output, bundles, real)
    assert "privacy" in read_json(folder / "report" / "report.json")["notes"]
    assert "is not known" not in capsys.readouterr().out
    # other weights are not taken for those that made the pairs
    weights = bundles / WGAN / "models" / "model.pt"
    changed = torch.load(weights, weights_only=True)
    changed[next(iter(changed))].view(-1)[0] += 1
    save_torch(weights, changed)
    with pytest.raises(RuntimeError) as caught:
        show_shipped(output, bundles, real)
    assert "expected pairs of the same origin" in str(first_data_error(caught.value))


def test_who_was_trained_on_is_told_from_the_record(tmp_path: Path) -> None:
    real = tiny_dataset(tmp_path / "real", 3, (8, 6, 6), 1, validation=1)
    weights = tmp_path / "model.pt"
    assert not demo_shipped.trained_on(weights, real, "validation")
    folder = load_dataset(real)

    def record(*splits: str) -> None:
        cases = [case for split in splits for case in folder.split(split)]
        data = {c.name: {"image": file_sha256(c.image)} for c in cases if c.image is not None}
        write_json(tmp_path / "model.training.json", {"data": data})

    record("training")
    assert demo_shipped.trained_on(weights, real, "validation")
    record("validation")
    assert not demo_shipped.trained_on(weights, real, None)
    record("training", "validation")
    assert not demo_shipped.trained_on(weights, real, "validation")


def card(folder: Path, name: str, cohort: str, labels: list[str]) -> None:
    """Lay weights with a card into a bundle's models."""
    content = {
        "cohort": {
            "name": cohort,
            "labels": labels,
            "spacing": [1.0, 1.0, 1.0],
            "sizes": [[16, 14, 12]],
            "intensity": [0.0, 100.0],
        }
    }
    save_torch(folder / "models" / f"{name}.pt", {"w": torch.ones(1)})
    write_json(folder / "models" / f"{name}.json", content)


def test_every_generator_with_weights_is_found(bundles: Path, tmp_path: Path) -> None:
    labels = ["background", "class_1"]
    card(bundles / WGAN, "vessels", "tof", labels)
    save_torch(bundles / WGAN / "models" / "checkpoint.pt", {})  # no card, no generator's weights
    for stage in list(STAGES)[:2]:
        card(bundles / stage, "model", "my brains / ä", labels)
    found = find_shipped(tmp_path, bundles)
    assert [shipped.folder.name for shipped in found] == ["wgan_hippocampus_mr", "wgan_vessels"]
    assert found[1].weights == (bundles / WGAN / "models" / "vessels.pt",)
    card(bundles / list(STAGES)[2], "model", "my brains / ä", labels)
    last = find_shipped(tmp_path, bundles)[-1]
    assert last.folder == tmp_path / "medgen3d_my_brains_"
    assert [path.parents[1].name for path in last.weights] == list(STAGES)
    assert plain_name("wgan", "../../x\n") == "wgan_.._.._x_"
    assert demo_shipped.segmenter_of(bundles, found[0].cohort) == (
        bundles / SEGMENTATION / "models" / "model.pt"
    )
    assert demo_shipped.segmenter_of(bundles, found[1].cohort) is None
    assert weights_of(tmp_path / "nowhere") == []


def test_medgen3d_is_shown_stage_by_stage(
    bundles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("model.pt", "model.json"):
        (bundles / WGAN / "models" / name).unlink()
    for stage in STAGES:
        card(bundles / stage, "model", "brains", ["background", "class_1", "class_2"])
    asked: list[Any] = []

    def generate(folder: Path, *rest: Any) -> Path:
        asked.append((folder, *rest))
        for name in ("labels", "images", "pairs"):
            # a head's extent: only what is near the labels may be shown
            tiny_dataset(folder / name, 2, (24, 24, 24), spacing=(8.0, 8.0, 8.0), validation=0)
        return folder / "pairs"

    monkeypatch.setattr(demo_shipped, "generate_medgen3d", generate)
    real = tiny_dataset(tmp_path / "real", 3)
    for dataset in (None, real):
        show_shipped(tmp_path / "demo", bundles, dataset)
    folder = tmp_path / "demo" / "shipped" / "medgen3d_brains"
    assert asked == [(folder, bundles, demo_shipped.MEDGEN3D_PAIRS)]
    told = capsys.readouterr().out
    assert "2 pairs are too few for a report; make more, then:" in told
    assert str(folder / "pairs.png") in told
    picture = np.asarray(Image.open(folder / "pairs.png").convert("L"))
    # image and refined image side by side, most of each dark
    assert picture.shape[1] > 2 * 3 * 24
    assert (picture < 20).mean() > 0.5
    assert picture.std() > 10


def test_without_weights_the_first_part_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    show_shipped(tmp_path / "demo", tmp_path / "bundles")
    assert "no generator's weights there" in capsys.readouterr().out
    assert not (tmp_path / "demo").exists()


def test_a_dataset_of_other_classes_is_not_compared(bundles: Path, tmp_path: Path) -> None:
    cohort = find_shipped(tmp_path, bundles)[0].cohort
    assert demo_shipped.same_classes(hippocampi(tmp_path / "real"), cohort)
    other = tiny_dataset(tmp_path / "other")
    assert not demo_shipped.same_classes(other, cohort)
    # a merge of its labels may be what the weights were trained on
    content = read_json(other / "dataset.json")
    content["label_groups"] = {
        "two": {"1": {"name": "anterior", "values": [1]}, "2": {"name": "posterior", "values": [2]}}
    }
    write_json(other / "dataset.json", content)
    assert not demo_shipped.same_classes(other, cohort)
    assert demo_shipped.same_classes(other, replace(cohort, label_group="two"))
    with pytest.raises(DataError):
        demo_shipped.same_classes(tmp_path / "none", cohort)
