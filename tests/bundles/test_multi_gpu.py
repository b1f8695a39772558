"""Bundles shared by several processes (gloo, CPU): training, resuming, stopping, generating."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medpair.data.files import DataError
from medpair.engines import distributed
from medpair.engines.refusals import first_data_error
from tests.bundles import processes
from tests.bundles.conftest import (
    BUNDLES,
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
    assert_same_run,
    run,
    workflow,
)
from tests.bundles.processes import in_processes

TINY = {"iterations_per_epoch": 2, "max_epochs": 2, "batch_size": 1}
TRAINING: dict[str, tuple[list[str], dict[str, Any]]] = {
    "wgan_sn_mp": (["train", "compact"], SMALL_WGAN | TINY | {"n_critic": 2}),
    # a layer that each process uses in half of its steps, not the same ones
    "medgen3d_mcdpm": (["train"], SMALL_MCDPM | TINY | {"self_conditioning": True}),
    "medgen3d_vid2vid": (["train"], SMALL_VID2VID | TINY),
    "medgen3d_semantic_refiner": (["train"], SMALL_REFINER | TINY),
    "unet_segmentation": (["train"], SMALL_UNET | TINY),
}
# so many cases or samples that three processes have unequal shares, one of them perhaps none
GENERATION: dict[str, tuple[list[str], dict[str, Any]]] = {
    "wgan_sn_mp": (["inference"], {"num_samples": 7, "batch_size": 2, "start_index": 1}),
    "medgen3d_mcdpm": (["inference"], {"num_samples": 3, "batch_size": 1, "steps": 2}),
    "medgen3d_vid2vid": (["inference"], {"batch_size": 4}),
    "medgen3d_semantic_refiner": (
        ["inference"],
        {"batch_size": 2, "num_samples": 3, "refine_steps": 1, "grid_steps": 10},
    ),
    "unet_segmentation": (["inference", "evaluate"], {"split": "validation"}),
}
PARALLEL = "multi_gpu_train"
Trained = Callable[[str], tuple[Path, str]]


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Return a function that trains a bundle once on two processes: folder, hash of weights."""
    done: dict[str, tuple[Path, str]] = {}

    def train(bundle: str) -> tuple[Path, str]:
        if bundle not in done:
            configs, small = TRAINING[bundle]
            folder = tmp_path_factory.mktemp(bundle) / "run"
            settings = {**small, "dataset_dir": dataset, "output_dir": str(folder)}
            hashes = in_processes(2, processes.train, bundle, [*configs, PARALLEL], settings)
            assert hashes[0] == hashes[1]
            done[bundle] = folder, hashes[0]
        return done[bundle]

    return train


@pytest.mark.parametrize("bundle", TRAINING)
def test_a_signal_to_one_process_stops_both_and_the_run_goes_on_identically(
    bundle: str, trained: Trained, dataset: str, tmp_path: Path
) -> None:
    configs, small = TRAINING[bundle]
    whole, weights = trained(bundle)
    settings = {**small, "dataset_dir": dataset, "output_dir": str(tmp_path)}
    job = (bundle, [*configs, PARALLEL], settings)
    assert in_processes(2, processes.train_until_signal, *job) == [143, 143]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 2
    assert in_processes(2, processes.train, *job) == [weights, weights]
    assert_same_run(whole, tmp_path)
    if bundle == "unet_segmentation":
        lines = (whole / "validation.jsonl").read_text()
        assert lines == (tmp_path / "validation.jsonl").read_text()
        assert lines.count("\n") == 2


def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give this process the environment of the only process of a ``torchrun``."""
    # no other process connects: any free port will do
    values = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_PORT": "0"}
    for name, value in {**values, "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("bundle", TRAINING)
def test_one_process_trains_as_without_torchrun(
    bundle: str, dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs, small = TRAINING[bundle]
    small = {**small, "dataset_dir": dataset, "max_epochs": 1, "batch_size": 2}
    run(bundle, configs, output_dir=str(tmp_path / "plain"), **small)
    alone(monkeypatch)
    parallel = workflow(bundle, [*configs, PARALLEL], output_dir=str(tmp_path / "ddp"), **small)
    assert parallel.check_properties() == []
    assert distributed.is_distributed()
    parallel.run()
    parallel.finalize()
    assert not distributed.is_distributed()
    assert_same_run(tmp_path / "plain", tmp_path / "ddp")


@pytest.mark.parametrize("bundle", GENERATION)
def test_three_processes_write_what_one_does(
    bundle: str, trained: Trained, dataset: str, tmp_path: Path
) -> None:
    configs, settings = GENERATION[bundle]
    settings = {**settings, "ckpt_path": str(trained(bundle)[0] / "model.pt")}
    if bundle not in ("wgan_sn_mp", "medgen3d_mcdpm"):
        settings["dataset_dir"] = dataset
    one, three = tmp_path / "one", tmp_path / "three"
    run(bundle, configs, "infer", output_dir=str(one), **settings)
    job = (bundle, [*configs, "multi_gpu_inference"], {**settings, "output_dir": str(three)})
    in_processes(3, processes.infer, *job)
    assert_same_files(one, three)


def assert_same_files(one: Path, two: Path) -> None:
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert names
    assert names == sorted(path.relative_to(two) for path in two.rglob("*") if path.is_file())
    assert [name for name in names if (one / name).read_bytes() != (two / name).read_bytes()] == []


def test_generation_with_a_process_lost_is_completed_by_the_same_command(
    trained: Trained, tmp_path: Path
) -> None:
    settings = {"ckpt_path": str(trained("wgan_sn_mp")[0] / "model.pt"), "batch_size": 2}
    settings |= {"num_samples": 7, "seed": 4}
    one, two = tmp_path / "one", tmp_path / "two"
    run("wgan_sn_mp", ["inference"], "infer", output_dir=str(one), **settings)
    settings["output_dir"] = str(two)
    job = ("wgan_sn_mp", ["inference", "multi_gpu_inference"], settings)
    survivor, lost = in_processes(2, processes.infer_until_crash, *job)
    assert "by peer" in survivor  # the connection was closed, or reset
    assert lost == 9
    assert not (two / "dataset.json").exists()
    # the whole share of the survivor, and one pair of the other's
    assert len(list((two / "provenance").iterdir())) == 5
    in_processes(2, processes.infer, *job)
    assert_same_files(one, two)


def test_a_loss_that_is_not_finite_anywhere_stops_all_before_their_step(
    dataset: str, tmp_path: Path
) -> None:
    configs, small = TRAINING["medgen3d_mcdpm"]
    folder = {"dataset_dir": dataset, "output_dir": str(tmp_path)}
    settings = {**small, **folder, "max_bad_steps": 1}
    job = ("medgen3d_mcdpm", [*configs, PARALLEL], settings)
    messages = in_processes(2, processes.train_to_nan, *job)
    assert all("iteration 2: expected finite losses" in message for message in messages)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_run_goes_on_with_another_number_of_processes_and_the_same_batch(
    trained: Trained, dataset: str, tmp_path: Path
) -> None:
    configs, small = TRAINING["medgen3d_mcdpm"]
    folder = trained("medgen3d_mcdpm")[0]
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    common = {**small, "dataset_dir": dataset, "output_dir": str(tmp_path), "max_epochs": 3}
    with pytest.raises(RuntimeError) as caught:
        run("medgen3d_mcdpm", configs, **common)
    assert "batch_size: 2 then, 1 now" in str(first_data_error(caught.value))
    run("medgen3d_mcdpm", configs, **{**common, "batch_size": 2})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 7))


def test_without_torchrun_or_with_privacy_it_is_refused(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SMALL_WGAN, "dataset_dir": dataset, "output_dir": str(tmp_path)}
    for name in distributed.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError) as caught:
        workflow("wgan_sn_mp", ["train", "compact", PARALLEL], **settings)
    assert "expected a process started by torchrun" in str(first_data_error(caught.value))
    alone(monkeypatch)
    settings |= {"noise_multiplier": 1.0}
    private = workflow("wgan_sn_mp", ["train", "compact", "wgan_dp", PARALLEL], **settings)
    try:
        with pytest.raises(RuntimeError) as caught:
            private.run()
        told = "".join(traceback.format_exception(caught.value))
        assert "expected one process, found multi_gpu_train.json" in told
    finally:
        private.finalize()


def test_the_command_of_the_document(dataset: str, tmp_path: Path) -> None:
    text = (BUNDLES.parent / "docs" / "multi_gpu.md").read_text(encoding="utf-8")
    command = text.split("```bash\n")[1].split("```")[0].strip()
    words = {"=4": "=2", "bundles/": f"{BUNDLES}/", "my_cohort": dataset, "runs/wgan": "run"}
    for word, other in words.items():
        assert word in command
        command = command.replace(word, other)
    small = {**SMALL_WGAN, "iterations_per_epoch": 2, "max_epochs": 1, "device": "cpu"}
    options = [f"--{key} '{value}'" for key, value in small.items()]
    result = subprocess.run(
        " ".join([command, *options]),
        shell=True,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 2
    assert not any(name.startswith("module.") for name in state["objects"]["generator"])
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 2
    writers = {path.name.split(".")[-2] for path in (tmp_path / "run" / "tensorboard").iterdir()}
    assert len(writers) == 1  # events.out.tfevents.TIME.HOST.PROCESS.NUMBER


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.rank_device() == torch.device("cuda", 1)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DataError, match="at most the 2 GPUs of this machine, found process 3"):
        distributed.rank_device()
