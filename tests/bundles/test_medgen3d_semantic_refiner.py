"""The refiner bundle through MONAI's runner: training, resuming, refined folders, refusals."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import Volume, read_json, read_volume, write_volume
from medpair.engines.refusals import first_data_error
from medpair.inferers.refinement import Refinement
from tests.bundles.conftest import (
    BUNDLES,
    SMALL_REFINER,
    assert_same_run,
    run,
    volumes,
    workflow,
)
from tests.conftest import tiny_dataset

BUNDLE = "medgen3d_semantic_refiner"
# a few steps, strong enough to be seen
STEPS = {"refine_steps": 2, "grid_steps": 20, "slice_batch": 8}


@pytest.fixture(scope="session")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("refiner") / "run"
    train(dataset, folder)
    return folder


@pytest.fixture(scope="session")
def pairs(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs on the training cohort's scale, as the stage before leaves them."""
    root = tiny_dataset(tmp_path_factory.mktemp("pairs") / "pairs", count=3, orientation="LPI")
    low, high = read_json(trained / "model.json")["cohort"]["intensity"]
    for path in root.glob("images*/*"):
        volume = read_volume(path)
        array = np.clip(volume.array, np.ceil(low), np.floor(high)).astype(np.int16)
        write_volume(path, Volume(array, volume.affine, volume.orientation))
    return root


def train(dataset: str, folder: Path, **overrides: Any) -> None:
    settings = {**SMALL_REFINER, **overrides}
    run(BUNDLE, ["train"], dataset_dir=dataset, output_dir=str(folder), **settings)


def refine(weights: Path, source: Path, output: Path, **overrides: Any) -> Path:
    run(
        BUNDLE,
        ["inference"],
        "infer",
        ckpt_path=str(weights / "model.pt"),
        dataset_dir=str(source),
        output_dir=str(output),
        **{**STEPS, **overrides},
    )
    return output


def images(folder: Path) -> dict[str, np.ndarray]:
    """Return the intensities of all images in a folder, by name."""
    return {path.name: nib.load(path).get_fdata() for path in sorted(folder.rglob("imagesTr/*"))}


def test_training_leaves_its_files(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 7))
    # a new network predicts nothing: the first error is the variance of the noise
    assert lines[0]["mse"] == pytest.approx(1.0, abs=0.1)
    assert torch.load(trained / "checkpoint.pt", weights_only=True)["iteration"] == 6
    card = read_json(trained / "model.json")
    assert card["frame"] == [16, 16, 16]
    assert card["diffusion"]["learn_variance"] is True
    assert card["network"]["output_factor"] == 2


def test_defaults_are_the_papers(dataset: str, trained: Path, tmp_path: Path) -> None:
    parser = workflow(BUNDLE, ["train"], dataset_dir=dataset, output_dir=str(tmp_path)).parser
    for key, value in {"timesteps": 1000, "learn_variance": True, "schedule": "linear"}.items():
        assert parser.get_parsed_content(key) == value
    inference = read_json(BUNDLES / BUNDLE / "configs" / "inference.json")
    assert {inference[key] for key in ("refine_steps", "grid_steps", "combine")} == {None}
    card = read_json(trained / "model.json")
    assert card["sampling"] == {}
    assert asdict(Refinement.of(card)) == {
        "refine_steps": 10,
        "grid_steps": 100,
        "combine": "mean",
    }
    assert inference["views"] == ["axial", "coronal", "sagittal"]


@pytest.mark.parametrize(
    "variant",
    [
        {"views": "separate", "mask_dropout": 0.2, "low_noise": 0.5},
        {"objective": "flow", "schedule": "flow", "learn_variance": False, "flip": [0]},
    ],
)
def test_variants_train_resume_and_refine(
    variant: dict[str, Any], dataset: str, pairs: Path, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    train(dataset, one, **variant)
    train(dataset, two, **variant, max_epochs=1)
    train(dataset, two, **variant)
    assert_same_run(one, two)
    out = refine(one, pairs, tmp_path / "out", num_samples=1, guidance=1.5)
    assert errors_of(check_dataset(out)) == []
    record = read_json(out / "provenance" / "case_000.json")
    assert record["sampler"] == ("flow" if "objective" in variant else "ancestral")
    assert record["guidance"] == 1.5


def test_training_goes_on_bit_for_bit(trained: Path, dataset: str, tmp_path: Path) -> None:
    train(dataset, tmp_path, max_epochs=1)
    train(dataset, tmp_path)
    assert_same_run(trained, tmp_path)


def test_the_refined_folder_is_valid(trained: Path, pairs: Path, tmp_path: Path) -> None:
    out = refine(trained, pairs, tmp_path / "out")
    assert errors_of(check_dataset(out)) == []
    before, after = volumes(pairs), volumes(out)
    shown = images(pairs)
    assert set(images(out)) == set(shown)
    for name, array in after.items():
        if "labels" in name:
            np.testing.assert_array_equal(array, before[name])
    for name, array in images(out).items():
        assert np.abs(array - shown[name]).max() > 2
    for case in load_dataset(out).split("training"):
        source = nib.load(pairs / "imagesTr" / f"{case.name}_0000.nii.gz")
        np.testing.assert_allclose(nib.load(case.image or "").affine, source.affine, atol=1e-5)
        record = read_json(out / "provenance" / f"{case.name}.json")
        assert (record["refine_steps"], record["grid_steps"], record["seed"]) == (2, 20, 0)


def test_without_steps_the_voxels_are_the_inputs(
    trained: Path, pairs: Path, tmp_path: Path
) -> None:
    out = refine(trained, pairs, tmp_path / "out", refine_steps=0)
    for name, array in images(out).items():
        # a narrow intensity range is stored as scaled integers
        np.testing.assert_allclose(array, images(pairs)[name], atol=0.01)


def test_images_do_not_depend_on_batch_size(trained: Path, pairs: Path, tmp_path: Path) -> None:
    sets = [
        images(refine(trained, pairs, tmp_path / str(n), batch_size=n, slice_batch=8 * n))
        for n in (1, 3)
    ]
    assert len(sets[0]) == 3
    for name, array in sets[0].items():
        step = np.ptp(array) / 65535
        assert np.abs(array - sets[1][name]).max() < 1.1 * step


def test_interrupted_generation_goes_on(trained: Path, pairs: Path, tmp_path: Path) -> None:
    whole = refine(trained, pairs, tmp_path / "whole", num_samples=2)
    cut = refine(trained, pairs, tmp_path / "cut", num_samples=1, start_index=1)
    kept = (cut / "imagesTr" / "case_001_0000.nii.gz").stat().st_mtime_ns
    refine(trained, pairs, cut, num_samples=2)
    files = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(cut) for path in cut.rglob("*") if path.is_file())
    assert all((whole / name).read_bytes() == (cut / name).read_bytes() for name in files)
    assert (cut / "imagesTr" / "case_001_0000.nii.gz").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 6}, "seed: 0 there, 6 now"),
        ({"refine_steps": 3}, "refine_steps: 2 there, 3 now"),
        ({"views": ["axial"]}, "views: ['axial', 'coronal', 'sagittal'] there, ['axial'] now"),
    ],
)
def test_another_origin_in_the_same_folder_is_refused(
    changes: dict[str, Any], message: str, trained: Path, pairs: Path, tmp_path: Path
) -> None:
    out = refine(trained, pairs, tmp_path / "out", num_samples=1, refine_steps=2)
    with pytest.raises(RuntimeError) as caught:
        refine(trained, pairs, out, **changes)
    assert message in str(first_data_error(caught.value))


def test_a_folder_without_images_is_refused(trained: Path, pairs: Path, tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    shutil.copytree(pairs, maps)
    content = read_json(maps / "dataset.json")
    content |= {
        "training": [{"label": case["label"]} for case in content["training"]],
        "channel_names": {},
    }
    (maps / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(RuntimeError) as caught:
        refine(trained, maps, tmp_path / "out")
    assert 'training[0]: expected {"image": path, "label": path}, found' in str(
        first_data_error(caught.value)
    )


def test_properties_are_complete(trained: Path, dataset: str, pairs: Path, tmp_path: Path) -> None:
    train = workflow(
        BUNDLE, ["train"], dataset_dir=dataset, output_dir=str(tmp_path), **SMALL_REFINER
    )
    assert train.check_properties() == []
    infer = workflow(
        BUNDLE,
        ["inference"],
        "infer",
        ckpt_path=str(trained / "model.pt"),
        dataset_dir=str(pairs),
        output_dir=str(tmp_path / "out"),
    )
    assert infer.check_properties() == []


def test_the_compact_preset_builds(dataset: str, tmp_path: Path) -> None:
    parser = workflow(
        BUNDLE, ["train", "compact"], dataset_dir=dataset, output_dir=str(tmp_path)
    ).parser
    preset = read_json(BUNDLES / BUNDLE / "configs" / "compact.json")
    assert set(preset) <= set(read_json(BUNDLES / BUNDLE / "configs" / "train.json"))
    assert parser.get_parsed_content("network_def").settings["channels"] == preset["channels"]
    assert parser.get_parsed_content("train#trainer").state.max_epochs == preset["max_epochs"]
    assert parser.get_parsed_content("task").low_noise == preset["low_noise"]
    card = parser.get_parsed_content("train#handlers#2").content
    assert card["sampling"] == preset["sampling"] == asdict(Refinement(3, 30, "alternate"))


def test_the_command_line_works_from_another_directory(
    dataset: str, pairs: Path, tmp_path: Path
) -> None:
    folder = BUNDLES / BUNDLE / "configs"
    runs = [
        {
            "config_file": str(folder / "train.json"),
            "dataset_dir": dataset,
            "output_dir": "run",
            "device": "cpu",
            **{key: json.dumps(value) for key, value in SMALL_REFINER.items()},
            "attention_levels": "[False,True]",
            "max_epochs": "1",
        },
        {
            "config_file": str(folder / "inference.json"),
            "ckpt_path": "run/model.pt",
            "dataset_dir": str(pairs),
            "output_dir": "out",
            "refine_steps": "1",
            "num_samples": "2",
            "device": "cpu",
        },
    ]
    for arguments in runs:
        command = [sys.executable, "-m", "monai.bundle", "run"]
        command += [part for key, value in arguments.items() for part in (f"--{key}", value)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
    assert errors_of(check_dataset(tmp_path / "out")) == []
    assert len(load_dataset(tmp_path / "out").split("training")) == 2
