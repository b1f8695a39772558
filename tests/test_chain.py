"""MedGen3D's stages one after the other: training, generating, going on, own label maps."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fire.parser import DefaultParseValue

from medpair import chain
from medpair.chain import COMPLETION, IMAGES, LABELS, REFINER, find_bundles, generate_medgen3d
from medpair.cli import generate
from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, read_json, read_volume, write_json, write_volume
from tests.bundles.conftest import BUNDLES, SMALL_MCDPM, SMALL_REFINER, SMALL_VID2VID
from tests.conftest import tiny_dataset

Commands = list[tuple[str, list[str], dict[str, Any]]]
SMALL: dict[str, dict[str, Any]] = {
    LABELS: {"steps": 1, **{f"train_{k}": v for k, v in SMALL_MCDPM.items()}},
    IMAGES: {f"train_{k}": v for k, v in SMALL_VID2VID.items()},
    REFINER: {
        "refine_steps": 1,
        "grid_steps": 20,
        **{f"train_{k}": v for k, v in SMALL_REFINER.items()},
    },
}
for _options in SMALL.values():
    _options["train_max_epochs"] = 1
CPU = {"device": "cpu"}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """Run nothing; return what would have been run: bundle, configs, knobs."""
    asked: Commands = []

    def note(bundle: Path, configs: Any, knobs: Any) -> None:
        asked.append((bundle.name, list(configs), dict(knobs)))

    monkeypatch.setattr(chain, "run_bundle", note)
    return asked


def stamps(folder: Path) -> dict[Path, int]:
    """Return when every file was written, but for the lists of a folder's cases."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "dataset.json")
    return {path: path.stat().st_mtime_ns for path in files}


def test_all_stages_from_a_cohort(in_this_process: list[str], tmp_path: Path) -> None:
    cohort = tiny_dataset(tmp_path / "cohort", count=3)
    output = tmp_path / "out"

    def made(count: int) -> Path:
        return generate_medgen3d(
            output, BUNDLES, count, cohort, training=CPU, sampling=CPU, options=SMALL
        )

    assert made(2) == output / "pairs"
    stages = [LABELS, IMAGES, REFINER]
    assert in_this_process == [
        f"{kind} {name}" for name in stages for kind in ("train", "generate")
    ]
    for name in ("labels", "images", "pairs"):
        assert errors_of(check_dataset(output / name)) == []
        cases = load_dataset(output / name, images=name != "labels").split("training")
        assert [case.name for case in cases] == ["pair_000000", "pair_000001"]
    # the same label maps all the way, and each pair knows how it came about
    for case in load_dataset(output / "pairs").split("training"):
        maps = {(output / n / "labelsTr" / f"{case.name}.nii.gz") for n in ("labels", "pairs")}
        assert len({path.read_bytes() for path in maps}) == 1
        record = read_json(output / "pairs" / "provenance" / f"{case.name}.json")
        line = [record, record["made_from"], record["made_from"]["made_from"]]
        assert [step["generator"] for step in line] == [REFINER, IMAGES, LABELS]

    before = stamps(output)
    in_this_process.clear()
    made(2)
    assert in_this_process == [f"generate {name}" for name in stages]
    assert stamps(output) == before
    # more of them: those that are there stay
    made(3)
    assert len(load_dataset(output / "pairs").split("training")) == 3
    after = stamps(output)
    assert {path: after[path] for path in before} == before

    # one's own label maps begin at the second stage, with the weights that are there
    maps = tmp_path / "maps"
    shutil.copytree(tiny_dataset(tmp_path / "other", count=2, validation=0, seed=4), maps)
    content = read_json(maps / "dataset.json")
    content |= {
        "training": [{"label": case["label"]} for case in content["training"]],
        "channel_names": {},
    }
    (maps / "dataset.json").write_text(json.dumps(content))
    shutil.rmtree(maps / "imagesTr")
    in_this_process.clear()
    own = generate_medgen3d(
        tmp_path / "own",
        BUNDLES,
        labels=maps,
        models=output / "models",
        sampling=CPU,
        options={REFINER: {"refine_steps": 1, "grid_steps": 20}},
    )
    assert in_this_process == [f"generate {IMAGES}", f"generate {REFINER}"]
    assert not (tmp_path / "own" / "labels").exists()
    assert errors_of(check_dataset(own)) == []
    assert [c.name for c in load_dataset(own).split("training")] == ["case_000", "case_001"]
    for path in (own / "labelsTr").iterdir():
        assert (
            path.read_bytes() == (tmp_path / "own" / "images" / "labelsTr" / path.name).read_bytes()
        )


def test_what_has_no_label_is_generated_around_the_label_maps(
    in_this_process: list[str], tmp_path: Path
) -> None:
    """Stage 1 learns what has a label; a network of its own, what is around it."""
    cohort, output = tiny_dataset(tmp_path / "cohort", count=3), tmp_path / "out"
    small = {f"train_{k}": v for k, v in SMALL_MCDPM.items()}
    completing = {"steps": 1, **small, "train_max_epochs": 1, "train_patch": 1}
    more = {COMPLETION: completing}
    training = {**CPU, "unlabelled_classes": 2}
    generate_medgen3d(
        output, BUNDLES, 2, cohort, training=training, sampling=CPU, options={**SMALL, **more}
    )
    made = [f"{kind} {LABELS}" for kind in ("train", "generate")]
    steps = [f"train {IMAGES}", *made, f"generate {IMAGES}"]
    assert in_this_process == [*made, *steps, f"train {REFINER}", f"generate {REFINER}"]
    names = {
        name: load_dataset(output / name, images=False).labels().names
        for name in ("labels", "completed", "images", "pairs")
    }
    known = names["labels"]
    assert names["pairs"] == known
    assert names["completed"] == names["images"] == (*known, "unlabelled_1", "unlabelled_2")
    record = read_json(output / "pairs" / "provenance" / "pair_000001.json")
    line = [record]
    while "made_from" in line[-1]:
        line.append(line[-1]["made_from"])
    assert [step["generator"] for step in line] == [REFINER, IMAGES, COMPLETION, LABELS]
    before = stamps(output)
    in_this_process.clear()
    generate_medgen3d(
        output, BUNDLES, 2, cohort, training=training, sampling=CPU, options={**SMALL, **more}
    )
    assert in_this_process == [f"generate {n}" for n in (LABELS, LABELS, IMAGES, REFINER)]
    assert stamps(output) == before

    # one's own label maps are completed by the weights that are there
    maps = tmp_path / "maps"
    shutil.copytree(output / "labels", maps)
    shutil.rmtree(maps / "provenance")
    own = generate_medgen3d(
        tmp_path / "own",
        BUNDLES,
        labels=maps,
        models=output / "models",
        sampling=CPU,
        options={COMPLETION: {"steps": 1}, REFINER: {"refine_steps": 1, "grid_steps": 20}},
    )
    assert load_dataset(own).labels().names == known
    assert (tmp_path / "own" / "completed" / "labelsTr" / "pair_000000.nii.gz").exists()

    # those of another list, too, and those that have images are as these say
    content = read_json(maps / "dataset.json")
    write_json(maps / "dataset.json", content | {"training": [], "validation": content["training"]})
    other = {"split": "validation"}
    last = generate_medgen3d(
        tmp_path / "other",
        BUNDLES,
        labels=maps,
        models=output / "models",
        sampling=CPU,
        options={
            COMPLETION: {"steps": 1},
            IMAGES: other,
            REFINER: {"refine_steps": 1, "grid_steps": 20, **other},
        },
    )
    completed = load_dataset(tmp_path / "other" / "completed", images=False)
    assert len(completed.split("validation")) == len(load_dataset(last).split("validation")) == 2
    with pytest.raises(DataError, match=f"^options: {COMPLETION}: expected none"):
        generate_medgen3d(
            tmp_path / "drawn",
            BUNDLES,
            labels=cohort,
            models=output / "models",
            options={COMPLETION: {"steps": 1}},
        )


def test_each_stage_gets_its_knobs(commands: Commands, tmp_path: Path) -> None:
    pairs = generate_medgen3d(
        tmp_path / "out",
        BUNDLES,
        num_samples=5,
        dataset=tmp_path / "set",
        preset="compact",
        training={"slicing_axis": "coronal", "label_group": "organs"},
        sampling={"seed": 7},
        options={LABELS: {"steps": 3, "train_max_epochs": 9}, REFINER: {"refine_steps": 4}},
        label_group="organs",
    )
    assert pairs == tmp_path / "out" / "pairs"
    assert [(name, configs) for name, configs, _ in commands] == [
        (name, configs)
        for name in (LABELS, IMAGES, REFINER)
        for configs in (["train", "compact"], ["inference"])
    ]
    knobs = [knobs for _, _, knobs in commands]
    models = tmp_path / "out" / "models"
    for number, name in enumerate((LABELS, IMAGES, REFINER)):
        assert knobs[2 * number]["output_dir"] == str(models / name)
        assert knobs[2 * number]["dataset_dir"] == str(tmp_path / "set")
        assert knobs[2 * number]["label_group"] == "organs"
        assert knobs[2 * number + 1]["ckpt_path"] == str(models / name / "model.pt")
        assert knobs[2 * number + 1]["seed"] == 7
    assert [k.get("slicing_axis") for k in knobs[::2]] == ["coronal", "coronal", None]
    assert [k.get("max_epochs") for k in knobs] == [9, None, None, None, None, None]
    assert [k.get("steps") for k in knobs[1::2]] == [3, None, None]
    assert [k.get("refine_steps") for k in knobs[1::2]] == [None, None, 4]
    assert [k.get("num_samples") for k in knobs[1::2]] == [5, None, None]
    # generated label maps are merged already
    folders = [str(tmp_path / "out" / name) for name in ("labels", "images")]
    assert [k.get("dataset_dir") for k in knobs[1::2]] == [None, *folders]
    assert all("label_group" not in k for k in knobs[1::2])


def test_the_bundles_own_weights_are_the_default(commands: Commands, tmp_path: Path) -> None:
    options = {"labels": tmp_path / "maps", "label_group": "organs"}
    generate_medgen3d(tmp_path / "out", BUNDLES, **options)
    assert [name for name, _, _ in commands] == [IMAGES, REFINER]
    paths = [knobs["ckpt_path"] for _, _, knobs in commands]
    assert paths == [str(BUNDLES / n / "models" / "model.pt") for n in (IMAGES, REFINER)]
    assert commands[0][2]["dataset_dir"] == str(tmp_path / "maps")
    # only one's own label maps are still to be merged
    assert commands[0][2]["label_group"] == "organs"
    assert "label_group" not in commands[1][2]


def test_the_verb_passes_on_what_was_said(
    commands: Commands, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate(
        "medgen3d",
        str(tmp_path / "out"),
        num_samples=3,
        dataset_dir="set",
        spacing="2,2,3",
        slicing_axis="sagittal",
        unlabelled_classes=2,
        seed=4,
        device="cpu",
        options={IMAGES: {"direction": "backward"}},
        bundles=str(BUNDLES),
    )
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "out" / "pairs")
    first, second, _, fourth = (knobs for _, _, knobs in commands[:4])
    expected = {"spacing": [2, 2, 3], "slicing_axis": "sagittal", "device": "cpu"}
    assert expected.items() <= first.items()
    assert [knobs.get("unlabelled_classes") for _, _, knobs in commands[::2]] == [None, 2, 2]
    assert first["dataset_dir"] == "set"
    assert {"num_samples": 3, "seed": 4, "device": "cpu"}.items() <= second.items()
    assert fourth["direction"] == "backward"
    # what was not said stays the bundles' own
    assert not {"label_group", "direction"} & (first.keys() | second.keys())
    with pytest.raises(ValueError, match="expected medgen3d, found 'wgan'"):
        generate("wgan")
    with pytest.raises(ValueError, match="expected three numbers"):
        generate("medgen3d", spacing="2,2")


def test_a_bundle_that_is_not_a_stage_is_refused(commands: Commands, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"options: expected some of .*found \['wgan_sn_mp'\]"):
        generate_medgen3d(tmp_path, BUNDLES, options={"wgan_sn_mp": {"seed": 1}})
    assert commands == []


def test_another_training_in_the_same_folder_is_refused(commands: Commands, tmp_path: Path) -> None:
    def train(preset: str | None = "compact", **training: Any) -> None:
        generate_medgen3d(
            tmp_path / "out", BUNDLES, dataset=tmp_path, preset=preset, training=training
        )

    train(spacing=[1.0, 1.0, 2.0])
    trainings = len([configs for _, configs, _ in commands if "train" in configs])
    train(spacing=(1.0, 1.0, 2.0))
    assert len([configs for _, configs, _ in commands if "train" in configs]) == trainings == 3
    with pytest.raises(DataError, match=r"finished\.json: expected the training asked for now"):
        train(spacing=[1.0, 1.0, 1.0])
    with pytest.raises(DataError, match=r"finished\.json: expected the training asked for now"):
        train(preset=None, spacing=[1.0, 1.0, 2.0])


def test_options_that_are_none_are_refused(commands: Commands, tmp_path: Path) -> None:
    for wrong, words in (
        (LABELS, f"options: expected knobs by bundle, .*, found '{LABELS}'"),
        (True, "options: expected knobs by bundle, .*, found True"),
        ({LABELS: 3}, f"options: {LABELS}: expected knobs by name, .*, found 3"),
        ({LABELS: {3: 1}}, f"options: {LABELS}: expected knobs by name, .*, found {{3: 1}}"),
    ):
        options: Any = wrong
        with pytest.raises(DataError, match=words) as caught:
            generate_medgen3d(tmp_path / "out", BUNDLES, options=options)
        assert "\n" not in str(caught.value)
    assert commands == []


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"spacing": "2,2,2"}, "spacing: expected --dataset_dir"),
        ({"slicing_axis": "axial", "preset": "compact"}, "preset, slicing_axis: expected --data"),
        ({"label_group": "organs"}, "label_group: expected --dataset_dir"),
        (
            {"options": {IMAGES: {"train_max_epochs": 2, "batch_size": 2}}},
            f"options: {IMAGES}: train_max_epochs: expected --dataset_dir",
        ),
        ({"labels": "maps", "spacing": "2,2,2"}, "spacing: expected --dataset_dir"),
        ({"dataset_dir": "set", "models": "old"}, "models: expected it without --dataset_dir"),
        ({"labels": "maps", "num_samples": 16}, "num_samples: expected it without --labels"),
        (
            {"labels": "maps", "options": {LABELS: {"steps": 3}}},
            rf"options: {LABELS}: expected none with --labels.* found \['steps'\]",
        ),
        ({"options": {COMPLETION: {"steps": 5}}}, rf"options: {COMPLETION}: .* found \['steps'\]"),
        (
            {"dataset_dir": "set", "options": {COMPLETION: {"train_max_epochs": 5}}},
            rf"options: {COMPLETION}: .* found \['train_max_epochs'\]",
        ),
        (
            {"labels": "maps", "dataset_dir": "set", "options": {LABELS: {"train_seed": 3}}},
            rf"options: {LABELS}: expected none with --labels.* found \['train_seed'\]",
        ),
    ],
)
def test_a_knob_without_effect_is_refused(
    knobs: dict[str, Any], words: str, commands: Commands, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=f"^{words}") as caught:
        generate("medgen3d", str(tmp_path / "out"), bundles=str(BUNDLES), device="cpu", **knobs)
    assert "\n" not in str(caught.value)
    assert commands == []


def test_sixteen_label_maps_are_generated_unless_they_are_given(
    commands: Commands, tmp_path: Path
) -> None:
    generate("medgen3d", str(tmp_path / "out"), bundles=str(BUNDLES), device="cpu")
    assert [k.get("num_samples") for _, _, k in commands] == [16, None, None]
    commands.clear()
    given = {"labels": "maps", "label_group": "organs", "device": "cpu"}
    generate("medgen3d", str(tmp_path / "own"), bundles=str(BUNDLES), **given)
    assert [name for name, _, _ in commands] == [IMAGES, REFINER]
    assert not any("num_samples" in knobs for _, _, knobs in commands)


def step(folder: Path, cohort: Any, **knobs: Any) -> None:
    """Train the label stage on a cohort, unless it is trained."""
    chain.train_step(folder, BUNDLES / LABELS, ["train"], {"dataset_dir": str(cohort), **knobs})


def test_a_finished_training_is_known_by_what_changes_its_result(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cohort, run = tmp_path / "place" / "set", tmp_path / "place" / "run"
    (cohort.parent / "other").mkdir(parents=True)
    cohort.mkdir()
    monkeypatch.chdir(cohort.parent)
    step(run, "set", device="cuda", num_workers=4, max_epochs=2)
    assert commands.pop()[2]["dataset_dir"] == "set"
    neutral = {"device": "cpu", "amp": False, "val_interval": 1}
    for same in ("set", "./set/", "../place/set", cohort, ["set"], "['set']"):
        step(run, same, max_epochs=2, **neutral)
    link = tmp_path / "link"
    link.symlink_to(cohort)
    step(run, link, max_epochs=2)
    # from elsewhere, and where both have moved together
    monkeypatch.chdir(tmp_path)
    step(Path("place/run"), "place/set", max_epochs=2)
    (tmp_path / "place").rename(tmp_path / "moved")
    moved = tmp_path / "moved"
    step(moved / "run", moved / "set", max_epochs=2)
    assert commands == []
    refusals = {
        "max_epochs: 2 then, 3 now": (moved / "set", {"max_epochs": 3}),
        "label_group: None then, 'a' now": (moved / "set", {"max_epochs": 2, "label_group": "a"}),
        "dataset_dir: .*place/set.* then, .*moved/other.* now": (
            moved / "other",
            {"max_epochs": 2},
        ),
    }
    for words, (folder, knobs) in refusals.items():
        with pytest.raises(DataError, match=rf"finished\.json: expected .*: {words}"):
            step(moved / "run", folder, **knobs)
    assert commands == []


def test_a_training_that_an_earlier_version_finished_is_known(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "set").mkdir()
    monkeypatch.chdir(tmp_path)
    # as version 0.1.0 left it: all knobs, as they were typed
    knobs = {"dataset_dir": "set", "device": "cuda", "spacing": [1.0, 1.0, 2.0], "val_interval": 5}
    write_json(tmp_path / "run" / "finished.json", {"configs": ["train"], **knobs})
    for cohort in ("set", tmp_path / "set"):
        step(tmp_path / "run", cohort, spacing=(1.0, 1.0, 2.0), val_interval=5)
    assert commands == []
    with pytest.raises(DataError, match=r"spacing: \[1\.0, 1\.0, 2\.0\] then, None now"):
        step(tmp_path / "run", "set")
    with pytest.raises(DataError, match=r"dataset_dir: .* then, .*other'\] now"):
        step(tmp_path / "run", "other", spacing=[1.0, 1.0, 2.0])


def test_a_training_on_cases_that_were_corrected_since_is_another(
    commands: Commands, tmp_path: Path
) -> None:
    dataset = tiny_dataset(tmp_path / "set", count=3, validation=0)
    for _ in range(2):
        step(tmp_path / "run", dataset)
    assert len(commands) == 1
    label = next((dataset / "labelsTr").iterdir())
    volume = read_volume(label, None)
    write_volume(label, replace(volume, array=np.flip(volume.array, 0)), np.uint8)
    name = label.name.removesuffix(".nii.gz")
    with pytest.raises(DataError, match=rf"found another: training cases: 1 changed \({name}\)"):
        step(tmp_path / "run", dataset)


def test_a_stage_that_fails_stops_the_chain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    codes = iter([0, 3])

    def run(command: list[str]) -> int:
        return next(codes)

    monkeypatch.setattr(chain, "run_to_the_end", run)
    with pytest.raises(
        DataError, match=f"{IMAGES}: expected the run to end well, found exit code 3"
    ):
        generate_medgen3d(tmp_path / "out", BUNDLES)


def test_values_reach_the_runner_as_they_are(tmp_path: Path) -> None:
    knobs = {"a": None, "b": True, "c": [1, 2.5], "d": "text", "e": {"k": 1}, "f": 3}
    # which would be read as numbers, None, a pair, and as run
    knobs |= {"g": "2024_05", "h": "5", "i": "None", "j": "a,b", "k": "run#2", "l": "it's#1"}
    command = chain.bundle_command(tmp_path / "bundle", ["train", "compact"], knobs)
    words = dict(zip(command[4::2], command[5::2], strict=True))
    folder = tmp_path / "bundle" / "configs"
    assert DefaultParseValue(words["--config_file"]) == [
        str(folder / "train.json"),
        str(folder / "compact.json"),
    ]
    assert {key: DefaultParseValue(words[f"--{key}"]) for key in knobs} == knobs


def test_the_bundles_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_bundles() == BUNDLES
    with pytest.raises(DataError, match="other: expected the folder with the bundles"):
        find_bundles("other")
    (tmp_path / "bundles").mkdir()
    assert find_bundles() == Path("bundles")


SAVES = """
import pathlib, signal, sys, time
def save(*_):
    time.sleep(1)
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(7)
signal.signal(signal.{signal}, save)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(60)
"""
WAITS = """
import sys
from medpair.chain import run_to_the_end
sys.exit(run_to_the_end([sys.executable, "-c", sys.argv[1], sys.argv[2]]))
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_bundle_that_is_stopped_may_save_its_work(name: str, tmp_path: Path) -> None:
    """SIGTERM reaches the chain alone, Ctrl-C the whole group: the run is waited for either way."""
    child = SAVES.replace("{signal}", name)
    chain = subprocess.Popen(
        [sys.executable, "-c", WAITS, child, str(tmp_path)],
        start_new_session=True,
        # a shell's background jobs ignore Ctrl-C, and so would what they start
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        if name == "SIGTERM":
            chain.terminate()
        else:
            os.killpg(chain.pid, signal.SIGINT)
        code = chain.wait(timeout=30)
    finally:
        chain.kill()
    assert (tmp_path / "saved").exists()
    assert code == (7 if name == "SIGTERM" else -signal.SIGINT)
