"""Fine-tuning through MONAI's runner: one overlay, one command, another cohort."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from torch import Tensor

from medpair.data.files import read_json, write_json
from medpair.engines.fine_tuning import FineTuning
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
    assert_same_run,
    run,
    workflow,
)
from tests.conftest import tiny_dataset

State = dict[str, Tensor]
# knobs of the first training; its architecture is told to no fine-tuning
BASES: dict[str, dict[str, Any]] = {
    "wgan_sn_mp": {**SMALL_WGAN, "critic_norm": "spectral", "num_upsamples": 3, "latent_size": 6},
    "medgen3d_mcdpm": {
        **SMALL_MCDPM,
        "objective": "classes",
        "schedule": "cosine",
        "patch": 2,
        "slicing_axis": "coronal",
        "size_conditioning": True,
        "sampling": {"evidence": 0.85, "size_offsets": {"alpha": 0.5}},
    },
    "medgen3d_vid2vid": {**SMALL_VID2VID, "contrast_conditioning": True},
    "medgen3d_semantic_refiner": {
        **SMALL_REFINER,
        "views": "separate",
        "sampling": {"refine_steps": 2, "combine": "alternate"},
    },
    "unet_segmentation": SMALL_UNET,
}
LEARNING = {
    "wgan_sn_mp": {},
    "medgen3d_mcdpm": {"learning_rate": 0.03, "iterations_per_epoch": 40, "batch_size": 4},
    "medgen3d_vid2vid": {"learning_rate": 0.002, "iterations_per_epoch": 10},
    "medgen3d_semantic_refiner": {"learning_rate": 0.02, "iterations_per_epoch": 30},
    "unet_segmentation": {"learning_rate": 0.01, "iterations_per_epoch": 20},
}
TUNING: dict[str, Any] = {
    "batch_size": 2,
    "iterations_per_epoch": 2,
    "max_epochs": 2,
    "val_interval": 1,
    "log_interval": 1,
    "seed": 5,
}
BUNDLES = sorted(BASES)
Base = Callable[[str], Path]


def cohort(folder: Path, names: list[str], **geometry: Any) -> str:
    """Write a cohort whose classes have these names, in this order."""
    tiny_dataset(folder, num_labels=len(names), **geometry)
    path = folder / "dataset.json"
    labels = {"background": 0} | {name: value for value, name in enumerate(names, start=1)}
    write_json(path, {**read_json(path), "labels": labels})
    return str(folder)


@pytest.fixture(scope="session")
def first(tmp_path_factory: pytest.TempPathFactory) -> str:
    return cohort(tmp_path_factory.mktemp("tune") / "first", ["alpha", "beta"], count=3)


@pytest.fixture(scope="session")
def second(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another size and spacing; one class more, one of the same name at another place."""
    return cohort(
        tmp_path_factory.mktemp("tune") / "second",
        ["beta", "gamma", "delta", "alpha"],
        count=3,
        size=(40, 20, 14),
        spacing=(0.8, 1.0, 2.5),
        seed=4,
    )


@pytest.fixture(scope="session")
def base(first: str, tmp_path_factory: pytest.TempPathFactory) -> Base:
    """Return a function that trains a bundle once and gives the folder of its weights."""
    done: dict[str, Path] = {}

    def train(bundle: str) -> Path:
        if bundle not in done:
            folder = tmp_path_factory.mktemp("base") / bundle
            knobs = {**BASES[bundle], **LEARNING[bundle]}
            run(bundle, ["train"], dataset_dir=first, output_dir=str(folder), **knobs)
            done[bundle] = folder
        return done[bundle]

    return train


def tune(bundle: str, weights: Path, dataset: str, output: Path, **knobs: Any) -> Any:
    """Return a workflow of a fine-tuning that is told nothing of the architecture."""
    return workflow(
        bundle,
        ["train", "finetune"],
        ckpt_path=str(weights / "model.pt"),
        dataset_dir=dataset,
        output_dir=str(output),
        **{**TUNING, **knobs},
    )


def finish(flow: Any) -> tuple[Any, State]:
    """Run a fine-tuning to its end; return its trainer and the weights before the first step."""
    trainer = flow.parser.get_parsed_content("train#trainer")
    network = flow.parser.get_parsed_content("network")
    before: State = {}

    def remember() -> None:
        before.update({key: value.clone() for key, value in network.state_dict().items()})

    trainer.add_event_handler(Events.ITERATION_STARTED(once=1), remember)
    flow.run()
    return trainer, before


def records(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("bundle", BUNDLES)
def test_another_cohort_takes_over_all_that_it_can(
    bundle: str,
    base: Base,
    second: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = torch.load(base(bundle) / "model.pt", weights_only=True)
    caplog.set_level(logging.INFO, "medpair.engines.fine_tuning")
    flow = tune(bundle, base(bundle), second, tmp_path)
    assert flow.check_properties() == []
    tuning = flow.parser.get_parsed_content("train#handlers#0")
    assert isinstance(tuning, FineTuning)
    part = tuning.parts[0]
    _, before = finish(flow)
    touched = set()
    for key, value in before.items():
        axes = part.own.class_axes(key)
        if part.own.grid_axis(key) is not None:
            continue
        if not axes:
            assert torch.equal(value, given[key].to(value.dtype)), key
        elif len(axes) == 1 and not any(slot.word for slot in axes[0].slots):
            touched.add(key)
            _check_slices(key, value, given[key], axes[0], part.given.class_axes(key)[0])
    assert touched
    text = caplog.text
    assert "(the same: beta, alpha; new: gamma, delta)" in text
    assert ("resampled to the new size: stem.0" in text) == (bundle == "wgan_sn_mp")
    if bundle in ("wgan_sn_mp", "medgen3d_vid2vid"):
        assert re.search(r"checkpoint.pt: \w*critic: \d+ tensors loaded as they are", text)
    card = read_json(tmp_path / "model.json")
    labels = (card.get("cohort") or card["task"])["labels"]
    assert labels == ["background", "beta", "gamma", "delta", "alpha"]
    if bundle == "medgen3d_mcdpm":
        assert card["sequence"]["axis"] == 1
        assert card["diffusion"] == read_json(base(bundle) / "model.json")["diffusion"]
        # how far sizes are off is another matter for other weights
        assert card["sampling"] == {"evidence": 0.85}
    if bundle == "medgen3d_semantic_refiner":
        assert card["sampling"] == {"refine_steps": 2, "combine": "alternate"}


def _check_slices(key: str, own: Tensor, given: Tensor, here: Any, there: Any) -> None:
    """Classes of the same name have the same weights, new ones the mean of the old."""
    place = {1: 2, 4: 1, 0: 0}
    old = {(slot.role, slot.klass): i for i, slot in enumerate(there.slots)}
    for index, slot in enumerate(here.slots):
        mine = own.select(here.dim, index)
        klass = place.get(slot.klass) if slot.klass is not None else None
        if slot.klass in (2, 3):
            both = [given.select(there.dim, old[slot.role, k]) for k in (1, 2)]
            assert torch.allclose(mine, (both[0] + both[1]) / 2), (key, slot)
        else:
            assert torch.equal(mine, given.select(there.dim, old[slot.role, klass])), (key, slot)


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("names", [["beta"], ["other", "names"]])
def test_fewer_and_renamed_classes_train(
    bundle: str, names: list[str], base: Base, tmp_path: Path
) -> None:
    data = cohort(tmp_path / "set", names, count=2)
    finish(tune(bundle, base(bundle), data, tmp_path / "run", max_epochs=1))
    assert len(records(tmp_path / "run")) == 2


@pytest.mark.parametrize("bundle", BUNDLES)
def test_learning_begins_where_it_ended(
    bundle: str, base: Base, second: str, tmp_path: Path
) -> None:
    """On the new cohort the first step of given weights is better than that of new ones."""
    flow = tune(bundle, base(bundle), second, tmp_path / "tuned")
    finish(flow)
    scratch = tune(bundle, base(bundle), second, tmp_path / "scratch")
    scratch.parser.get_parsed_content("train#handlers#0").parts.clear()
    finish(scratch)
    if bundle == "wgan_sn_mp":  # a critic's loss says nothing of the pairs
        losses = [_distance(flow), _distance(scratch)]
    else:
        losses = [records(tmp_path / name)[0]["loss"] for name in ("tuned", "scratch")]
    assert losses[0] < losses[1]


def _distance(flow: Any) -> float:
    """Return how far the mean pair of a generator is from the mean real pair."""
    parser = flow.parser
    network, data = (parser.get_parsed_content(k) for k in ("network", "train#dataset"))
    channels = parser.get_parsed_content("label_channels")
    real = [torch.cat([r["image"], channels.encode(r["label"][None])[0]]) for r in data]
    latent = torch.randn(16, network.latent_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fake = network.train()(latent)
    return float((fake.mean(0) - torch.stack(real).mean(0)).abs().mean())


@pytest.mark.parametrize("bundle", BUNDLES)
def test_frozen_parts_stand_still_and_early_ones_are_slow(
    bundle: str, base: Base, second: str, tmp_path: Path
) -> None:
    flow = tune(bundle, base(bundle), second, tmp_path / "a", max_epochs=1)
    early = flow.parser.get_parsed_content("anatomy").early
    # the parts nearest the data may know the classes: then they are refused, by name
    knows = bundle in ("medgen3d_mcdpm", "medgen3d_vid2vid")
    if knows:
        with pytest.raises(RuntimeError) as caught:
            finish(tune(bundle, base(bundle), second, tmp_path / "b", frozen=2))
        assert "depends on the classes" in str(caught.value.__cause__ or caught.value)
    frozen: Any = list(early[1]) if knows else 1
    parts = early[1] if knows else early[0]
    flow = tune(
        bundle, base(bundle), second, tmp_path / "c", max_epochs=1, frozen=frozen, early_rate=0.25
    )
    trainer, before = finish(flow)
    after = dict(flow.parser.get_parsed_content("network").named_parameters())
    stopped = {key for key in after if any(key.startswith(part + ".") for part in parts)}
    assert stopped
    assert all(torch.equal(before[key], after[key]) for key in stopped)
    moved = {key for key in after if not torch.equal(before[key], after[key])}
    assert moved
    assert not moved & stopped
    optimizer = trainer.state_objects().get("generator_optimizer")
    optimizer = optimizer or trainer.state_objects()["optimizer"]
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates[1] == pytest.approx(0.25 * rates[0])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(after) - len(
        stopped
    )


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_fine_tuning_goes_on_identically(
    bundle: str, base: Base, second: str, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(base(bundle), weights)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    knobs = {"early_rate": 0.5, **({"critic_warmup": 1} if bundle == "wgan_sn_mp" else {})}
    finish(tune(bundle, weights, second, whole, **knobs))
    # a segmenter's rate falls to the last epoch: the run is cut, not made shorter
    flow = tune(bundle, weights, second, cut, **knobs)
    trainer = flow.parser.get_parsed_content("train#trainer")
    checkpoint = flow.parser.get_parsed_content("train#handlers#1")

    def stop() -> None:
        checkpoint.stop_signal = 15

    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=3), stop)
    with pytest.raises(SystemExit):
        trainer.run()
    finish(tune(bundle, weights, second, cut, **knobs))
    assert_same_run(whole, cut)
    # other weights would be another run
    state = torch.load(weights / "model.pt", weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, weights / "model.pt")
    with pytest.raises(RuntimeError) as caught:
        finish(tune(bundle, weights, second, cut, **knobs))
    assert "changes in start: '" in str(first_data_error(caught.value))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_weights_of_another_bundle_are_refused_by_name(
    bundle: str, base: Base, second: str, tmp_path: Path
) -> None:
    other = base(BUNDLES[(BUNDLES.index(bundle) + 1) % len(BUNDLES)])
    with pytest.raises(RuntimeError) as caught:
        finish(tune(bundle, other, second, tmp_path))
    message = str(first_data_error(caught.value))
    assert re.search(r"model.json: expected the card of a .*, found a ", message)
    assert str(other) in message


def test_a_new_critic_may_learn_first(
    base: Base, second: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The generator stands still while the critic learns alone, and learns afterwards."""
    caplog.set_level(logging.INFO, "medpair.engines.fine_tuning")
    for warmup, moves in ((4, False), (3, True)):
        flow = tune(
            "wgan_sn_mp",
            base("wgan_sn_mp"),
            second,
            tmp_path / str(warmup),
            critic_ckpt=None,
            critic_warmup=warmup,
        )
        trainer, before = finish(flow)
        assert trainer.state.iteration == 4
        after = dict(flow.parser.get_parsed_content("network").named_parameters())
        assert any(not torch.equal(before[key], after[key]) for key in after) == moves
        assert records(tmp_path / str(warmup))[0].keys() >= {"generator_loss", "critic_loss"}
    assert "critic: no weights given, begins as drawn" in caplog.text


@pytest.mark.parametrize("bundle", BUNDLES)
def test_our_own_weights_are_the_default(bundle: str, second: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2] / "bundles" / bundle
    knobs = {**TUNING, "iterations_per_epoch": 1, "max_epochs": 1}
    flow = workflow(
        bundle,
        ["train", "finetune"],
        bundle_root=str(root),
        dataset_dir=second,
        output_dir=str(tmp_path),
        **knobs,
    )
    assert flow.check_properties() == []
    part = flow.parser.get_parsed_content("train#handlers#0").parts[0]
    outcome = part.load()
    assert outcome is not None
    assert len(outcome.loaded) > 10
    # digits of other classes mean something else: what was said before is read anew, from zero
    assert outcome.rebuilt == (["previous.weight"] if bundle == "medgen3d_mcdpm" else [])
