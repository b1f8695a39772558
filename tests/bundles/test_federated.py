"""Bundles under MONAI's federated client: what is exchanged, what stays, what comes out."""

from __future__ import annotations

import runpy
import signal
import sys
import threading
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject

from medpair import cli
from medpair.data.check import check_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, read_json, write_json
from medpair.data.sampling import torch_generator
from medpair.data.traits import Traits, traits_entry
from medpair.engines.federated_model import pooled_card, write_global_model
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
    run,
    workflow,
)
from tests.bundles.federation import (
    Weights,
    averaged,
    client,
    federate,
    judge,
    scanner_site,
    weights_of,
)
from tests.conftest import tiny_dataset

COMMON: dict[str, Any] = {
    "labels": ["background", "class_1", "class_2"],
    "spacing": [1.0, 1.0, 1.0],
}
FRAME = {"volume_size": [16, 16, 16]}
BUNDLES: dict[str, dict[str, Any]] = {
    "wgan_sn_mp": {**COMMON, **SMALL_WGAN},
    "medgen3d_mcdpm": {**COMMON, **FRAME, **SMALL_MCDPM},
    "medgen3d_vid2vid": {**COMMON, **FRAME, **SMALL_VID2VID},
    "medgen3d_semantic_refiner": {**COMMON, **FRAME, **SMALL_REFINER},
    "unet_segmentation": {**COMMON, "patch_size": [16, 16, 16], **SMALL_UNET},
}
PRIVATE = {"n_critic": 2, "iterations_per_epoch": 3, "target_epsilon": 5.0, "private_seed": 98765}
# cases of the three sites, and the size of their volumes
SITES = ((2, (16, 14, 12)), (3, (14, 16, 12)), (5, (15, 14, 13)))
GENERATED: dict[str, tuple[set[str], dict[str, Any]]] = {
    "wgan_sn_mp": ({"generator", "critic", "averaged"}, {"num_samples": 2}),
    "medgen3d_mcdpm": ({"network", "averaged"}, {"num_samples": 2, "steps": 2}),
    "medgen3d_vid2vid": (
        {"generator", "image_critic", "temporal_critic", "segmenter", "averaged"},
        {"num_samples": 2},
    ),
    "medgen3d_semantic_refiner": (
        {"network", "averaged"},
        {"num_samples": 2, "refine_steps": 1, "grid_steps": 4},
    ),
}

# so that six steps, in which the learning rate rises, are worth comparing
FASTER = {
    "medgen3d_mcdpm": {"learning_rate": 0.05},
    "medgen3d_semantic_refiner": {"learning_rate": 0.05},
}


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three folders of one kind, of unequal numbers and sizes."""
    root = tmp_path_factory.mktemp("sites")
    return [
        str(tiny_dataset(root / f"site_{i}", count=count, size=size, seed=i))
        for i, (count, size) in enumerate(SITES)
    ]


def same(one: Weights, two: Weights) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def refusal(caught: Any) -> str:
    return str(first_data_error(caught.value))


@pytest.mark.parametrize("bundle", [*BUNDLES, "wgan_dp"])
def test_a_federation_of_one_site_is_plain_training(
    bundle: str, dataset: str, tmp_path: Path
) -> None:
    """Two rounds of an epoch, the client started again in between, equal two epochs to the bit."""
    overlays: list[str] = []
    knobs: dict[str, Any] = {"dataset_dir": dataset}
    if bundle == "wgan_dp":
        pytest.importorskip("opacus", reason="Opacus is not installed (extra dp)")
        overlays, bundle, knobs = ["compact", "wgan_dp"], "wgan_sn_mp", {**knobs, **PRIVATE}
    knobs = {**BUNDLES[bundle], **knobs}
    plain = {key: value for key, value in knobs.items() if key != "labels"}
    run(bundle, ["train", *overlays], output_dir=str(tmp_path / "plain"), **plain)
    for _ in range(2):
        algo = client(bundle, overlays, output_dir=str(tmp_path / "site"), **knobs)
        weights, _ = federate([algo], [6], 1)
        # what NVIDIA FLARE weighs by is of this round alone, also after the restart
        executed = algo.get_weights().statistics["num_executed_iterations"]
        assert executed == algo.trainer.state.epoch_length
    made = write_global_model(weights, [tmp_path / "site" / "model.json"], tmp_path / "made")
    one, two = (torch.load(p, weights_only=True) for p in (made, tmp_path / "plain" / "model.pt"))
    assert one.keys() == two.keys()
    for key in one:  # BatchNorm's statistics come from other latent vectors
        assert torch.equal(one[key], two[key]) or "running" in key, key
    cards = [read_json(tmp_path / name / "model.json") for name in ("made", "plain")]
    assert cards[0] == cards[1]
    assert not (tmp_path / "site" / "model.pt").exists()


@pytest.mark.parametrize("bundle", GENERATED)
def test_three_sites_make_one_generator(bundle: str, sites: list[str], tmp_path: Path) -> None:
    knobs = {**BUNDLES[bundle], **FASTER.get(bundle, {})}
    algos = [
        client(bundle, dataset_dir=site, output_dir=str(tmp_path / f"run_{i}"), **knobs)
        for i, site in enumerate(sites)
    ]
    counts = [count for count, _ in SITES]
    untrained = weights_of(algos[0])
    begun: list[Weights] = []
    for algo in algos:
        algo.trainer.add_event_handler(Events.STARTED, lambda a: begun.append(weights_of(a)), algo)
    first, sent = federate(algos, counts, 1)
    parts, settings = GENERATED[bundle]
    assert {key.split(".")[0] for key in first} == parts
    # every part was trained, differently at each site, and is averaged
    for part in parts:
        keys = [key for key in first if key.startswith(part) and first[key].is_floating_point()]
        assert any(not torch.equal(sent[0][key], sent[1][key]) for key in keys)
        assert any(not torch.equal(begun[0][key], sent[0][key]) for key in keys)
    key = next(key for key in first if key.startswith("averaged") and key.endswith("weight"))
    expected = (2 * sent[0][key] + 3 * sent[1][key] + 5 * sent[2][key]) / 10
    torch.testing.assert_close(first[key], expected)
    begun.clear()
    for algo in algos:
        algo.train(ExchangeObject(weights={key: value.clone() for key, value in first.items()}))
    # the second round begins with what the server averaged, not with what the sites had
    assert len(begun) == 3
    assert all(same(weights, first) for weights in begun)
    sent = [weights_of(algo) for algo in algos]
    weights = averaged(sent, counts)
    if hasattr(algos[0].trainer, "denoiser"):
        batches = [next(iter(algo.trainer.data_loader)) for algo in algos]
        start, *losses, last = (
            pooled_loss(algos[0].trainer, batches, state) for state in (untrained, *sent, weights)
        )
        assert last < start - 0.02
        assert last <= sum(losses) / len(losses)
    cards = [tmp_path / f"run_{i}" / "model.json" for i in range(3)]
    made = write_global_model(weights, cards, tmp_path / "global")
    card = read_json(made.with_suffix(".json"))
    assert sorted(card["cohort"]["sizes"]) == sorted(list(s) for n, s in SITES for _ in range(n))
    if bundle in ("medgen3d_vid2vid", "medgen3d_semantic_refiner"):
        settings = {**settings, "dataset_dir": sites[2]}
    out = tmp_path / "out"
    run(bundle, ["inference"], "infer", ckpt_path=str(made), output_dir=str(out), **settings)
    assert errors_of(check_dataset(out)) == []
    assert len(read_json(out / "dataset.json")["training"]) == 2


def pooled_loss(trainer: Any, batches: list[Any], weights: Weights) -> float:
    """Return the mean loss of weights on a batch of every site, with the same noise."""
    trainer.network.load_state_dict(weights)
    losses = [
        trainer.learning(batch, torch_generator(7, number, draw))["loss"].item()
        for number, batch in enumerate(batches)
        for draw in range(3)
    ]
    return sum(losses) / len(losses)


def test_the_global_segmenter_is_better_than_the_best_site_alone(tmp_path: Path) -> None:
    """Scanners of opposite contrast: one site has the first, one the second, a small one both."""
    contrasts, counts = ([4.0], [-4.0], [4.0, -4.0]), [5, 3, 2]
    folders = [
        scanner_site(tmp_path / f"site_{i}", contrast, (count, 1), seed=10 + i)
        for i, (contrast, count) in enumerate(zip(contrasts, counts, strict=True))
    ]
    pooled = scanner_site(tmp_path / "pooled", [4.0, -4.0], (1, 8), seed=99)
    knobs: dict[str, Any] = {
        "labels": ["background", "box", "ball"],
        "spacing": [1.0, 1.0, 1.0],
        "patch_size": [16, 16, 16],
        "channels": [8, 16, 16, 16],
        "iterations_per_epoch": 10,
        "max_epochs": 6,
        "val_interval": 1000,
        "learning_rate": 0.01,
        "rotation_degrees": 0.0,
        "shear_degrees": 0.0,
    }

    def sites(name: str) -> list[MonaiAlgo]:
        return [
            client(
                "unet_segmentation",
                dataset_dir=folder,
                output_dir=str(tmp_path / f"{name}_{i}"),
                **knobs,
            )
            for i, folder in enumerate(folders)
        ]

    judged = {**knobs, "dataset_dir": pooled, "output_dir": str(tmp_path / "judged")}
    alone = [judge(federate([algo], [1], 6)[0], **judged) for algo in sites("alone")]
    weights, _ = federate(sites("site"), counts, 6)
    assert judge(weights, **judged) > max(alone) + 0.05
    torch.save({"model": weights, "train_conf": {}}, tmp_path / "FL_global_model.pt")
    cards = [tmp_path / f"site_{i}" / "model.json" for i in range(3)]
    made = write_global_model(tmp_path / "FL_global_model.pt", cards, tmp_path / "global")
    run(
        "unet_segmentation",
        ["inference", "evaluate"],
        "infer",
        ckpt_path=str(made),
        dataset_dir=pooled,
        output_dir=str(tmp_path / "scores"),
    )
    scores = read_json(tmp_path / "scores" / "scores.json")["summary"]["volume"]["mean"]["dsc"]
    assert scores["n"] == 8
    assert scores["mean"] > max(alone)


def test_differences_give_the_same_global_weights(sites: list[str], tmp_path: Path) -> None:
    bundle = "medgen3d_mcdpm"
    knobs = {"dataset_dir": sites[0], **BUNDLES[bundle]}
    whole = client(bundle, output_dir=str(tmp_path / "whole"), **knobs)
    start = weights_of(whole)
    weights, _ = federate([whole], [1], 1)
    differing = client(
        bundle, output_dir=str(tmp_path / "diff"), send_weight_diff=True, evaluates=False, **knobs
    )
    differing.train(ExchangeObject(weights={key: value.numpy() for key, value in start.items()}))
    difference = differing.get_weights().weights
    for key in start:
        torch.testing.assert_close(start[key] + difference[key], weights[key])


def test_a_client_in_a_thread_leaves_the_process_alone(sites: list[str], tmp_path: Path) -> None:
    before = (sys.excepthook, signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    found: list[Any] = []

    def at_work(algo: MonaiAlgo) -> None:
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
        found.append((sys.excepthook, *handlers))

    def work() -> None:
        knobs = {"dataset_dir": sites[0], **BUNDLES["unet_segmentation"]}
        algo = client("unet_segmentation", output_dir=str(tmp_path), evaluates=True, **knobs)
        algo.trainer.add_event_handler(Events.ITERATION_COMPLETED, at_work, algo)
        weights = weights_of(algo)
        for _ in range(2):
            metrics = algo.evaluate(ExchangeObject(weights=weights)).metrics
            algo.train(ExchangeObject(weights=weights))
            weights = weights_of(algo)
        algo.finalize()
        found.append(metrics["val_mean_dice"])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(found) == 2 * 2 + 1
    assert all(state == before for state in found[:-1])
    assert 0 <= found[-1] <= 1
    # in the main thread too, signals are the client's
    knobs = {"dataset_dir": sites[0], **BUNDLES["unet_segmentation"]}
    algo = client("unet_segmentation", output_dir=str(tmp_path / "main"), **knobs)
    algo.trainer.add_event_handler(Events.ITERATION_COMPLETED, at_work, algo)
    federate([algo], [1], 1)
    assert found[-1] == before


def test_a_site_that_joins_late_keeps_the_average_it_is_sent(
    sites: list[str], tmp_path: Path
) -> None:
    bundle = "medgen3d_mcdpm"
    knobs = {"dataset_dir": sites[0], **BUNDLES[bundle], "learning_rate": 0.0}
    algo = client(bundle, output_dir=str(tmp_path), **knobs)
    weights = weights_of(algo)
    key = next(key for key in weights if key.startswith("averaged") and key.endswith("weight"))
    weights[key] += 1.0
    algo.train(ExchangeObject(weights=weights))
    network, average = (weights_of(algo)[k] for k in (key.replace("averaged", "network"), key))
    # three updates of a network that stands still
    share = algo.trainer.averaged.decay**3
    assert share > 0.99
    torch.testing.assert_close(average - network, torch.full_like(network, share))


def test_a_federation_begins_from_given_weights(sites: list[str], tmp_path: Path) -> None:
    bundle = "medgen3d_mcdpm"
    knobs = {"dataset_dir": sites[0], **BUNDLES[bundle]}
    weights, _ = federate([client(bundle, output_dir=str(tmp_path / "one"), **knobs)], [1], 1)
    made = write_global_model(weights, [tmp_path / "one" / "model.json"], tmp_path / "made")
    given = torch.load(made, weights_only=True)
    algo = client(bundle, output_dir=str(tmp_path / "two"), ckpt_path=str(made), **knobs)
    begun = weights_of(algo)
    for part in ("network", "averaged"):
        assert all(torch.equal(begun[f"{part}.{key}"], value) for key, value in given.items())
    # the server's file, written by the bundle alone
    written = workflow(
        bundle,
        ["train", "federated"],
        output_dir=str(tmp_path / "two"),
        ckpt_path=str(made),
        **knobs,
    )
    written.run_id = "write_initial"
    written.run()
    assert same(torch.load(tmp_path / "two" / "initial.pt", weights_only=True), begun)
    # a round does not go back to them
    fresh = {key: torch.zeros_like(value) for key, value in begun.items()}
    seen: list[Weights] = []
    algo.trainer.add_event_handler(Events.STARTED, lambda: seen.append(weights_of(algo)))
    algo.train(ExchangeObject(weights=fresh))
    assert same(seen[0], fresh)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"labels": None}, "labels: expected a value that all sites share, found null"),
        ({"spacing": None}, "spacing: expected a value that all sites share, found null"),
        ({"patch_size": None}, "patch_size: expected a value that all sites share"),
        ({"patch_size": [16, 16]}, "patch_size: expected three positive numbers, found [16, 16]"),
        ({"labels": ["background", "class_2", "class_1"]}, "dataset.json: labels: expected the"),
    ],
)
def test_a_site_that_does_not_fit_is_refused(
    changed: dict[str, Any], expected: str, sites: list[str], tmp_path: Path
) -> None:
    knobs = {"dataset_dir": sites[0], **BUNDLES["unet_segmentation"], **changed}
    with pytest.raises(RuntimeError) as caught:
        client("unet_segmentation", output_dir=str(tmp_path), **knobs)
    assert expected in refusal(caught)


@pytest.mark.parametrize("key", ["channel_names", "modality"])
def test_ct_needs_one_range_for_all_sites(tmp_path: Path, key: str) -> None:
    folder = tiny_dataset(tmp_path / "ct")
    content = read_json(folder / "dataset.json")
    del content["channel_names"]
    write_json(folder / "dataset.json", {**content, key: {"0": "CT"}})
    knobs = {"dataset_dir": str(folder), **BUNDLES["medgen3d_vid2vid"]}
    with pytest.raises(RuntimeError) as caught:
        client("medgen3d_vid2vid", output_dir=str(tmp_path / "run"), **knobs)
    assert "intensity: expected the range (low, high) of CT numbers" in refusal(caught)
    algo = client("medgen3d_vid2vid", output_dir=str(tmp_path / "run"), intensity=[0, 400], **knobs)
    cohort, volumes = algo.train_workflow.parser.get_parsed_content("training_data")
    assert cohort.intensity == (0.0, 400.0)
    assert -1 < max(volume.image.min() for volume in volumes) < 1  # not each its own range


@pytest.mark.parametrize(
    "bundle", ["medgen3d_mcdpm", "medgen3d_vid2vid", "medgen3d_semantic_refiner"]
)
def test_sites_do_not_divide_what_has_no_label(
    bundle: str, sites: list[str], tmp_path: Path
) -> None:
    knobs = {"dataset_dir": sites[0], **BUNDLES[bundle], "unlabelled_classes": 2}
    with pytest.raises(RuntimeError) as caught:
        client(bundle, output_dir=str(tmp_path), **knobs)
    assert "unlabelled_classes: expected 0 in a federation" in refusal(caught)


def test_rounds_beyond_the_plan_and_other_runs_are_refused(
    sites: list[str], tmp_path: Path
) -> None:
    bundle = "unet_segmentation"
    knobs = {"dataset_dir": sites[0], **BUNDLES[bundle], "output_dir": str(tmp_path)}
    algo = client(bundle, **{**knobs, "max_epochs": 1})
    federate([algo], [1], 1)
    with pytest.raises(DataError, match="max_epochs: expected the epochs of all rounds"):
        federate([algo], [1], 1)
    plain = {key: value for key, value in knobs.items() if key != "labels"}
    with pytest.raises(RuntimeError) as caught:
        run(bundle, ["train"], **{**plain, "max_epochs": 1})
    assert "federated: True then, None now" in refusal(caught)


def test_cards_that_disagree_and_other_weights_are_refused(
    sites: list[str], tmp_path: Path
) -> None:
    bundle = "unet_segmentation"
    algo = client(bundle, output_dir=str(tmp_path / "one"), dataset_dir=sites[0], **BUNDLES[bundle])
    weights, _ = federate([algo], [1], 1)
    card = tmp_path / "one" / "model.json"
    other = tmp_path / "other.json"
    content = read_json(card)
    write_json(other, {**content, "task": {**content["task"], "spacing": [2.0, 1.0, 1.0]}})
    with pytest.raises(DataError, match=r"other.json: spacing: expected \[1.0, 1.0, 1.0\] as in"):
        pooled_card([card, other])
    # how to sample is agreed on; trainings of older versions did not write that they say nothing
    write_json(other, {**content, "sampling": {}})
    assert pooled_card([card, other])["task"] == content["task"]
    write_json(other, {**content, "sampling": {"refine_steps": 3}})
    with pytest.raises(DataError, match=r"other.json: .*expected .* as in .*one/model.json, found"):
        pooled_card([card, other])
    key = next(iter(weights))
    short = {name: value for name, value in weights.items() if name != key}
    with pytest.raises(DataError, match=f"Missing key.*{key}"):
        write_global_model(short, [card], tmp_path / "made")
    assert not (tmp_path / "made").exists()


def test_traits_of_all_sites_are_pooled_within_sites(tmp_path: Path) -> None:
    """Scores are told relative to a site's own mean: where sites differ is no part of them."""
    rng = np.random.default_rng(0)
    noise = rng.multivariate_normal([0, 0], [[1.0, 0.9], [0.9, 1.0]], 300)
    cards, parts = [], (noise[:100], noise[100:])
    for number, part in enumerate(parts):
        traits = Traits.fit(["a", "b"], 0.5 * (part - part.mean(0)) + 5 * number)
        cohort = {"name": str(number), "licence": "", "intensity": [0, 1]}
        content = {
            "cohort": {**cohort, "sizes": [[8, 8, 8]] * len(part)},
            "contrast_traits": traits_entry(traits),
            "size_traits": None,
        }
        cards.append(tmp_path / f"{number}.json")
        write_json(cards[-1], content)
    pooled = pooled_card(cards)
    assert pooled["size_traits"] is None
    found = Traits.from_json(**pooled["contrast_traits"])
    assert found.names == ("a", "b")
    np.testing.assert_allclose(found.mean, 5 * 2 / 3, rtol=1e-5)
    np.testing.assert_allclose(found.deviation, 0.5, rtol=0.1)
    root = np.array(found.root)
    np.testing.assert_allclose(root @ root, [[1.0, 0.9], [0.9, 1.0]], atol=0.03)


def test_the_client_script_of_the_documents(
    sites: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``docs/federated/client.py`` talks to a stand-in for FLARE as to FLARE."""
    bundle = "medgen3d_mcdpm"
    knobs = {"dataset_dir": sites[1], **BUNDLES[bundle]}
    start = weights_of(client(bundle, output_dir=str(tmp_path / "start"), **knobs))
    sent: list[Any] = [SimpleNamespace(params=start)]
    flare = types.ModuleType("nvflare.client")
    flare.init = lambda: None  # type: ignore[attr-defined]
    flare.get_site_name = lambda: "site-1"  # type: ignore[attr-defined]
    flare.is_running = lambda: len(sent) < 3  # type: ignore[attr-defined]
    flare.receive = lambda: SimpleNamespace(  # type: ignore[attr-defined]
        params={key: value.numpy().copy() for key, value in sent[-1].params.items()}
    )
    flare.send = sent.append  # type: ignore[attr-defined]
    flare.FLModel = SimpleNamespace  # type: ignore[attr-defined]
    package = types.ModuleType("nvflare")
    package.client = flare  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nvflare", package)
    monkeypatch.setitem(sys.modules, "nvflare.client", flare)
    write_json(tmp_path / "site.json", {**knobs, "output_dir": str(tmp_path / "site")})
    root = Path(__file__).parents[2]
    script = root / "docs" / "federated" / "client.py"
    words = [str(script), str(root / "bundles" / bundle), str(tmp_path / "site.json"), "1"]
    monkeypatch.setattr(sys, "argv", words)
    runpy.run_path(str(script), run_name="__main__")
    assert [model.meta for model in sent[1:]] == [{"NUM_STEPS_CURRENT_ROUND": 3}] * 2
    algo = client(bundle, output_dir=str(tmp_path / "own"), **knobs)
    algo.train(ExchangeObject(weights=start))
    algo.train(ExchangeObject(weights=weights_of(algo)))
    assert same(sent[-1].params, weights_of(algo))


def test_the_verb_writes_the_model(
    sites: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = "unet_segmentation"
    algo = client(bundle, output_dir=str(tmp_path), dataset_dir=sites[0], **BUNDLES[bundle])
    weights, _ = federate([algo], [1], 1)
    torch.save({"model": weights}, tmp_path / "FL_global_model.pt")
    words = ["global_model", str(tmp_path / "FL_global_model.pt"), str(tmp_path / "model.json")]
    monkeypatch.setattr(sys, "argv", ["medpair", *words, "--output_dir", str(tmp_path / "out")])
    cli.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "model.pt")
    assert same(torch.load(tmp_path / "out" / "model.pt", weights_only=True), weights)
