"""The MC-DPM bundle through MONAI's runner: training, resuming, label folders, refusals."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import read_volume
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import (
    BUNDLES,
    SMALL_MCDPM,
    assert_same_run,
    run,
    volumes,
    workflow,
)
from tests.conftest import same_labels, tiny_dataset

BUNDLE = "medgen3d_mcdpm"


@pytest.fixture(scope="session")
def trained(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mcdpm") / "run"
    train(dataset, folder)
    return folder


def train(dataset: str, folder: Path, **overrides: Any) -> None:
    settings = {**SMALL_MCDPM, **overrides}
    run(BUNDLE, ["train"], dataset_dir=dataset, output_dir=str(folder), **settings)


def sample(weights: Path, output: Path, **overrides: Any) -> Path:
    settings = {"num_samples": 4, "batch_size": 2, "seed": 5, "steps": 2, **overrides}
    run(
        BUNDLE,
        ["inference"],
        "infer",
        ckpt_path=str(weights / "model.pt"),
        output_dir=str(output),
        **settings,
    )
    return output


def test_training_leaves_its_files(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == list(range(1, 7))
    assert {"loss", "mse", "gradient_norm"} <= lines[0].keys()
    # a new network predicts nothing: the first error is the variance of the noise
    assert lines[0]["mse"] == pytest.approx(1.0, abs=0.1)
    assert list((trained / "tensorboard").iterdir())
    assert torch.load(trained / "checkpoint.pt", weights_only=True)["iteration"] == 6
    card = json.loads((trained / "model.json").read_text())
    assert card["sequence"] == {"axis": 2, "frame": [16, 16, 16], "window": 4, "overlap": 2}
    assert card["code"] == {"num_classes": 3, "encoding": "bits"}
    assert card["label_reference"]["volumes"] == 6
    assert card["label_reference"]["presence"] == [1.0, 1.0]


def test_only_what_holds_labels_is_learned(dataset: str, tmp_path: Path) -> None:
    """Labels of the spheres leave a margin: see conftest."""
    settings = {**SMALL_MCDPM, "volume_size": [48, 40, 48]}
    train(dataset, tmp_path / "run", **{**settings, "max_epochs": 1})
    sequence = json.loads((tmp_path / "run" / "model.json").read_text())["sequence"]
    assert sequence["volume_size"] == [48, 40, 48]
    assert all(n < m for n, m in zip(sequence["frame"], sequence["volume_size"], strict=True))
    train(dataset, tmp_path / "whole", **{**settings, "max_epochs": 1, "crop_to_labels": False})
    whole = json.loads((tmp_path / "whole" / "model.json").read_text())
    assert whole["sequence"] == {"axis": 2, "frame": [48, 40, 48], "window": 4, "overlap": 2}
    # what is remembered of the labels does not depend on it
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["label_reference"] == whole["label_reference"]
    out = sample(tmp_path / "run", tmp_path / "out", num_samples=1, height=48)
    label = read_volume(
        out / json.loads((out / "dataset.json").read_text())["training"][0]["label"]
    )
    assert label.array.shape[2] == 48
    assert not label.array[..., : sequence["corner"][2]].any()
    assert not label.array[..., sequence["corner"][2] + sequence["frame"][2] :].any()


def test_defaults_are_the_papers(dataset: str) -> None:
    parser = workflow(BUNDLE, ["train"], dataset_dir=dataset).parser
    for key, value in {
        "window": 8,
        "overlap": 4,
        "probabilities": [0.375, 0.375, 0.25],
        "timesteps": 1000,
        "slicing_axis": "axial",
    }.items():
        assert parser.get_parsed_content(key) == value


def test_training_cut_by_a_signal_goes_on_identically(
    trained: Path, dataset: str, tmp_path: Path
) -> None:
    settings = {**SMALL_MCDPM, "dataset_dir": dataset, "output_dir": str(tmp_path)}
    cut = workflow(BUNDLE, ["train"], **settings)
    trainer = cut.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(
        Events.ITERATION_STARTED(once=4), lambda: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(SystemExit) as stop:
        trainer.run()
    assert stop.value.code == 143
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 4
    train(dataset, tmp_path)
    assert_same_run(trained, tmp_path)


@pytest.mark.parametrize(
    "variant",
    [
        {"objective": "epsilon", "learn_variance": True, "encoding": "one_hot"},
        {"objective": "v", "schedule": "cosine", "encoding": "grey", "slicing_axis": "coronal"},
        {"objective": "classes", "schedule": "cosine"},
        {
            "objective": "classes",
            "schedule": "cosine",
            "self_conditioning": True,
            "time_power": 0.5,
        },
        {"objective": "classes", "schedule": "cosine", "size_conditioning": True},
        {"objective": "flow", "schedule": "flow", "slicing_axis": "sagittal", "shift": 0},
    ],
)
def test_variants_learn_and_resume(variant: dict[str, Any], dataset: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    # the rate is still rising: a hundredth of it at each step
    longer = {**variant, "learning_rate": 0.03, "iterations_per_epoch": 8, "batch_size": 4}
    train(dataset, one, **longer)
    train(dataset, two, **longer, max_epochs=1)
    train(dataset, two, **longer)
    assert_same_run(one, two)
    lines = (one / "metrics.jsonl").read_text().splitlines()
    losses = [record.get("mse", record["loss"]) for record in map(json.loads, lines)]
    assert np.mean(losses[-6:]) < 0.95 * np.mean(losses[:6])
    out = sample(one, tmp_path / "out", num_samples=1, batch_size=1)
    assert errors_of(check_dataset(out)) == []
    sidecar = json.loads(next((out / "provenance").iterdir()).read_text())
    assert sidecar["axis"] == {"coronal": 1, "sagittal": 0}.get(variant.get("slicing_axis"), 2)
    assert sidecar["sampler"] == ("flow" if variant["objective"] == "flow" else "dpm_solver_pp")


def test_sizes_may_be_wanted(dataset: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    train(dataset, run_dir, objective="classes", schedule="cosine", size_conditioning=True)
    card = json.loads((run_dir / "model.json").read_text())
    assert card["network"]["sizes"] == 2
    assert card["size_traits"]["names"] == ["class_1", "class_2"]
    drawn = sample(run_dir, tmp_path / "drawn")
    wanted = sample(run_dir, tmp_path / "wanted", sizes={"class_2": -1.5})
    records = [
        [json.loads(p.read_text()) for p in sorted((out / "provenance").iterdir())]
        for out in (drawn, wanted)
    ]
    assert all(set(r["sizes"]) == {"class_1", "class_2"} for of in records for r in of)
    assert len({r["sizes"]["class_2"] for r in records[0]}) == 4
    assert {r["sizes"]["class_2"] for r in records[1]} == {-1.5}
    assert len({r["sizes"]["class_1"] for r in records[1]}) == 4
    assert all(r["wanted_sizes"] == {"class_2": -1.5} for r in records[1])
    # a folder holds label maps of one kind
    with pytest.raises(RuntimeError) as refusal:
        sample(run_dir, wanted, sizes={"class_2": 1.5})
    found = "wanted_sizes: {'class_2': -1.5} there, {'class_2': 1.5} now"
    assert found in str(first_data_error(refusal.value))


def test_generated_folder_is_a_valid_folder_of_label_maps(trained: Path, tmp_path: Path) -> None:
    out = sample(trained, tmp_path / "out")
    assert errors_of(check_dataset(out)) == []
    content = json.loads((out / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "class_1": 1, "class_2": 2}
    assert content["channel_names"] == {}
    cases = load_dataset(out, images=False).split("training")
    assert [case.name for case in cases] == [f"pair_{i:06d}" for i in range(4)]
    assert not list(out.rglob("images*"))
    for case in cases:
        label = nib.load(case.label or "")
        assert label.get_data_dtype() == np.uint8
        assert label.shape in {(16, 14, 12), (16, 16, 16)}
        np.testing.assert_allclose(label.header.get_zooms(), (1, 1, 1), rtol=1e-6)
        np.testing.assert_array_equal(label.get_sform(), label.get_qform())
        sidecar = json.loads((out / "provenance" / f"{case.name}.json").read_text())
        assert {"weights_sha256", "seed", "index", "sampler", "steps", "medpair_version"} <= set(
            sidecar
        )
        assert sidecar["size"] == list(label.shape)
        assert sidecar["seams"] == sorted(sidecar["seams"])


def test_labels_do_not_depend_on_batch_size(trained: Path, tmp_path: Path) -> None:
    sets = [volumes(sample(trained, tmp_path / str(n), batch_size=n)) for n in (1, 2, 3)]
    assert len(sets[0]) == 4
    assert len({array.tobytes() for array in sets[0].values()}) == 4
    for other in sets[1:]:
        assert other.keys() == sets[0].keys()
        for name, array in sets[0].items():
            assert same_labels(array, other[name])


def test_labels_do_not_depend_on_what_else_is_made(trained: Path, tmp_path: Path) -> None:
    whole = sample(trained, tmp_path / "whole", num_samples=6)
    parts = sample(trained, tmp_path / "parts", num_samples=1, start_index=3)
    sample(trained, parts, num_samples=5, start_index=1, num_workers=1)
    paths = sorted(parts.rglob("*.nii.gz"))
    assert len(paths) == 5
    for path in paths:
        assert path.read_bytes() == (whole / path.relative_to(parts)).read_bytes()
    other = volumes(sample(trained, tmp_path / "other", num_samples=6, seed=6))
    for name, array in volumes(whole).items():
        assert not np.array_equal(array, other[name])


def test_interrupted_generation_goes_on_identically(trained: Path, tmp_path: Path) -> None:
    whole = sample(trained, tmp_path / "whole", num_samples=3)
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    # as after a kill: a label map without its sidecar, another not begun, no dataset.json
    (cut / "dataset.json").unlink()
    for path in [*cut.rglob("pair_000002*"), cut / "provenance" / "pair_000001.json"]:
        path.unlink()
    kept = (cut / "labelsTr" / "pair_000000.nii.gz").stat().st_mtime_ns
    sample(trained, cut, num_samples=3)
    names = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(cut) for path in cut.rglob("*") if path.is_file())
    assert all((whole / name).read_bytes() == (cut / name).read_bytes() for name in names)
    assert (cut / "labelsTr" / "pair_000000.nii.gz").stat().st_mtime_ns == kept


def test_rejected_volumes_are_counted(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="medpair")
    out = sample(trained, tmp_path / "out", num_samples=2, reject=True, attempts=2)
    for path in (out / "provenance").iterdir():
        record = json.loads(path.read_text())
        assert (record["attempt"], record["plausible"], record["attempts"]) == (1, False, 2)
        assert len(record["rejected"]) == 2
    assert "2 label volumes: 4 implausible ones came up, 2 were kept" in caplog.text


def compared(weights: Path, output: Path, dataset: str | None, **overrides: Any) -> Path:
    """Generate two label maps, and compare them with a cohort."""
    settings = {"num_samples": 2, "batch_size": 2, "steps": 1, **overrides}
    run(
        BUNDLE,
        ["inference", "evaluate"],
        "infer",
        ckpt_path=str(weights / "model.pt"),
        dataset_dir=dataset,
        output_dir=str(output),
        **settings,
    )
    return output


def test_label_maps_are_compared_with_a_real_cohort(
    trained: Path, dataset: str, tmp_path: Path
) -> None:
    out = compared(trained, tmp_path / "out", dataset, real_split="validation")
    statistics = json.loads((out / "label_statistics.json").read_text())
    assert (statistics["real"], statistics["volumes"]) == (dataset, 2)


def test_a_real_cohort_is_looked_at_before_anything_is_generated(
    trained: Path, tmp_path: Path
) -> None:
    unlabelled = tiny_dataset(tmp_path / "set", count=2, validation=0)
    content = json.loads((unlabelled / "dataset.json").read_text())
    content["test"] = [content["training"].pop()["image"]]
    (unlabelled / "dataset.json").write_text(json.dumps(content))
    other = tiny_dataset(tmp_path / "other", num_labels=1)
    wrong: dict[str, tuple[Path | None, dict[str, Any]]] = {
        "found no folder there": (tmp_path / "misspelt", {}),
        "dataset_dir: expected a dataset folder, found none": (None, {}),
        "splits: expected some of": (other, {"real_split": "validaton"}),
        "label_group: expected one of": (other, {"real_label_group": "organs"}),
        "labels: expected the network's classes ['class_1', 'class_2'], found ['class_1']": (
            other,
            {},
        ),
        "test[0].label: expected a label": (unlabelled, {"real_split": "test"}),
    }
    for words, (folder, knobs) in wrong.items():
        with pytest.raises(RuntimeError) as caught:
            compared(trained, tmp_path / "out", None if folder is None else str(folder), **knobs)
        assert words in str(first_data_error(caught.value))
        assert not (tmp_path / "out").exists()


def test_a_folder_of_other_labels_is_refused(trained: Path, tmp_path: Path) -> None:
    out = sample(trained, tmp_path / "out", num_samples=1)
    with pytest.raises(RuntimeError) as caught:
        sample(trained, out, num_samples=2, seed=6)
    assert "seed: 5 there, 6 now" in str(first_data_error(caught.value))


def test_resuming_with_other_settings_is_refused(trained: Path, dataset: str) -> None:
    with pytest.raises(RuntimeError) as caught:
        train(dataset, trained, objective="v")
    assert "diffusion.objective: 'epsilon' then, 'v' now" in str(first_data_error(caught.value))


def test_weights_of_another_bundle_are_refused(trained: Path, tmp_path: Path) -> None:
    shutil.copy(trained / "model.pt", tmp_path)
    card = json.loads((trained / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps({"cohort": card["cohort"], "generator": {}}))
    with pytest.raises(RuntimeError) as caught:
        sample(tmp_path, tmp_path / "out")
    assert "expected MC-DPM's settings, found none" in str(first_data_error(caught.value))


def test_a_folder_without_images_is_refused_for_training(trained: Path, tmp_path: Path) -> None:
    out = sample(trained, tmp_path / "out", num_samples=1)
    with pytest.raises(RuntimeError) as caught:
        train(str(out), tmp_path / "run")
    refusal = str(first_data_error(caught.value))
    assert "training[0]" in refusal
    assert '"image"' in refusal


@pytest.mark.parametrize("variant", [[], ["compact"]])
def test_properties_of_training_are_complete(
    variant: list[str], dataset: str, tmp_path: Path
) -> None:
    train = workflow(
        BUNDLE, ["train", *variant], dataset_dir=dataset, output_dir=str(tmp_path), **SMALL_MCDPM
    )
    assert train.check_properties() == []


def test_properties_of_inference_are_complete(trained: Path, tmp_path: Path) -> None:
    infer = workflow(
        BUNDLE,
        ["inference"],
        "infer",
        ckpt_path=str(trained / "model.pt"),
        output_dir=str(tmp_path / "out"),
    )
    assert infer.check_properties() == []


def test_the_command_line_works_from_another_directory(dataset: str, tmp_path: Path) -> None:
    folder = BUNDLES / BUNDLE / "configs"
    runs = [
        {
            "config_file": str(folder / "train.json"),
            "dataset_dir": dataset,
            "output_dir": "run",
            "device": "cpu",
            **{key: json.dumps(value) for key, value in SMALL_MCDPM.items()},
            "attention_levels": "[False,True]",
        },
        {
            "config_file": str(folder / "inference.json"),
            "ckpt_path": "run/model.pt",
            "output_dir": "out",
            "num_samples": "2",
            "steps": "2",
            "device": "cpu",
        },
    ]
    for arguments in runs:
        command = [sys.executable, "-m", "monai.bundle", "run"]
        command += [part for key, value in arguments.items() for part in (f"--{key}", value)]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[-2000:]
    assert errors_of(check_dataset(tmp_path / "out")) == []
    assert len(load_dataset(tmp_path / "out", images=False).split("training")) == 2
