"""The image sequence bundle through MONAI's runner: training, resuming, image folders, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import read_json
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import (
    BUNDLES,
    SMALL_VID2VID,
    assert_same_run,
    run,
    volumes,
    workflow,
)
from tests.conftest import tiny_dataset

BUNDLE = "medgen3d_vid2vid"


@pytest.fixture(scope="session")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vid2vid") / "run"
    train(dataset, folder)
    return folder


@pytest.fixture(scope="session")
def label_maps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Label maps alone, of the training cohort's size and smaller."""
    root = tiny_dataset(
        tmp_path_factory.mktemp("maps") / "maps", count=3, orientation="LPI", seed=9
    )
    other = tiny_dataset(root.parent / "other", count=2, size=(14, 12, 10), seed=8, validation=0)
    for path in (other / "labelsTr").iterdir():
        shutil.copy(path, root / "labelsTr" / f"small_{path.name}")
    content = read_json(root / "dataset.json")
    names = sorted(path.name for path in (root / "labelsTr").iterdir())
    lists = {"training": [{"label": f"labelsTr/{name}"} for name in names], "validation": []}
    (root / "dataset.json").write_text(json.dumps({**content, "channel_names": {}, **lists}))
    shutil.rmtree(root / "imagesTr")
    return root


def train(dataset: str, folder: Path, **overrides: Any) -> None:
    settings = {**SMALL_VID2VID, **overrides}
    run(BUNDLE, ["train"], dataset_dir=dataset, output_dir=str(folder), **settings)


def draw(weights: Path, labels: str | Path, output: Path, **overrides: Any) -> Path:
    run(
        BUNDLE,
        ["inference"],
        "infer",
        ckpt_path=str(weights / "model.pt"),
        dataset_dir=str(labels),
        output_dir=str(output),
        **{"batch_size": 2, **overrides},
    )
    return output


def steps_between(one: np.ndarray, two: np.ndarray) -> float:
    """Return the largest difference of images, in steps of their storage."""
    width = 1.0 if one.dtype.kind in "iu" else float(np.ptp(one)) / 65535
    return float(np.abs(one.astype(float) - two.astype(float)).max()) / width


def test_training_leaves_its_files(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 7))
    assert {"generator", "critics", "segmenter", "l1", "flow", "features"} <= lines[0].keys()
    assert list((trained / "tensorboard").iterdir())
    state = torch.load(trained / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 6
    assert {"generator", "image_critic", "temporal_critic", "segmenter"} <= set(state["objects"])
    card = read_json(trained / "model.json")
    assert card["sequence"] == {"axis": 2, "frame": [16, 16, 16]}
    assert card["network"]["num_classes"] == 3
    assert card["cohort"]["sizes"] == [[16, 14, 12]] * 6


def test_training_goes_on_bit_for_bit(trained: Path, dataset: str, tmp_path: Path) -> None:
    train(dataset, tmp_path, max_epochs=1)
    train(dataset, tmp_path)
    assert_same_run(trained, tmp_path)


def test_the_generated_folder_is_valid(trained: Path, label_maps: Path, tmp_path: Path) -> None:
    out = draw(trained, label_maps, tmp_path / "out")
    assert errors_of(check_dataset(out)) == []
    cases = load_dataset(out).split("training")
    source = load_dataset(label_maps, images=False).split("training")
    assert sorted(case.name for case in cases) == sorted(case.name for case in source)
    low, high = read_json(trained / "model.json")["cohort"]["intensity"]
    for case, old in zip(cases, source, strict=True):
        image, label, before = (
            nib.load(path or "") for path in (case.image, case.label, old.label)
        )
        assert image.get_data_dtype() == np.int16
        np.testing.assert_allclose(image.affine, before.affine, atol=1e-5)
        np.testing.assert_array_equal(np.asarray(label.dataobj), np.asarray(before.dataobj))
        values = image.get_fdata()
        assert low - 0.1 <= values.min() < values.max() <= high + 0.1
        record = read_json(out / "provenance" / f"{case.name}.json")
        assert record["generator"] == BUNDLE
        assert {"weights_sha256", "input_sha256", "direction", "medpair_version"} <= set(record)


def test_images_do_not_depend_on_batch_size(
    trained: Path, label_maps: Path, tmp_path: Path
) -> None:
    one, many = (
        volumes(draw(trained, label_maps, tmp_path / str(n), batch_size=n)) for n in (1, 4)
    )
    assert one.keys() == many.keys()
    assert len(one) == 10
    for name, array in one.items():
        if "labels" in name:
            np.testing.assert_array_equal(array, many[name])
        else:
            # the step depends on the image's own range, which differs by rounding too
            assert steps_between(array, many[name]) < 1.1


def test_contrast_is_the_volumes_own(dataset: str, label_maps: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(dataset, one, contrast_conditioning=True)
    train(dataset, two, contrast_conditioning=True, max_epochs=1)
    train(dataset, two, contrast_conditioning=True)
    assert_same_run(one, two)
    card = read_json(one / "model.json")
    assert card["network"]["contrast"] is True
    assert card["contrast_traits"]["names"] == ["class_1", "class_2"]
    folders = [
        draw(one, label_maps, tmp_path / name, **options)
        for name, options in {
            "0": {},
            "again": {"batch_size": 4},
            "1": {"seed": 1},
            "bright": {"contrast": {"class_1": 2.5}},
        }.items()
    ]
    first, again, other, bright = (volumes(folder) for folder in folders)
    for name, array in first.items():
        if "images" in name:
            assert steps_between(array, again[name]) < 1.1
            assert steps_between(array, other[name]) > 2
            assert steps_between(array, bright[name]) > 2
    record = read_json(next((folders[3] / "provenance").iterdir()))
    assert record["wanted_contrast"] == {"class_1": 2.5}
    assert record["seed"] == 0


def test_interrupted_generation_goes_on(trained: Path, label_maps: Path, tmp_path: Path) -> None:
    whole = draw(trained, label_maps, tmp_path / "whole")
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    # as after a kill: a pair without its sidecar, another not begun, no dataset.json
    (cut / "dataset.json").unlink()
    names = [case.name for case in load_dataset(whole).split("training")]
    for path in [*cut.rglob(f"*{names[1]}*"), cut / "provenance" / f"{names[3]}.json"]:
        path.unlink()
    kept = (cut / "labelsTr" / f"{names[0]}.nii.gz").stat().st_mtime_ns
    draw(trained, label_maps, cut)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(cut) for path in cut.rglob("*") if path.is_file())
    assert all((whole / name).read_bytes() == (cut / name).read_bytes() for name in files)
    assert (cut / "labelsTr" / f"{names[0]}.nii.gz").stat().st_mtime_ns == kept


def test_other_options_in_the_same_folder_are_refused(
    trained: Path, label_maps: Path, tmp_path: Path
) -> None:
    out = draw(trained, label_maps, tmp_path / "out", num_samples=1)
    with pytest.raises(RuntimeError) as caught:
        draw(trained, label_maps, out, direction="backward")
    message = str(first_data_error(caught.value))
    assert "direction: 'forward' there, 'backward' now" in message


def test_both_directions_and_other_axes(dataset: str, label_maps: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", slicing_axis="sagittal", flip=[0], max_epochs=1)
    card = read_json(tmp_path / "run" / "model.json")
    assert card["sequence"]["axis"] == 0
    made = [
        draw(tmp_path / "run", label_maps, tmp_path / way, direction=way, num_samples=1)
        for way in ("forward", "backward")
    ]
    images = [
        next(array for name, array in volumes(out).items() if "images" in name) for out in made
    ]
    assert steps_between(*images) > 1
    assert all(errors_of(check_dataset(out)) == [] for out in made)


def test_resuming_with_other_settings_is_refused(trained: Path, dataset: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(dataset, trained, past=3)
    assert "network.past: 2 then, 3 now" in str(first_data_error(caught.value))


def test_properties_are_complete(
    trained: Path, dataset: str, label_maps: Path, tmp_path: Path
) -> None:
    train = workflow(
        BUNDLE, ["train"], dataset_dir=dataset, output_dir=str(tmp_path), **SMALL_VID2VID
    )
    assert train.check_properties() == []
    infer = workflow(
        BUNDLE,
        ["inference"],
        "infer",
        ckpt_path=str(trained / "model.pt"),
        dataset_dir=str(label_maps),
        output_dir=str(tmp_path / "out"),
    )
    assert infer.check_properties() == []


def test_the_compact_preset_builds(dataset: str, tmp_path: Path) -> None:
    parser = workflow(
        BUNDLE, ["train", "compact"], dataset_dir=dataset, output_dir=str(tmp_path)
    ).parser
    preset = read_json(BUNDLES / BUNDLE / "configs" / "compact.json")
    assert set(preset) <= set(read_json(BUNDLES / BUNDLE / "configs" / "train.json"))
    network = parser.get_parsed_content("network_def")
    assert network.settings["channels"] == preset["channels"]
    assert parser.get_parsed_content("train#trainer").state.max_epochs == preset["max_epochs"]


def test_the_command_line_works_from_another_directory(
    dataset: str, label_maps: Path, tmp_path: Path
) -> None:
    folder = BUNDLES / BUNDLE / "configs"
    runs = [
        {
            "config_file": str(folder / "train.json"),
            "dataset_dir": dataset,
            "output_dir": "run",
            "device": "cpu",
            **{key: json.dumps(value) for key, value in SMALL_VID2VID.items()},
            "max_epochs": "1",
        },
        {
            "config_file": str(folder / "inference.json"),
            "ckpt_path": "run/model.pt",
            "dataset_dir": str(label_maps),
            "output_dir": "out",
            "device": "cpu",
        },
    ]
    for arguments in runs:
        command = [sys.executable, "-m", "monai.bundle", "run"]
        command += [part for key, value in arguments.items() for part in (f"--{key}", value)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
    assert errors_of(check_dataset(tmp_path / "out")) == []
    assert len(load_dataset(tmp_path / "out").split("training")) == 5
