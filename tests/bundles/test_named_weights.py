"""Weights of any name, their cards beside them, and how a training's become those that ship."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from medpair.data.card import card_path
from medpair.data.cohort import read_card
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, file_sha256, load_torch, read_json, save_torch, write_json
from medpair.data.segmentation import read_segmenter_card
from medpair.engines.refusals import first_data_error
from medpair.engines.starting_weights import starting_card
from medpair.report.features_segmenter import SegmenterBottleneck
from medpair.sharing.weights import MOST_METRICS, half, halved, seconds, thinned, training_record
from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_WGAN,
    run,
    volumes,
    workflow,
)
from tests.conftest import tiny_dataset


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained WGAN, one with a segmenter."""
    root = tmp_path_factory.mktemp("trained")
    small = {"dataset_dir": dataset, "max_epochs": 1, "iterations_per_epoch": 3}
    run("wgan_sn_mp", ["train", "compact"], **SMALL_WGAN | small, output_dir=str(root / "wgan"))
    run("unet_segmentation", ["train"], **SMALL_UNET | small, output_dir=str(root / "unet"))
    return root


def generated(weights: Path, output: Path) -> dict[str, np.ndarray]:
    run(
        "wgan_sn_mp",
        ["inference"],
        "infer",
        ckpt_path=str(weights),
        output_dir=str(output),
        num_samples=2,
    )
    return volumes(output)


def test_named_weights_have_cards_of_their_own(trained: Path, dataset: str, tmp_path: Path) -> None:
    """Beside a model.pt of another spacing, the card that counts is the one of the same name."""
    models = tmp_path / "models"
    named = half(trained / "wgan" / "model.pt", models / "vessels.v2.pt")
    shutil.copy(trained / "wgan" / "model.pt", models)
    other = read_json(trained / "wgan" / "model.json")
    other["cohort"]["spacing"] = [5.0, 5.0, 5.0]
    write_json(models / "model.json", other)
    assert read_card(named)["cohort"]["spacing"] == [1.0, 1.0, 1.0]
    made = generated(named, tmp_path / "named")
    (case, _) = load_dataset(tmp_path / "named").split("training")
    record = read_json(tmp_path / "named" / "provenance" / f"{case.name}.json")
    assert file_sha256(named) in json.dumps(record)
    # half precision makes the same pairs, but for its rounding
    plain = generated(trained / "wgan" / "model.pt", tmp_path / "plain")
    assert made.keys() == plain.keys()
    low, high = other["cohort"]["intensity"]
    for name, one in made.items():
        two = plain[name]
        if "images" in name:
            off = np.abs(one.astype(float) - two.astype(float)).max()
            assert off < 0.01 * (high - low)
            assert np.ptp(two) > 0
        else:
            assert (one != two).mean() < 0.01
    # a training starts from them, too
    assert starting_card(named, "pair_generator") == read_json(models / "vessels.v2.json")
    run(
        "wgan_sn_mp",
        ["train", "finetune"],
        ckpt_path=str(named),
        dataset_dir=dataset,
        output_dir=str(tmp_path / "tuned"),
        max_epochs=1,
        iterations_per_epoch=1,
        batch_size=2,
    )
    tuned = read_json(tmp_path / "tuned" / "model.json")
    assert tuned["generator"]["filters"] == SMALL_WGAN["filters"]


def test_named_segmenters_predict_and_judge(trained: Path, dataset: str, tmp_path: Path) -> None:
    named = half(trained / "unet" / "model.pt", tmp_path / "brain.pt")
    write_json(tmp_path / "model.json", {"task": "another's"})
    run(
        "unet_segmentation",
        ["inference"],
        "infer",
        ckpt_path=str(named),
        dataset_dir=dataset,
        split="validation",
        output_dir=str(tmp_path / "out"),
    )
    assert len(volumes(tmp_path / "out")) == 2
    assert SegmenterBottleneck(named).labels == ("background", "class_1", "class_2")
    assert starting_card(named, "segmenter")["segmenter"]["num_classes"] == 3


def test_model_json_is_the_card_of_renamed_weights(trained: Path, tmp_path: Path) -> None:
    """But not where a model.pt lies: then it is that one's."""
    for name in ("model.pt", "model.json"):
        shutil.copy(trained / "unet" / name, tmp_path)
    best = (tmp_path / "model.pt").rename(tmp_path / "best.pt")
    assert card_path(best) == tmp_path / "model.json"
    assert read_segmenter_card(best)["task"]["labels"][1:] == ["class_1", "class_2"]
    assert starting_card(best, "segmenter")["task"]
    shutil.copy(best, tmp_path / "model.pt")
    expected = f"{tmp_path / 'best.json'}: expected a JSON file, found nothing there"
    for read in (read_segmenter_card, lambda path: starting_card(path, "segmenter")):
        with pytest.raises(DataError, match=f"^{re.escape(expected)}$"):
            read(best)
    (tmp_path / "model.json").unlink()
    with pytest.raises(DataError, match=r"model\.json: expected a JSON file, found nothing there"):
        read_segmenter_card(tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"none\.pt: expected weights with a none\.json beside"):
        read_card(tmp_path / "none.pt")


def test_half_precision_keeps_counters_and_refuses_what_it_cannot_hold() -> None:
    state = {
        "weight": torch.tensor([1.0, -0.1, 65504.0]),
        "count": torch.tensor(2**40),
        "short": torch.tensor([0.5], dtype=torch.bfloat16),
        "table": torch.tensor([1e300], dtype=torch.float64),
    }
    small = halved(state)
    assert {key: value.dtype for key, value in small.items()} == {
        "weight": torch.float16,
        "count": torch.int64,
        "short": torch.float16,
        "table": torch.float64,
    }
    assert small["count"] == 2**40
    torch.testing.assert_close(small["weight"].float(), state["weight"], rtol=2**-11, atol=0)
    with pytest.raises(DataError, match=r"w\.pt: weight: expected values up to 65504, found 70000"):
        halved({"weight": torch.tensor([1.0, -7e4])}, "w.pt")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(DataError, match="weight: expected finite weights"):
            halved({"weight": torch.tensor([bad])})
    with pytest.raises(DataError, match=r"w\.pt: epoch: expected a tensor, found .* type int"):
        halved({"weight": torch.ones(1), "epoch": 3}, "w.pt")


def test_only_a_trained_model_becomes_weights(trained: Path, tmp_path: Path) -> None:
    model = shutil.copy(trained / "unet" / "model.pt", tmp_path)
    card = read_json(trained / "unet" / "model.json")
    write_json(tmp_path / "model.json", {"cohort": {}})
    with pytest.raises(DataError, match="expected the card of a trained model"):
        half(model, tmp_path / "out" / "x.pt")
    card["segmenter"]["channels"] = [8, 8, 16, 16]
    write_json(tmp_path / "model.json", card)
    with pytest.raises(DataError, match="expected the network whose weights lie beside it"):
        half(model, tmp_path / "out" / "x.pt")
    with pytest.raises(DataError, match=r"x\.bin: expected a name that ends in \.pt"):
        half(model, tmp_path / "x.bin")
    with pytest.raises(DataError, match="expected another file than the training's"):
        half(model, model)
    with pytest.raises(DataError, match=r"model\.json: sampling: expected none for these weights"):
        half(trained / "unet" / "model.pt", tmp_path / "out" / "x.pt", {"evidence": 0.85})
    with pytest.raises(DataError, match=r"^sampling: expected an object, found 0\.85$"):
        half(trained / "unet" / "model.pt", tmp_path / "out" / "x.pt", 0.85)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("bundle", "knobs", "good", "bad", "message"),
    [
        (
            "medgen3d_mcdpm",
            {**SMALL_MCDPM, "size_conditioning": True},
            {"evidence": 0.85, "size_offsets": {"class_1": 0.5}},
            {"size_offsets": {"class_9": 0.5}},
            r"size_offsets: expected classes among \['class_1', 'class_2'\], found 'class_9'",
        ),
        (
            "medgen3d_mcdpm",
            SMALL_MCDPM,
            {"evidence": 0.85},
            {"evidense": 0.85},
            "unexpected keyword argument 'evidense'",
        ),
        (
            "medgen3d_semantic_refiner",
            SMALL_REFINER,
            {"refine_steps": 3, "grid_steps": 30, "combine": "alternate"},
            {"refine_steps": 3.5},
            "refine_steps: expected a whole number, found 3.5",
        ),
    ],
)
def test_how_weights_are_sampled_from_is_read_before_it_is_said(
    bundle: str,
    knobs: dict[str, Any],
    good: dict[str, Any],
    bad: dict[str, Any],
    message: str,
    dataset: str,
    tmp_path: Path,
) -> None:
    """When weights are shipped, and when a training is told it: not after it, but at its start."""
    short = {"max_epochs": 1, "iterations_per_epoch": 1, "dataset_dir": dataset, **knobs}
    run(bundle, ["train"], **short, output_dir=str(tmp_path / "run"))
    model = tmp_path / "run" / "model.pt"
    named = half(model, tmp_path / "x.pt", good)
    assert read_json(named.with_suffix(".json"))["sampling"] == good
    # what is not said again stays as it was
    changed = {key: good[key] for key in list(good)[-1:]}
    assert (
        read_json(half(named, tmp_path / "z.pt", changed).with_suffix(".json"))["sampling"] == good
    )
    with pytest.raises(DataError, match=rf"model\.json: sampling: .*{message}"):
        half(model, tmp_path / "y.pt", bad)
    assert not (tmp_path / "y.pt").exists()
    flow = workflow(bundle, ["train"], **short, output_dir=str(tmp_path / "two"), sampling=bad)
    with pytest.raises(RuntimeError) as caught:
        flow.run()
    assert re.search(f"^--sampling: sampling: .*{message}", str(first_data_error(caught.value)))
    assert not (tmp_path / "two" / "metrics.jsonl").exists()


def test_the_record_says_how_weights_were_trained(
    trained: Path, dataset: str, tmp_path: Path
) -> None:
    said = "python -m monai.bundle run --max_epochs 1"
    out = tmp_path / "models" / "tiny.pt"
    words = [str(trained / "wgan" / "model.pt"), str(out), "--dataset_dir", dataset]
    command = [sys.executable, "-m", "medpair.sharing.weights", *words, "--command", said]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = ["tiny.json", "tiny.pt", "tiny.training.json"]
    assert sorted(path.name for path in out.parent.iterdir()) == names
    assert all(name in done.stdout for name in names)
    record = read_json(out.with_suffix(".training.json"))
    assert record["sha256"] == file_sha256(out)
    assert record["single_precision_sha256"] == file_sha256(trained / "wgan" / "model.pt")
    assert (record["command"], record["seed"], record["steps"]) == (said, 3, 3)
    assert record["settings"]["filters"] == SMALL_WGAN["filters"]
    assert "PyTorch" in record["machine"]
    logged = [json.loads(x) for x in (trained / "wgan" / "metrics.jsonl").read_text().splitlines()]
    took = sum(line["seconds_per_iteration"] for line in logged)  # a line for every step
    assert record["hours"] == pytest.approx(took / 3600, abs=0.0005)
    assert [line["iteration"] for line in record["metrics"]] == [1, 2, 3]
    assert record["metrics"][2]["loss"] == pytest.approx(logged[2]["loss"], rel=1e-4)
    cases = load_dataset(dataset).split("training")
    assert record["data"] == {
        case.name: {
            role: file_sha256(path)
            for role, path in (("image", case.image), ("label", case.label))
            if path is not None
        }
        for case in cases
    }
    wrong = subprocess.run([*command, "--machin", "x"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 1
    assert "did you mean --machine?" in wrong.stderr


def test_a_record_of_other_data_is_refused(trained: Path, dataset: str, tmp_path: Path) -> None:
    run_folder = trained / "wgan"
    changed = tmp_path / "changed"
    shutil.copytree(dataset, changed)
    cases = load_dataset(changed).split("training")
    assert cases[1].label is not None
    shutil.copy(cases[0].label, cases[1].label)
    fewer = tiny_dataset(tmp_path / "fewer", count=2)
    for folder, first in ((changed, cases[1].name), (fewer, "case_000")):
        with pytest.raises(DataError, match=f"expected the 6 cases .* found others .*: {first}$"):
            training_record(run_folder, str(folder), "command")
    with pytest.raises(DataError, match="command: expected the command line"):
        training_record(run_folder, dataset, " ")
    with pytest.raises(DataError, match=r"checkpoint\.pt: expected a checkpoint, found nothing"):
        training_record(tmp_path, dataset, "command")
    save_torch(tmp_path / "checkpoint.pt", load_torch(run_folder / "model.pt"))
    with pytest.raises(DataError, match="expected a training's checkpoint that knows its cases"):
        training_record(tmp_path, dataset, "command")
    shutil.copy(run_folder / "checkpoint.pt", tmp_path)
    with pytest.raises(DataError, match=r"metrics\.jsonl: expected a training's metrics"):
        training_record(tmp_path, dataset, "command")


def test_metrics_are_thinned_evenly() -> None:
    records = [
        {"iteration": 10 * k, "seconds_per_iteration": 0.5, "loss": 1 / k} for k in range(1, 1001)
    ]
    kept = thinned(records)
    assert len(kept) == MOST_METRICS == 200
    assert (kept[0]["iteration"], kept[-1]["iteration"]) == (10, 10_000)
    assert set(np.diff([line["iteration"] for line in kept])) == {50, 60}
    assert kept[2]["loss"] == float(f"{1 / (kept[2]['iteration'] / 10):.5g}")
    assert thinned(records[:3]) == [
        {**line, "loss": float(f"{line['loss']:.5g}")} for line in records[:3]
    ]
    assert thinned([]) == []
    assert seconds(records) == pytest.approx(5000)
