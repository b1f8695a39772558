"""The segmentation bundle through MONAI's runner: networks, resuming, scores, several folders."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from scipy.ndimage import distance_transform_edt, label

from medpair.data.check import require_valid
from medpair.data.dataset import load_dataset
from medpair.data.files import read_json, read_volume, write_json
from medpair.data.segmentation import load_items
from medpair.engines.refusals import first_data_error
from medpair.engines.scoring import CaseScores
from tests.bundles.conftest import SMALL_UNET, run, workflow
from tests.conftest import tiny_dataset

PRESETS = {"unet3d": [], "unet2d": ["unet2d"], "unetr": ["unetr"], "swin_unetr": ["swin_unetr"]}
Train = Callable[[str], Path]


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Return a function that trains a network once and gives the folder of its weights."""
    done: dict[str, Path] = {}

    def train(name: str) -> Path:
        if name not in done:
            folder = tmp_path_factory.mktemp("unet") / name
            small = {**SMALL_UNET, **({"max_epochs": 1} if name != "unet3d" else {})}
            small |= {"patch_size": [64, 32, 32]} if name == "swin_unetr" else {}
            run(
                "unet_segmentation",
                ["train", *PRESETS[name]],
                dataset_dir=dataset,
                output_dir=str(folder),
                **small,
            )
            done[name] = folder
        return done[name]

    return train


def evaluate(
    folder: Path, dataset: str | list[str], output: Path, **overrides: Any
) -> dict[str, Any]:
    run(
        "unet_segmentation",
        ["inference", "evaluate"],
        "infer",
        ckpt_path=str(folder / "model.pt"),
        dataset_dir=dataset,
        output_dir=str(output),
        **overrides,
    )
    return read_json(output / "scores.json")


def predict(folder: Path, dataset: str, output: Path, **overrides: Any) -> None:
    run(
        "unet_segmentation",
        ["inference"],
        "infer",
        ckpt_path=str(folder / "model.pt"),
        dataset_dir=dataset,
        output_dir=str(output),
        split="validation",
        **overrides,
    )


@pytest.mark.parametrize("name", PRESETS)
def test_network_trains_and_is_scored_without_naming_it_again(
    name: str, trained: Train, dataset: str, tmp_path: Path
) -> None:
    folder = trained(name)
    assert read_json(folder / "model.json")["segmenter"]["architecture"] == name
    scores = evaluate(folder, dataset, tmp_path)
    assert scores["info"]["architecture"] == name
    assert len(scores["cases"]) == 2 * 2 * 2  # cases, regions, classes
    assert (folder / "validation.jsonl").exists()


def test_scores_are_those_of_the_predicted_label_maps(
    trained: Train, dataset: str, tmp_path: Path
) -> None:
    """Predict to files, score them independently on the stored grids, compare with the table."""
    folder = trained("unet3d")
    scores = evaluate(folder, dataset, tmp_path / "scores")
    predict(folder, dataset, tmp_path / "labels")
    rows = {(row["case"], row["region"], row["class"]): row for row in scores["cases"]}
    for case in load_dataset(dataset).split("validation"):
        predicted = nib.load(tmp_path / "labels" / "labels" / f"{case.name}.nii.gz")
        stored = nib.load(case.label)
        assert predicted.shape == stored.shape
        np.testing.assert_allclose(predicted.affine, stored.affine, atol=1e-5)
        for region in ("volume", "roi"):
            inside = np.asarray(nib.load(case.roi).dataobj) > 0 if region == "roi" else True
            for value in (1, 2):
                s = (np.asarray(predicted.dataobj) == value) & inside
                g = (np.asarray(stored.dataobj) == value) & inside
                row = rows[case.name, region, f"class_{value}"]
                assert row["truth_voxels"] == g.sum()
                assert row["predicted_voxels"] == s.sum()
                if s.any():
                    dsc = 2 * (s & g).sum() / (s.sum() + g.sum())
                    ends = distance_transform_edt(~s)[g].sum() + distance_transform_edt(~g)[s].sum()
                    assert row["dsc"] == pytest.approx(dsc, abs=1e-6)
                    assert row["bahd_voxel"] == pytest.approx(0.5 * ends / g.sum(), rel=1e-6)


def test_of_a_prediction_the_largest_piece_can_be_kept(
    trained: Train, dataset: str, tmp_path: Path
) -> None:
    """Of files as of scores; this network is hardly trained: its predictions are in pieces."""
    folder, counts = trained("unet3d"), {}
    for pieces in (0, 1):
        out = tmp_path / str(pieces)
        predict(folder, dataset, out, keep_pieces=pieces)
        maps = [np.asarray(nib.load(f).dataobj) for f in sorted(out.glob("labels/*.nii.gz"))]
        counts[pieces] = [label(found > 0, np.ones((3, 3, 3)))[1] for found in maps]
        scores = evaluate(folder, dataset, tmp_path / f"scores_{pieces}", keep_pieces=pieces)
        assert scores["info"]["keep_pieces"] == pieces
        of_classes = [row for row in scores["cases"] if row["region"] == "volume"]
        assert sum(row["predicted_voxels"] for row in of_classes) == sum(
            int((found > 0).sum()) for found in maps
        )
    assert counts[1] == [1] * len(counts[1])
    assert max(counts[0]) > 1


def test_the_tables_agree(trained: Train, dataset: str, tmp_path: Path) -> None:
    scores = evaluate(trained("unet3d"), dataset, tmp_path)
    with open(tmp_path / "scores.csv", encoding="utf-8") as handle:
        lines = list(csv.DictReader(handle))
    assert len(lines) == len(scores["cases"])
    for line, row in zip(lines, scores["cases"], strict=True):
        assert float(line["dsc"]) == row["dsc"]
        assert line["class"] == row["class"]
    chosen = [r["dsc"] for r in scores["cases"] if (r["region"], r["class"]) == ("roi", "class_1")]
    summary = scores["summary"]["roi"]["class_1"]["dsc"]
    assert summary["mean"] == pytest.approx(np.mean(chosen))
    assert summary["n"] == 2
    empty = sum(r["predicted_voxels"] == 0 for r in scores["cases"] if r["region"] == "volume")
    assert scores["empty"]["volume"] == {"truth": 0, "prediction": empty}


def test_training_split_in_two_equals_training_in_one(dataset: str, tmp_path: Path) -> None:
    """The second part is cut from a whole run, since the learning rate knows its length."""
    one, two = tmp_path / "one", tmp_path / "two"
    common = {"dataset_dir": dataset, **SMALL_UNET}
    run("unet_segmentation", ["train"], output_dir=str(one), **common)
    cut = workflow("unet_segmentation", ["train"], output_dir=str(two), **common)
    trainer = cut.parser.get_parsed_content("train#trainer")
    handler = cut.parser.get_parsed_content("train#handlers#1")
    handler.interval = 1
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: stop_at(trainer, handler, 3))
    with pytest.raises(SystemExit):
        trainer.run()
    assert torch.load(two / "checkpoint.pt", weights_only=True)["iteration"] == 3
    # the second part finds the dataset elsewhere; older checkpoints hold where it was
    state = torch.load(two / "checkpoint.pt", weights_only=True)
    state["settings"]["dataset_dir"] = dataset
    torch.save(state, two / "checkpoint.pt")
    moved = shutil.copytree(dataset, tmp_path / "moved")
    rest = {**common, "num_workers": 1, "dataset_dir": str(moved)}
    run("unet_segmentation", ["train"], output_dir=str(two), **rest)
    first, second = (torch.load(f / "model.pt", weights_only=True) for f in (one, two))
    assert all(torch.equal(first[key], second[key]) for key in first)


def stop_at(trainer: Any, handler: Any, iteration: int) -> None:
    if trainer.state.iteration == iteration:
        handler.stop_signal = 15


def test_several_folders_train_together(dataset: str, tmp_path: Path) -> None:
    more = tiny_dataset(tmp_path / "more", count=3, seed=9)
    train: ConfigWorkflow = workflow(
        "unet_segmentation",
        ["train"],
        dataset_dir=[dataset, str(more)],
        output_dir=str(tmp_path / "run"),
        **{**SMALL_UNET, "batch_size": 9},  # one folder has rois, the other not: in one batch
    )
    assert len(train.parser.get_parsed_content("train#dataset#data")) == 6 + 3
    train.run()
    assert (tmp_path / "run" / "model.pt").exists()


def test_few_real_cases_beside_many_in_equal_parts(dataset: str, tmp_path: Path) -> None:
    more = tiny_dataset(tmp_path / "more", count=5, seed=9)
    common: dict[str, Any] = {
        "dataset_dir": [dataset, str(more)],
        "output_dir": str(tmp_path / "run"),
        **SMALL_UNET,
        "seed": 3,
        "iterations_per_epoch": 10,
        "max_epochs": 1,
    }
    few = {"max_cases": [2, None], "balance_folders": True}
    train = workflow("unet_segmentation", ["train"], **common, **few)
    items = train.parser.get_parsed_content("train#dataset#data")
    expected = load_items([dataset, str(more)], max_cases=[2, None], seed=3)
    assert [item["case"] for item in items] == [item["case"] for item in expected]
    assert [item["dataset_dir"] for item in items] == [dataset] * 2 + [str(more)] * 5
    drawn = [index for _, index in train.parser.get_parsed_content("train#sampler")]
    assert [drawn.count(index) for index in range(2)] == [5, 5]
    assert sorted(drawn.count(index) for index in range(2, 7)) == [2] * 5
    train.run()
    # a training goes on with the cases that it began with
    with pytest.raises(RuntimeError) as caught:
        run("unet_segmentation", ["train"], **common, **{**few, "max_cases": [3, None]})
    message = str(first_data_error(caught.value))
    assert "max_cases: [2, None] then, [3, None] now" in message


def test_folders_of_other_classes_are_refused(dataset: str, tmp_path: Path) -> None:
    other = tiny_dataset(tmp_path / "other", num_labels=1)
    with pytest.raises(RuntimeError) as caught:
        run(
            "unet_segmentation",
            ["train"],
            dataset_dir=[dataset, str(other)],
            output_dir=str(tmp_path / "run"),
            **SMALL_UNET,
        )
    assert "class_2" in str(first_data_error(caught.value))


def test_scoring_on_other_classes_is_refused(trained: Train, tmp_path: Path) -> None:
    other = tiny_dataset(tmp_path / "other", num_labels=1)
    with pytest.raises(RuntimeError) as caught:
        evaluate(trained("unet3d"), str(other), tmp_path / "scores")
    assert "network's classes" in str(first_data_error(caught.value))


def test_finetuning_starts_from_the_given_weights(
    trained: Train, dataset: str, tmp_path: Path
) -> None:
    base = trained("unet3d")
    run(
        "unet_segmentation",
        ["train", "finetune"],
        dataset_dir=dataset,
        output_dir=str(tmp_path),
        **{**SMALL_UNET, "ckpt_path": str(base / "model.pt"), "learning_rate": 0.0, "seed": 8},
    )
    given, tuned = (torch.load(f / "model.pt", weights_only=True) for f in (base, tmp_path))
    weights = [key for key in given if key.endswith("weight")]
    assert weights
    assert all(torch.equal(given[key], tuned[key]) for key in weights)


def test_merged_labels_train_and_score(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", num_labels=3, size=(18, 14, 12))
    path = folder / "dataset.json"
    groups = {"two": {"1": {"name": "ends", "values": [1, 3]}, "2": {"name": "mid", "values": [2]}}}
    write_json(path, {**read_json(path), "label_groups": groups})
    run(
        "unet_segmentation",
        ["train"],
        dataset_dir=str(folder),
        output_dir=str(tmp_path / "run"),
        label_group="two",
        **SMALL_UNET,
    )
    scores = evaluate(tmp_path / "run", str(folder), tmp_path / "scores", label_group="two")
    assert set(scores["summary"]["volume"]) == {"ends", "mid", "mean"}
    truth = read_volume(load_dataset(folder).split("validation")[0].label).array
    merged = tiny_dataset(tmp_path / "merged", num_labels=2)
    content = read_json(merged / "dataset.json")
    names = {"background": 0, "ends": 1, "mid": 2}
    write_json(merged / "dataset.json", {**content, "labels": names, "label_group": "two"})
    require_valid([folder, merged], "two")
    assert len(load_items([folder, merged], "training", "two")) == 4 + 4
    ends = next(row for row in scores["cases"] if row["class"] == "ends")
    assert ends["truth_voxels"] == np.isin(truth, (1, 3)).sum()


def test_cases_of_one_name_in_several_folders_are_all_scored(
    trained: Train, dataset: str, tmp_path: Path
) -> None:
    folders = [dataset, str(tiny_dataset(tmp_path / "more", count=2, seed=9))]
    names = ["case_000", "case_001", "2_case_000", "2_case_001"]
    knobs = {"dataset_dir": f"['{folders[1]}','{folders[1]}']", "split": "training"}
    weights = str(trained("unet3d") / "model.pt")
    out = tmp_path / "out"
    run("unet_segmentation", ["inference"], ckpt_path=weights, output_dir=str(out), **knobs)
    assert sorted(p.name for p in (out / "labels").iterdir()) == sorted(
        f"{name}.nii.gz" for name in names
    )
    scores = evaluate(trained("unet3d"), folders, tmp_path / "scores", split="validation")
    assert {row["case"] for row in scores["cases"]} == {"case_006", "case_007", "2_case_002"}
    assert scores["summary"]["volume"]["class_1"]["dsc"]["n"] == 3


def test_cases_without_a_label_are_refused_before_they_are_predicted(
    trained: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_dataset(tmp_path / "set", count=2, validation=0)
    content = read_json(folder / "dataset.json")
    last = content["training"].pop()
    # an entry of a test list may be a bare path; the first is what a label would be scored against
    write_json(folder / "dataset.json", {**content, "test": [last["image"]]})
    monkeypatch.setattr(CaseScores, "__call__", lambda *_: pytest.fail("predicted"))
    with pytest.raises(RuntimeError) as caught:
        evaluate(trained("unet3d"), str(folder), tmp_path / "scores", split="test")
    assert str(first_data_error(caught.value)) == (
        f"{folder}/dataset.json: test[0].label: expected a label to score against, found none"
    )
    # to be predicted they need none
    run(
        "unet_segmentation",
        ["inference"],
        "infer",
        ckpt_path=str(trained("unet3d") / "model.pt"),
        dataset_dir=str(folder),
        output_dir=str(tmp_path / "out"),
    )
    assert (tmp_path / "out" / "labels" / "case_001.nii.gz").exists()


@pytest.mark.parametrize("name", PRESETS)
def test_properties_of_training_are_complete(name: str, dataset: str, tmp_path: Path) -> None:
    train = workflow(
        "unet_segmentation",
        ["train", *PRESETS[name]],
        dataset_dir=dataset,
        output_dir=str(tmp_path),
        **{**SMALL_UNET, **({"patch_size": [64, 32, 32]} if name == "swin_unetr" else {})},
    )
    assert train.check_properties() == []


@pytest.mark.parametrize("configs", [["inference"], ["inference", "evaluate"]])
def test_properties_of_inference_are_complete(
    configs: list[str], trained: Train, dataset: str, tmp_path: Path
) -> None:
    infer = workflow(
        "unet_segmentation",
        configs,
        "infer",
        ckpt_path=str(trained("unet3d") / "model.pt"),
        dataset_dir=dataset,
        output_dir=str(tmp_path),
        split="validation",
    )
    assert infer.check_properties() == []


def test_unused_jsons_are_none() -> None:
    """Every preset overrides only what train.json or inference.json has."""
    folder = Path(__file__).parents[2] / "bundles"
    for bundle in ("wgan_sn_mp", "unet_segmentation"):
        configs = folder / bundle / "configs"
        known = {
            key
            for name in ("train", "inference")
            for key in json.loads((configs / f"{name}.json").read_text())
        } | {"scores", "check_truth"}
        for path in configs.glob("*.json"):
            # these bring knobs of their own, which their own tests turn
            own = ("train", "inference", "metadata", "wgan_dp", "finetune", "federated")
            if path.stem not in own and not path.stem.startswith("multi_gpu"):
                assert set(json.loads(path.read_text())) <= known, path
