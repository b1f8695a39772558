"""The private preset through MONAI's runner: what it spends, says and keeps to itself."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events

from medpair.data.check import check_dataset
from medpair.data.faults import errors_of
from medpair.engines import privacy as privacy_module
from medpair.engines.privacy import PrivacyBudget
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import SMALL_WGAN, assert_same_run, run, workflow

SECRET = 987654321987654321
PRIVATE = {
    **SMALL_WGAN,
    "iterations_per_epoch": 3,
    "n_critic": 2,
    "shift": 1,
    "gain": 0.1,
    "target_epsilon": 5.0,
    "private_seed": SECRET,
}
CONFIGS = ["train", "compact", "wgan_dp"]


def need_opacus() -> None:
    pytest.importorskip("opacus", reason="Opacus is not installed (extra dp)")


def card_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


@pytest.fixture(scope="module")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    need_opacus()
    folder = tmp_path_factory.mktemp("dp") / "run"
    run("wgan_sn_mp", CONFIGS, dataset_dir=dataset, output_dir=str(folder), **PRIVATE)
    return folder


def test_log_and_card_say_what_was_spent(trained: Path) -> None:
    privacy = card_of(trained)["privacy"]
    assert privacy["steps"] == 2 * 3 * 2
    assert privacy["sampling_rate"] == pytest.approx(2 / 6)
    assert privacy["delta"] == pytest.approx(1 / 60)
    assert 4.9 < privacy["epsilon"] <= 5.0
    plan = PrivacyBudget(6, 2, 12, noise_multiplier=privacy["noise_multiplier"])
    step = (plan.noise_multiplier, plan.sample_rate)
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    expected = [plan.epsilon([(*step, 2 * n)]) for n in range(1, 7)]
    assert [line["epsilon"] for line in lines] == pytest.approx(expected, rel=1e-9)
    assert privacy["epsilon"] == pytest.approx(expected[-1], rel=1e-9)


def test_a_generated_cohort_says_what_its_generator_spent(trained: Path, tmp_path: Path) -> None:
    run(
        "wgan_sn_mp",
        ["inference"],
        ckpt_path=str(trained / "model.pt"),
        output_dir=str(tmp_path / "pairs"),
        num_samples=1,
    )
    spent = card_of(trained)["privacy"]
    for name in ("dataset.json", "provenance/pair_000000.json"):
        content = json.loads((tmp_path / "pairs" / name).read_text())
        said = content.get("origin", content)["privacy"]
        assert said == {key: spent[key] for key in said}
        assert {"epsilon", "delta", "unit"} <= set(said)


def test_nothing_released_holds_the_secret_or_the_volumes_statistics(trained: Path) -> None:
    card = card_of(trained)
    assert card["cohort"]["sizes"] == [[32, 16, 16]]
    assert card["cohort"]["intensity"] == [0.0, 1000.0]
    assert "spacing: the median of the training volumes" in card["privacy"]["outside_the_guarantee"]
    for name in ("model.json", "metrics.jsonl"):
        assert str(SECRET) not in (trained / name).read_text()
    model = torch.load(trained / "model.pt", weights_only=True)
    assert all(key.startswith(("stem", "blocks", "head")) for key in model)
    # not one number that comes from unnoised real volumes
    line = json.loads((trained / "metrics.jsonl").read_text().splitlines()[0])
    assert set(line) == {
        "iteration",
        "epoch",
        "seconds_per_iteration",
        "loss",
        "generator_loss",
        "epsilon",
    }


def test_pairs_are_sampled_from_the_private_weights(trained: Path, tmp_path: Path) -> None:
    run(
        "wgan_sn_mp",
        ["inference"],
        "infer",
        ckpt_path=str(trained / "model.pt"),
        output_dir=str(tmp_path / "out"),
        num_samples=2,
    )
    assert errors_of(check_dataset(tmp_path / "out")) == []


def test_an_interrupted_run_goes_on_identically_and_its_card_never_says_too_little(
    trained: Path, dataset: str, tmp_path: Path
) -> None:
    common = {**PRIVATE, "dataset_dir": dataset, "output_dir": str(tmp_path)}
    cut = workflow("wgan_sn_mp", CONFIGS, **common)
    trainer = cut.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=4), lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(SystemExit):
        trainer.run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["iteration"] == 4
    assert state["objects"]["accountant"]["history"][0][2] == 8
    # at the end of the epoch in progress
    assert card_of(tmp_path)["privacy"]["epsilon"] > trainer.epsilon()
    assert card_of(tmp_path)["privacy"]["steps"] == 12
    # the secret comes from the checkpoint, not from this command
    run("wgan_sn_mp", CONFIGS, **{**common, "private_seed": 1})
    assert_same_run(trained, tmp_path)
    assert card_of(tmp_path) == card_of(trained)


def test_deformed_copies_leave_the_guarantee_as_it_is(dataset: str, tmp_path: Path) -> None:
    """What is accounted for is what is drawn from: volumes, each with its copies."""
    need_opacus()
    given = {"dataset_dir": dataset, "output_dir": str(tmp_path), **PRIVATE, "deformed_copies": 2}
    parser = workflow("wgan_sn_mp", CONFIGS, **given).parser
    drawn, budget = (parser.get_parsed_content(name) for name in ("train#records", "budget"))
    assert len(parser.get_parsed_content("train#dataset").volumes) == 18
    assert (len(drawn.records), drawn.rate) == (budget.records, budget.sample_rate) == (6, 2 / 6)


def test_another_budget_is_another_run(trained: Path, dataset: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        run(
            "wgan_sn_mp",
            CONFIGS,
            dataset_dir=dataset,
            output_dir=str(trained),
            **{**PRIVATE, "max_epochs": 3},
        )
    assert "noise_multiplier: " in str(first_data_error(caught.value))


def test_the_preset_alone_is_the_authors_dp_setting(dataset: str, tmp_path: Path) -> None:
    """256 filters, five critic steps, learning rates 1e-4, weights within 0.01, norm 1."""
    need_opacus()
    train = workflow("wgan_sn_mp", ["train", "wgan_dp"], dataset_dir=dataset)
    for key, value in {
        "filters": 256,
        "critic_filters": 256,
        "n_critic": 5,
        "generator_lr": 1e-4,
        "critic_lr": 1e-4,
        "weight_clip": 0.01,
        "clipping_norm": 1.0,
        "amp": False,
    }.items():
        assert train.parser.get_parsed_content(key) == value
    small = workflow(
        "wgan_sn_mp",
        ["train", "wgan_dp"],
        dataset_dir=dataset,
        output_dir=str(tmp_path),
        **SMALL_WGAN,
    )
    assert small.check_properties() == []


def test_without_opacus_the_run_is_refused_at_once(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(privacy_module, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError) as caught:
        workflow("wgan_sn_mp", CONFIGS, dataset_dir=dataset)
    refusal = str(first_data_error(caught.value))
    assert "medpair[dp]" in refusal
    assert "\n" not in refusal
