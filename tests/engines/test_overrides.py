"""Knobs and arguments that do not exist, given from Python as from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import monai.bundle
import pytest
import torch
from monai.bundle import ConfigWorkflow
from tests.bundles.conftest import BUNDLES

from medpair.data.files import DataError, read_json
from medpair.engines.overrides import accepted, refuse_unknown_overrides
from medpair.engines.refusals import first_data_error
from medpair.engines.segmentation import SegmentationTrainer

CONFIGS = sorted(
    (path.parents[1].name, path.stem)
    for path in BUNDLES.glob("*/configs/*.json")
    if path.stem != "metadata"
)
MAIN = {"train", "inference"}
OVER_INFERENCE = {"complete", "evaluate", "multi_gpu_inference"}


def workflow(bundle: str, *configs: str, **overrides: Any) -> ConfigWorkflow:
    folder = BUNDLES / bundle / "configs"
    return ConfigWorkflow(
        config_file=[str(folder / f"{name}.json") for name in configs],
        meta_file=str(folder / "metadata.json"),
        logging_file=False,
        workflow_type="infer" if "inference" in configs else "train",
        **overrides,
    )


def names_of(bundle: str, config: str) -> list[str]:
    """Return the configs that one of the bundle's is used with."""
    if config in MAIN:
        return [config]
    return ["inference" if config in OVER_INFERENCE else "train", config]


def path_of(bundle: str, config: str) -> Path:
    return BUNDLES / bundle / "configs" / f"{config}.json"


def refusal(flow: ConfigWorkflow) -> str:
    """Return what ``initialize`` refuses, as MONAI's own call of it does."""
    with pytest.raises(RuntimeError) as caught:
        flow.initialize()
    error = first_data_error(caught.value)
    assert error is not None, caught.value
    return str(error)


@pytest.mark.fault(23)
@pytest.mark.parametrize(("bundle", "config"), CONFIGS)
def test_every_config_is_accepted_and_a_misspelt_knob_is_not(bundle: str, config: str) -> None:
    names = names_of(bundle, config)
    flow = workflow(bundle, *names)
    flow.parser.parse(reset=True)
    refuse_unknown_overrides(flow)
    # the property that every bundle has, and one that stands in the config itself
    own = next(k for k in read_json(path_of(bundle, config)) if k.isidentifier())
    for right in {"output_dir", own}:
        wrong = f"{right}x"
        message = refusal(workflow(bundle, *names, **{wrong: 8}))
        assert message.startswith(f"{wrong}: expected a knob of ")
        assert f"{names[0]}.json" in message
        assert message.endswith(f"did you mean {right}?")


@pytest.mark.fault(23)
def test_the_public_ways_from_python_refuse_it(tmp_path: Path) -> None:
    files = {
        "config_file": str(path_of("wgan_sn_mp", "inference")),
        "meta_file": str(path_of("wgan_sn_mp", "metadata")),
        "logging_file": str(BUNDLES / "wgan_sn_mp/configs/logging.conf"),
        "bundle_root": str(BUNDLES / "wgan_sn_mp"),
        "output_dir": str(tmp_path / "out"),
        "device": torch.device("cpu"),
        "num_sampels": 8,
    }
    for call in (monai.bundle.run, monai.bundle.create_workflow):
        with pytest.raises(RuntimeError) as caught:
            call(**files, workflow_type="infer")
        message = str(first_data_error(caught.value))
        assert message.startswith("num_sampels: expected a knob of inference.json")
        assert message.endswith("did you mean num_samples?")
    assert not (tmp_path / "out").exists()


@pytest.mark.fault(25)
@pytest.mark.parametrize(
    ("bundle", "configs", "override", "near"),
    [
        ("wgan_sn_mp", ["train"], "train#trainer#max_epoch", "max_epochs"),
        ("wgan_sn_mp", ["train", "wgan_dp"], "train#trainer#critics", "critic"),
        ("wgan_sn_mp", ["inference"], "dataloader#batch_sampler#batchsize", "batch_size"),
        ("unet_segmentation", ["train"], "train#trainer#loss_func", "loss_function"),
        ("unet_segmentation", ["train"], "train#handlers#1#output_dirs", "output_dir"),
        ("medgen3d_mcdpm", ["train"], "optimizer#learning_rate", None),
        ("medgen3d_vid2vid", ["train"], "train#trainer#l1_weigth", "l1_weight"),
        ("medgen3d_semantic_refiner", ["inference"], "inferer#refine_step", "refine_steps"),
    ],
)
def test_a_misspelt_argument_is_named_with_those_that_there_are(
    bundle: str, configs: list[str], override: str, near: str | None
) -> None:
    message = refusal(workflow(bundle, *configs, **{override: 5}))
    assert message.startswith(f"{override}: expected an argument of ")
    assert message.endswith(f"did you mean {near}?" if near else ", weight_decay)")


@pytest.mark.fault(25)
def test_a_misspelt_section_is_named() -> None:
    message = refusal(workflow("wgan_sn_mp", "train", **{"train#dataloaders": 5}))
    assert message.startswith("train#dataloaders: expected an entry of train in train.json")
    assert message.endswith("did you mean dataloader?")
    # what an overlay adds to a section is known with the overlay
    assert "train#records: expected an entry" in refusal(
        workflow("wgan_sn_mp", "train", **{"train#records": 5})
    )


FLAGS = sorted(
    (bundle, config, key)
    for bundle, config in CONFIGS
    for key, value in read_json(path_of(bundle, config)).items()
    if config in MAIN and (isinstance(value, bool) or key == "amp")
)


@pytest.mark.fault(23)
@pytest.mark.parametrize(("bundle", "config", "flag"), FLAGS)
def test_text_for_a_flag_is_refused_in_every_bundle(bundle: str, config: str, flag: str) -> None:
    message = refusal(workflow(bundle, config, **{flag: "false"}))
    assert message == f"{flag}: expected True or False, found the text 'false'"


def test_text_for_a_number_is_refused() -> None:
    message = refusal(workflow("wgan_sn_mp", "train", batch_size="four"))
    assert message == "batch_size: expected a number, found the text 'four'"


def test_configs_of_others_are_left_alone(tmp_path: Path) -> None:
    """No ``initialize`` in a JSON file of the folder: nothing is known of what is meant."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"a": 1, "run": ["$print(@a)"]}))
    flow = ConfigWorkflow(str(path), meta_file=None, logging_file=False, strange=2)
    flow.parser.parse(reset=True)
    refuse_unknown_overrides(flow)
    refuse_unknown_overrides()


def test_arguments_are_those_of_the_class_that_is_extended_too() -> None:
    names = accepted(SegmentationTrainer)
    assert names is not None
    assert {"max_bad_steps", "loss_function", "train_handlers"} <= names
    assert "self" not in names
    assert accepted(torch.optim.Adam) is not None
    assert accepted(print) is None or "sep" in accepted(print)
    assert accepted(dict) is None


@pytest.mark.fault(23)
def test_an_entry_that_something_refers_to_is_a_knob() -> None:
    flow = workflow("wgan_sn_mp", "train", **{"mine": 3, "latent_size": "@mine"})
    flow.parser.parse(reset=True)
    refuse_unknown_overrides(flow)
    flow = workflow("wgan_sn_mp", "train", mine=3)
    flow.parser.parse(reset=True)
    with pytest.raises(DataError, match="mine: expected a knob"):
        refuse_unknown_overrides(flow)
