"""The WGAN bundle through MONAI's runner: variants, resuming, sampling, refusals."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import (
    BUNDLES,
    SMALL_WGAN,
    assert_same_run,
    run,
    volumes,
    workflow,
)
from tests.conftest import same_labels, tiny_dataset
from tests.nnunet import verify

VARIANTS = ["wgan_gp", "wgan_gp_sn", "wgan_sn_mp", "wgan_c_sn_mp", "compact"]
Train = Callable[[str], Path]


def sample(folder: Path, output: Path, **overrides: object) -> Path:
    settings = {"num_samples": 6, "batch_size": 2, "seed": 5, **overrides}
    run(
        "wgan_sn_mp",
        ["inference"],
        "infer",
        ckpt_path=str(folder / "model.pt"),
        output_dir=str(output),
        **settings,
    )
    return output


@pytest.mark.parametrize("variant", VARIANTS)
def test_variant_trains_samples_and_leaves_its_files(
    variant: str, trained_wgan: Train, dataset: str, tmp_path: Path
) -> None:
    folder = trained_wgan(variant)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 7))
    assert {"critic_loss", "generator_loss", "gradient_penalty", "wasserstein"} <= lines[0].keys()
    assert list((folder / "tensorboard").iterdir())
    assert (folder / "samples" / "epoch_0002.png" if variant != "compact" else folder).exists()
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 6
    synthetic = sample(folder, tmp_path / "out")
    assert errors_of(check_dataset(synthetic)) == []
    content = json.loads((synthetic / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "class_1": 1, "class_2": 2}
    assert len(content["training"]) == 6


def test_networks_are_the_papers_at_the_papers_settings(dataset: str) -> None:
    train = workflow("wgan_sn_mp", ["train"], dataset_dir=dataset)
    for key, value in {
        "patch_size": [128, 128, 64],
        "batch_size": 4,
        "generator_lr": 2e-4,
        "critic_lr": 4e-4,
        "betas": [0.0, 0.9],
        "penalty_weight": 10.0,
        "n_critic": 1,
        "max_epochs": 100,
        "filters": 512,
        "critic_filters": 512,
        "random_patches": 32,
        "label_threshold": 0.4,
    }.items():
        assert train.parser.get_parsed_content(key) == value
    doubled = workflow("wgan_sn_mp", ["train", "wgan_c_sn_mp"], dataset_dir=dataset)
    assert doubled.parser.get_parsed_content("filters") == 1024
    norms = {
        variant: workflow("wgan_sn_mp", ["train", variant], dataset_dir=dataset).parser.get(
            "critic_norm"
        )
        for variant in VARIANTS[:4]
    }
    assert norms == {
        "wgan_gp": "instance",
        "wgan_gp_sn": "spectral",
        "wgan_sn_mp": "spectral",
        "wgan_c_sn_mp": "spectral",
    }


def test_mixed_precision_is_float16_on_a_gpu_alone() -> None:
    """The paper's; on a CPU its backward passes are far slower than fp32's."""
    configs = BUNDLES / "wgan_sn_mp" / "configs"
    for device, expected in (("cpu", "bfloat16"), ("cuda", "float16"), ("cuda:1", "float16")):
        parser = ConfigParser()
        parser.read_config([configs / "train.json", configs / "wgan_sn_mp.json"])
        parser["device"] = device
        assert parser.get_parsed_content("amp_dtype") == expected


def test_samples_do_not_depend_on_batch_size(trained_wgan: Train, tmp_path: Path) -> None:
    folder = trained_wgan("compact")
    sets = [volumes(sample(folder, tmp_path / f"b{size}", batch_size=size)) for size in (1, 2, 5)]
    for other in sets[1:]:
        assert other.keys() == sets[0].keys()
        for name, array in sets[0].items():
            if "labels" in name:
                assert same_labels(array, other[name])
            else:
                step = 2.0 / 32767 if array.dtype.kind == "f" else 1
                limit = step * max(1.0, np.abs(array).max()) if array.dtype.kind == "f" else 1
                assert np.abs(array.astype(float) - other[name].astype(float)).max() <= limit


def test_samples_do_not_depend_on_what_else_is_made(trained_wgan: Train, tmp_path: Path) -> None:
    folder = trained_wgan("compact")
    whole = sample(folder, tmp_path / "whole", num_samples=6)
    parts = sample(folder, tmp_path / "parts", num_samples=1, start_index=3)
    sample(folder, parts, num_samples=5, start_index=1, num_workers=1)
    for path in sorted(parts.rglob("*.nii.gz")):
        assert path.read_bytes() == (whole / path.relative_to(parts)).read_bytes()
    assert len(list(parts.rglob("images*/*.nii.gz"))) == 5
    assert len(load_dataset(parts).cases["training"]) == 5


def test_other_seeds_give_other_pairs(trained_wgan: Train, tmp_path: Path) -> None:
    folder = trained_wgan("compact")
    one = volumes(sample(folder, tmp_path / "one", num_samples=2))
    two = volumes(sample(folder, tmp_path / "two", num_samples=2, seed=6))
    images = [name for name in one if "images" in name]
    assert all(not np.array_equal(one[name], two[name]) for name in images)


def test_interrupted_generation_goes_on_identically(trained_wgan: Train, tmp_path: Path) -> None:
    folder = trained_wgan("compact")
    whole = sample(folder, tmp_path / "whole", num_samples=5)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    # as after a kill: a pair without its sidecar, another not begun, no dataset.json
    (cut / "dataset.json").unlink()
    for path in [*cut.rglob("pair_000002*"), cut / "provenance" / "pair_000004.json"]:
        path.unlink()
    kept = (cut / "imagesTr" / "pair_000000_0000.nii.gz").stat().st_mtime_ns
    sample(folder, cut, num_samples=5)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(cut) for path in cut.rglob("*") if path.is_file())
    assert all((whole / name).read_bytes() == (cut / name).read_bytes() for name in names)
    assert (cut / "imagesTr" / "pair_000000_0000.nii.gz").stat().st_mtime_ns == kept


def test_a_folder_of_other_pairs_is_refused(trained_wgan: Train, tmp_path: Path) -> None:
    output = sample(trained_wgan("compact"), tmp_path / "out", num_samples=2)
    with pytest.raises(RuntimeError) as caught:
        sample(trained_wgan("compact"), output, num_samples=4, seed=6)
    assert "seed: 5 there, 6 now" in str(first_data_error(caught.value))


def test_geometry_and_intensity_are_the_cohorts(tmp_path: Path) -> None:
    cohort = tiny_dataset(tmp_path / "set", size=(14, 12, 10), spacing=(0.5, 0.6, 2.0))
    run(
        "wgan_sn_mp",
        ["train", "compact"],
        dataset_dir=str(cohort),
        output_dir=str(tmp_path / "run"),
        **{**SMALL_WGAN, "max_epochs": 1},
    )
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    out = sample(tmp_path / "run", tmp_path / "out", num_samples=2)
    image = nib.load(out / "imagesTr" / "pair_000000_0000.nii.gz")
    label = nib.load(out / "labelsTr" / "pair_000000.nii.gz")
    assert image.shape == label.shape == (14, 12, 10)
    np.testing.assert_allclose(image.header.get_zooms(), (0.5, 0.6, 2.0), rtol=1e-6)
    np.testing.assert_array_equal(image.affine, label.affine)
    np.testing.assert_array_equal(image.get_sform(), image.get_qform())
    assert image.get_data_dtype() == np.int16
    assert label.get_data_dtype() == np.uint8
    low, high = card["cohort"]["intensity"]
    data = image.get_fdata()
    assert low - 1 <= data.min() <= data.max() <= high + 1
    assert data.max() - data.min() > 0.05 * (high - low)


def test_training_split_in_two_equals_training_in_one(dataset: str, tmp_path: Path) -> None:
    common = {"dataset_dir": dataset, **SMALL_WGAN, "shift": 1, "gain": 0.1, "n_critic": 2}
    one, two = tmp_path / "one", tmp_path / "two"
    run("wgan_sn_mp", ["train", "compact"], output_dir=str(one), **common)
    run("wgan_sn_mp", ["train", "compact"], output_dir=str(two), **{**common, "max_epochs": 1})
    run("wgan_sn_mp", ["train", "compact"], output_dir=str(two), **common)
    assert_same_run(one, two)


def test_sigterm_saves_the_step_and_the_run_goes_on_identically(
    dataset: str, tmp_path: Path
) -> None:
    common = {"dataset_dir": dataset, **SMALL_WGAN}
    one, two = tmp_path / "one", tmp_path / "two"
    run("wgan_sn_mp", ["train"], output_dir=str(one), **common)
    cut = workflow("wgan_sn_mp", ["train"], output_dir=str(two), **common)
    trainer = cut.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=4), lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(SystemExit) as stop:
        trainer.run()
    assert stop.value.code == 143
    assert torch.load(two / "checkpoint.pt", weights_only=True)["iteration"] == 4
    run("wgan_sn_mp", ["train"], output_dir=str(two), **common)
    assert_same_run(one, two)


def test_mixed_precision_where_sampling_has_none_is_said_to_change_nothing(
    trained_wgan: Train, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trained_wgan("compact")
    full = sample(folder, tmp_path / "full", num_samples=2)
    said = "amp: expected a CUDA device, found cpu"
    assert said not in caplog.text
    mixed = sample(folder, tmp_path / "mixed", num_samples=2, amp=True)
    assert said in caplog.text
    one, two = volumes(full), volumes(mixed)
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[name], two[name]) for name in one)


def test_a_second_signal_ends_a_training_at_once(dataset: str, tmp_path: Path) -> None:
    class EndedAtOnceError(Exception):
        pass

    def end(*_: object) -> None:
        raise EndedAtOnceError

    folder = tmp_path / "out"
    cut = workflow(
        "wgan_sn_mp", ["train"], output_dir=str(folder), dataset_dir=dataset, **SMALL_WGAN
    )
    trainer = cut.parser.get_parsed_content("train#trainer")

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    trainer.add_event_handler(Events.ITERATION_STARTED(once=2), twice)
    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(EndedAtOnceError):
            trainer.run()
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)
    # not saved: the step was not over
    assert not (folder / "checkpoint.pt").exists()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_the_whole_group_spares_the_workers_of_the_step(
    name: str, dataset: str, tmp_path: Path
) -> None:
    """As a batch system or a terminal sends it: workers stay for the step, and then go."""
    settings = {**SMALL_WGAN, "dataset_dir": dataset, "output_dir": str(tmp_path)}
    cut = workflow("wgan_sn_mp", ["train"], num_workers=2, **settings)
    trainer = cut.parser.get_parsed_content("train#trainer")
    workers: list[Any] = []

    def tell_all() -> None:
        workers.extend(multiprocessing.active_children())
        # from a third process: PyTorch's workers tell their trainer's signals from others'
        everyone = [str(worker.pid) for worker in workers] + [str(os.getpid())]
        subprocess.run(["kill", f"-{name}", *everyone], check=True)

    # in the second step both have given a batch: they are past their start
    trainer.add_event_handler(Events.ITERATION_STARTED(once=2), tell_all)
    with pytest.raises(SystemExit) as stop:
        trainer.run()
    assert stop.value.code == 128 + getattr(signal, name)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 2
    assert len(workers) == 2
    del trainer, cut, stop
    gc.collect()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0


def test_a_finished_run_started_again_does_nothing(trained_wgan: Train, dataset: str) -> None:
    folder = trained_wgan("compact")
    before = (folder / "model.pt").read_bytes(), (folder / "metrics.jsonl").read_text()
    run(
        "wgan_sn_mp",
        ["train", "compact"],
        dataset_dir=dataset,
        output_dir=str(folder),
        **SMALL_WGAN,
    )
    assert before == ((folder / "model.pt").read_bytes(), (folder / "metrics.jsonl").read_text())


def test_resuming_with_other_settings_is_refused(trained_wgan: Train, dataset: str) -> None:
    folder = trained_wgan("compact")
    with pytest.raises(RuntimeError) as caught:
        run(
            "wgan_sn_mp",
            ["train", "compact"],
            dataset_dir=dataset,
            output_dir=str(folder),
            **{**SMALL_WGAN, "penalty_weight": 5.0},
        )
    error = first_data_error(caught.value)
    assert "penalty_weight: 10.0 then, 5.0 now" in str(error)


def test_training_starts_from_given_weights(
    trained_wgan: Train, dataset: str, tmp_path: Path
) -> None:
    given = trained_wgan("compact") / "model.pt"
    run(
        "wgan_sn_mp",
        ["train", "compact"],
        dataset_dir=dataset,
        output_dir=str(tmp_path),
        **{**SMALL_WGAN, "max_epochs": 1, "generator_lr": 0.0, "ckpt_path": str(given), "seed": 8},
    )
    one, two = (torch.load(path, weights_only=True) for path in (given, tmp_path / "model.pt"))
    assert all(torch.allclose(one[key], two[key]) for key in one if "running" not in key)


def test_a_broken_dataset_is_refused_before_training(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set")
    (folder / "labelsTr" / "case_001.nii.gz").unlink()
    with pytest.raises(RuntimeError) as caught:
        workflow("wgan_sn_mp", ["train", "compact"], dataset_dir=str(folder))
    refusal = first_data_error(caught.value)
    assert refusal is not None
    assert "case_001.nii.gz" in str(refusal)


def test_a_wrong_label_value_is_named_with_its_file(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set")
    path = folder / "labelsTr" / "case_002.nii.gz"
    image = nib.load(path)
    data = np.array(image.dataobj)
    data[0, 0, 0] = 255
    nib.save(nib.Nifti1Image(data, image.affine, image.header), path)
    with pytest.raises(RuntimeError) as caught:
        run("wgan_sn_mp", ["train", "compact"], dataset_dir=str(folder), output_dir=str(tmp_path))
    message = str(first_data_error(caught.value))
    assert "case_002.nii.gz" in message
    assert "found [255]" in message


@pytest.mark.parametrize("variant", VARIANTS)
def test_properties_of_training_are_complete(variant: str, dataset: str, tmp_path: Path) -> None:
    small = {**SMALL_WGAN, **({"filters": 32} if "_c_" in variant else {})}
    train = workflow(
        "wgan_sn_mp",
        ["train", variant],
        dataset_dir=dataset,
        output_dir=str(tmp_path),
        **small,
    )
    assert train.check_properties() == []


def test_properties_of_inference_are_complete(trained_wgan: Train, tmp_path: Path) -> None:
    infer = workflow(
        "wgan_sn_mp",
        ["inference"],
        "infer",
        ckpt_path=str(trained_wgan("compact") / "model.pt"),
        output_dir=str(tmp_path),
    )
    assert infer.check_properties() == []


def test_generated_folder_is_a_valid_nnunet_dataset(trained_wgan: Train, tmp_path: Path) -> None:
    verify(sample(trained_wgan("compact"), tmp_path / "Dataset501_Synthetic"))


def test_the_command_line_works_from_another_directory(
    trained_wgan: Train, dataset: str, tmp_path: Path
) -> None:
    folder = BUNDLES / "wgan_sn_mp" / "configs"
    runs = [
        {
            "config_file": str([str(folder / "train.json"), str(folder / "compact.json")]),
            "dataset_dir": dataset,
            "output_dir": "run",
            "device": "cpu",
            **{key: json.dumps(value) for key, value in SMALL_WGAN.items()},
        },
        {
            "config_file": str(folder / "inference.json"),
            "ckpt_path": "run/model.pt",
            "output_dir": "out",
            "num_samples": "3",
            "device": "cpu",
        },
    ]
    for arguments in runs:
        command = [sys.executable, "-m", "monai.bundle", "run"]
        command += [part for key, value in arguments.items() for part in (f"--{key}", value)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
    assert errors_of(check_dataset(tmp_path / "out")) == []
    result = subprocess.run([*command, "--seed", "9"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "seed: 0 there, 9 now" in result.stderr.splitlines()[-1]
