"""Faults of a run, provoked in every bundle: numbers, memory, checkpoints, settings, logs."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from medpair.data.files import DataError, read_json
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import BUNDLES as ROOT
from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
    assert_same_run,
    run,
    volumes,
    workflow,
)
from tests.conftest import tiny_dataset


@dataclass(frozen=True)
class Bundle:
    """A bundle at a size that trains in a second.

    Attributes:
        name: of the bundle.
        small: knobs of training.
        changed: knobs with values that a resumed run must refuse.
        sampling: knobs of inference; the batch of the first must be halved to the second's.
    """

    name: str
    small: dict[str, Any]
    changed: dict[str, Any]
    sampling: tuple[dict[str, Any], dict[str, Any]]
    configs: tuple[str, ...] = ("train",)


LATENT = {"num_samples": 4, "seed": 5}
# two windows in each volume
WINDOWS = {"split": "validation", "inferer#roi_size": [16, 16, 8]}
BUNDLES = [
    Bundle(
        "wgan_sn_mp",
        SMALL_WGAN,
        {"generator_lr": 0.1, "critic_lr": 0.2, "averaging": 0.5, "gain": 0.3, "betas": [0.1, 0.9]},
        (LATENT | {"batch_size": 4}, LATENT | {"batch_size": 2}),
        ("train", "compact"),
    ),
    Bundle(
        "medgen3d_mcdpm",
        SMALL_MCDPM,
        {"learning_rate": 0.1, "averaging": 0.5, "spacing": [1, 1, 1], "shift": 1},
        (LATENT | {"batch_size": 4, "steps": 2}, LATENT | {"batch_size": 2, "steps": 2}),
    ),
    Bundle(
        "medgen3d_vid2vid",
        SMALL_VID2VID,
        {"learning_rate": 0.1, "l1_weight": 2.0, "flow_weight": 3.0, "averaging": 0.5},
        ({"batch_size": 4}, {"batch_size": 2}),
    ),
    Bundle(
        "medgen3d_semantic_refiner",
        SMALL_REFINER,
        {"learning_rate": 0.1, "averaging": 0.5, "mask_dropout": 0.5},
        ({"slice_batch": 8, "refine_steps": 2}, {"slice_batch": 4, "refine_steps": 2}),
    ),
    Bundle(
        "unet_segmentation",
        {**SMALL_UNET, "iterations_per_epoch": 3},
        {"learning_rate": 0.1, "weight_decay": 0.5, "rotation_degrees": 5.0, "flip_axes": [1]},
        (WINDOWS | {"batch_size": 4}, WINDOWS | {"batch_size": 1}),
    ),
]
Whole = Callable[[Bundle], Path]
each_bundle = pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)


def training(bundle: Bundle, dataset: str, folder: Path, **overrides: Any) -> Any:
    """Return an initialized training of two epochs of three iterations, saved after each."""
    settings = {**bundle.small, "max_epochs": 2, "val_interval": 1, **overrides}
    return workflow(
        bundle.name, list(bundle.configs), dataset_dir=dataset, output_dir=str(folder), **settings
    )


def trainer_of(flow: Any) -> Any:
    return flow.parser.get_parsed_content("train#trainer")


def poison(flow: Any, *iterations: int) -> Any:
    """Put NaN into the batches of some iterations; return the trainer."""
    trainer = trainer_of(flow)

    def spoil(engine: Any) -> None:
        if engine.state.iteration in iterations:
            batch = dict(engine.state.batch)
            key = next(k for k, v in batch.items() if v.is_floating_point())
            engine.state.batch = {**batch, key: torch.full_like(batch[key], float("nan"))}

    trainer.add_event_handler(Events.ITERATION_STARTED, spoil)
    return trainer


@pytest.fixture(scope="module")
def whole(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Bundle], Path]:
    """Return a function that gives the folder of a training without any fault."""
    done: dict[str, Path] = {}

    def train(bundle: Bundle) -> Path:
        if bundle.name not in done:
            done[bundle.name] = tmp_path_factory.mktemp(bundle.name) / "whole"
            training(bundle, dataset, done[bundle.name]).run()
        return done[bundle.name]

    return train


@pytest.mark.fault(35)
@each_bundle
def test_numbers_that_are_not_finite(
    bundle: Bundle, whole: Whole, dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One bad step is left out; two in a row stop the run, which then goes on as if unharmed."""
    folder = tmp_path / "stopped"
    trainer = poison(training(bundle, dataset, folder, max_bad_steps=2), 2, 5, 6)
    with pytest.raises(DataError, match="the last of 2 bad steps in a row") as caught:
        trainer.run()
    message = str(caught.value)
    assert message.endswith(
        f"({folder / 'bad_batch.json'}; the last good checkpoint is of iteration 3)"
    )
    report = read_json(folder / "bad_batch.json")
    assert [step["iteration"] for step in report["steps"]] == [5, 6]
    cases = {f"case_{number:03d}" for number in range(6)}
    assert any(case in str(report["steps"][0]["case"]) for case in cases)
    assert "nan" in report["steps"][0]["losses"].values()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("bad_steps") for line in lines] == [None, 1, None, None, 1]
    states = [
        torch.load(folder / name, weights_only=True) for name in ("model.pt", "checkpoint.pt")
    ]
    assert states[1]["iteration"] == 3
    assert_finite(states)

    # the first epoch good, the second stopped: as if nothing had been
    unharmed = tmp_path / "unharmed"
    trainer = poison(training(bundle, dataset, unharmed, max_bad_steps=2), 5, 6)
    with pytest.raises(DataError):
        trainer.run()
    with caplog.at_level(logging.INFO):
        training(bundle, dataset, unharmed).run()
    assert "going on after iteration 3 (it had stopped at 6 on numbers" in caplog.text
    assert_same_run(whole(bundle), unharmed)


def assert_finite(state: Any) -> None:
    if isinstance(state, torch.Tensor):
        assert not state.is_floating_point() or torch.isfinite(state).all()
    elif isinstance(state, (dict, list)):
        for value in state.values() if isinstance(state, dict) else state:
            assert_finite(value)


@pytest.mark.fault(34)
@pytest.mark.fault(29)
@each_bundle
def test_a_truncated_checkpoint_and_a_torn_log(
    bundle: Bundle, whole: Whole, dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in the second epoch, the newest checkpoint and the log cut: the same in the end."""
    flow = training(bundle, dataset, tmp_path)
    trainer = trainer_of(flow)
    handler = flow.parser.get_parsed_content("train#handlers#1")

    def stop(engine: Any) -> None:
        if engine.state.iteration in (4, 5):
            handler.save(engine)
        if engine.state.iteration == 5:
            engine.terminate()

    trainer.add_event_handler(Events.ITERATION_COMPLETED, stop)
    trainer.run()
    newest = tmp_path / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write('{"iteration": 5, "epo')
    with caplog.at_level(logging.INFO):
        training(bundle, dataset, tmp_path).run()
    assert f"falling back to {tmp_path / 'checkpoint.previous.pt'}, iteration 4" in caplog.text
    assert "is torn, and dropped" in caplog.text
    assert_same_run(whole(bundle), tmp_path)


@pytest.mark.fault(33)
@each_bundle
def test_a_resumed_run_lists_all_that_has_changed(
    bundle: Bundle, whole: Whole, dataset: str, tmp_path: Path
) -> None:
    flow = training(bundle, dataset, whole(bundle), max_epochs=3, **bundle.changed)
    with pytest.raises(DataError) as caught:
        trainer_of(flow).run()
    for key, value in bundle.changed.items():
        assert f"{key}: " in str(caught.value), key
        assert f", {value!r} now" in str(caught.value), key
    grown = tiny_dataset(tmp_path / "set", count=7, validation=2, orientation="PSR", roi=True)
    with pytest.raises(DataError, match=r"training cases: 1 added \(case_006\)|2 changed"):
        trainer_of(training(bundle, str(grown), whole(bundle))).run()


@pytest.mark.fault(37)
@each_bundle
def test_training_out_of_memory_says_what_to_change(
    bundle: Bundle, dataset: str, tmp_path: Path
) -> None:
    flow = training(bundle, dataset, tmp_path)
    trainer = trainer_of(flow)
    network = flow.parser.get_parsed_content("network")
    # a real allocation that fails
    network.register_forward_pre_hook(lambda *_: torch.empty(2**46))
    with pytest.raises(DataError) as caught:
        trainer.run()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("iteration 1: out of memory on cpu (peak ")
    assert f"{bundle.small['batch_size']}, " in message
    assert "float32" in message
    first, second = trainer.memory_knobs
    assert f"try a smaller {first} or a smaller {second}; none saved yet" in message
    knobs = flow.parser.get()
    assert {first, second} <= knobs.keys()


@pytest.mark.fault(37)
@each_bundle
def test_sampling_halves_its_batch_and_makes_the_same(
    bundle: Bundle, whole: Whole, dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU: the network runs out of memory at its first batch of the larger size."""
    common = {"ckpt_path": str(whole(bundle) / "model.pt"), "dataset_dir": dataset}
    large, small = (common | knobs for knobs in bundle.sampling)
    run(bundle.name, ["inference"], "infer", output_dir=str(tmp_path / "small"), **small)
    flow = workflow(
        bundle.name, ["inference"], "infer", output_dir=str(tmp_path / "large"), **large
    )
    sizes: list[int] = []

    def refuse(_: Any, inputs: Any) -> None:
        sizes.append(len(inputs[0]))
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")

    flow.parser.get_parsed_content("network").register_forward_pre_hook(refuse)
    with caplog.at_level(logging.WARNING):
        flow.run()
    assert sizes[0] > max(sizes[1:])
    assert "at a time, which gives the same" in caplog.text
    one, two = (volumes(tmp_path / name) for name in ("small", "large"))
    assert one
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)


def test_a_tensorboard_that_cannot_be_written_is_warned_of(
    dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The WGAN has curves and pictures on it."""
    bundle = BUNDLES[0]
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING):
        training(bundle, dataset, tmp_path, max_epochs=1).run()
    assert "no TensorBoard: cannot be written" in caplog.text
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3
    assert (tmp_path / "model.pt").exists()


@pytest.mark.fault(38)
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("kind", ["train", "infer"])
@each_bundle
def test_cuda_without_a_gpu_is_one_line(
    bundle: Bundle, kind: str, whole: Whole, dataset: str, tmp_path: Path
) -> None:
    config = {"train": "train", "infer": "inference"}[kind]
    common = {"dataset_dir": dataset, "output_dir": str(tmp_path / "out")}
    if kind == "infer":
        common["ckpt_path"] = str(whole(bundle) / "model.pt")
    for device in ("cuda", torch.device("cuda:1"), "gpu"):
        with pytest.raises(RuntimeError) as caught:
            workflow(bundle.name, [config], kind, **common, device=device)
        message = str(first_data_error(caught.value))
        assert message.startswith("device: expected a device of this machine (cpu), found ")
        assert "\n" not in message
        assert not (tmp_path / "out").exists()
    # without the knob, the CPU is what there is
    parser = ConfigParser()
    parser.read_config(str(ROOT / bundle.name / "configs" / f"{config}.json"))
    assert parser.get_parsed_content("device").type == "cpu"


@pytest.mark.fault(36)
def test_precision_may_change_between_the_parts(dataset: str, tmp_path: Path) -> None:
    """What a stop on numbers advises: go on in bfloat16, or in fp32."""
    wgan = BUNDLES[0]
    training(wgan, dataset, tmp_path, max_epochs=1, amp=True, amp_dtype="bfloat16").run()
    flow = training(wgan, dataset, tmp_path, amp=False)
    # the first part had no scale to hand on
    trainer_of(flow).critic_scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer_of(flow).run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 6
    assert state["objects"]["critic_scaler"]["scale"] == 8.0
