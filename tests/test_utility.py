"""The usefulness table: its plan, its budgets, going on, and one whole table through the bundle."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import monai.bundle
import numpy as np
import pytest
from fire.parser import DefaultParseValue

from medpair import chain, utility_bench
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_json, write_json
from medpair.data.segmentation import load_items
from medpair.report.usefulness import usefulness_part
from medpair.utility import run_utility
from medpair.utility_bench import time_left
from medpair.utility_plan import PROTOCOLS, TRANSFER, Job, Table, Training, plan_jobs, training
from tests.bundles.conftest import BUNDLES
from tests.conftest import tiny_dataset

E2 = ("E2-1", "E2-2", "E2-3", "E2-4", "E2-5")
SMALL = {
    "largest_patch": [16, 16, 16],
    "channels": [4, 8, 8],
    "hidden_size": 24,
    "feature_size": 12,
    "batch_size": 2,
    "iterations_per_epoch": 2,
}
Ran = list[tuple[Path, list[str], dict[str, Any]]]


@pytest.fixture(scope="module")
def cohorts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cohorts")
    return {
        "real": tiny_dataset(folder / "real", count=6, validation=3, roi=True),
        "synthetic": tiny_dataset(folder / "synthetic", count=8, validation=0, seed=5),
        "transfer": tiny_dataset(folder / "second", count=4, validation=2, seed=9),
    }


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Ran:
    """Train and score nothing: write what a run leaves, and note what was asked for."""
    ran: Ran = []

    def run(bundle: Path, configs: Any, knobs: dict[str, Any]) -> None:
        folder = Path(knobs["output_dir"])
        ran.append((folder, list(configs), dict(knobs)))
        folder.mkdir(parents=True, exist_ok=True)
        if "train" in configs:
            assert knobs.get("ckpt_path") is None or Path(knobs["ckpt_path"]).exists()
            (folder / "model.pt").write_text("weights")
            (folder / "checkpoint.pt").write_text("all")
            return
        assert Path(knobs["ckpt_path"]).exists()
        rows = [
            {"case": case.name, "region": "volume", "class": name, "predicted_voxels": 9}
            | {"dsc": float(np.random.default_rng(len(ran) + k).random()), "bahd_mm": 1.0}
            for case in load_dataset(knobs["dataset_dir"]).split(knobs["split"])
            for k, name in enumerate(("class_1", "class_2"))
        ]
        write_json(folder / "scores.json", {"cases": rows})

    monkeypatch.setattr(utility_bench, "run_bundle", run)
    return ran


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run the command lines here, parsed as the runner parses them; return what ran."""
    ran: list[str] = []

    def run(command: list[str]) -> int:
        words = iter(command[4:])
        arguments = {key.removeprefix("--"): DefaultParseValue(next(words)) for key in words}
        ran.append(str(arguments["output_dir"]))
        monai.bundle.run(logging_file=False, **arguments)
        return 0

    monkeypatch.setattr(chain, "run_to_the_end", run)
    return ran


def table(**more: Any) -> Table:
    chosen: dict[str, Any] = {"protocols": E2, "architectures": ("unet3d",), "seeds": (0,)}
    return Table(**(chosen | {"max_epochs": 30, "finetune_epochs": 10} | more))


def trainings(jobs: list[Job]) -> dict[str, Training]:
    return {job.training.name: job.training for job in jobs if job.test is None}


def test_each_protocol_is_trained_once_after_what_it_starts_from() -> None:
    everything = tuple(PROTOCOLS)
    jobs = plan_jobs(
        table(
            protocols=everything,
            architectures=("unet3d", "unetr"),
            seeds=(0, 1),
            transfer_cases=(1, 5),
            real_cases=(10, 20),
            curve=("E2-1", "E2-3", "E2-4"),
            zero_shot=True,
        )
    )
    assert len(jobs) == len(set(jobs))
    # E2: five and a control; E3: four and a control, twice; the curve: E2-4 brings its control
    assert len(trainings(jobs)) == 2 * 2 * (6 + 5 * 2 + 4 * 2)
    seen: set[Training] = set()
    for job in jobs:
        if job.test is None:
            assert job.training.start is None or job.training.start in seen
            seen.add(job.training)
        else:
            assert job.training in seen
    # the first seed's table is whole before the second begins
    seeds = [job.training.seed for job in jobs]
    assert seeds == sorted(seeds)


def test_budgets_are_equal_and_the_controls_train_as_long() -> None:
    found = {name: training(table(), name, "unet3d", 0, None).total_epochs for name in PROTOCOLS}
    assert found["E2-1"] == found["E2-2"] == found["E2-3"] == 30
    assert found["E2-1F"] == found["E2-4"] == found["E2-5"] == 40
    assert found["E3-1"] == found["E3-2"] == 40
    assert found["E3-2F"] == found["E3-3"] == found["E3-4"] == 50
    for name, protocol in PROTOCOLS.items():
        # whatever a protocol gains over its last reference is not owed to longer training
        if protocol.references and name not in ("E2-1F", "E3-2F"):
            assert found[protocol.references[-1]] == found[name], name


def test_the_curve_trains_and_finetunes_on_the_same_few_cases() -> None:
    few = training(table(), "E2-5", "unet3d", 2, 10)
    assert (few.cases, few.start.cases, few.start.protocol) == (10, 10, "E2-3")
    own = training(table(), "E2-4", "unet3d", 2, 10)
    assert (own.cases, own.start.cases, own.start.protocol) == (10, None, "E2-2")
    second = training(table(), "E3-4", "unet3d", 2, 1)
    assert (second.cases, second.start.cases, second.start.start.cases) == (1, None, None)
    assert own.name == "unet3d/seed_2/E2-4_synthetic_then_real_10_cases"
    names = trainings(plan_jobs(table(protocols=("E2-1",), real_cases=(3,), curve=("E2-5",))))
    assert list(names) == [
        f"unet3d/seed_0/{name}"
        for name in (
            "E2-1_real",
            "E2-1_real_3_cases",
            "E2-1F_real_then_real_3_cases",
            "E2-3_both_3_cases",
            "E2-5_both_then_real_3_cases",
        )
    ]


def test_every_run_gets_its_knobs(runs: Ran, cohorts: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_utility(
        out,
        BUNDLES,
        **cohorts,
        transfer_cases=2,
        architectures="unetr",
        seeds=3,
        real_cases=[4],
        max_epochs=5,
        finetune_epochs=2,
        options={**SMALL, "learning_rate": 0.01},
        finetune_options={"weight_decay": 0.5},
        scoring_options={"overlap": 0.25},
        device="cpu",
    )
    asked = {
        folder.relative_to(out / "runs" / "unetr" / "seed_3").as_posix(): (configs, knobs)
        for folder, configs, knobs in runs
    }
    root, own = out / "runs" / "unetr" / "seed_3", {k: str(v) for k, v in cohorts.items()}
    configs, knobs = asked["E2-3_both_4_cases"]
    assert configs == ["train", "unetr"]
    assert knobs["dataset_dir"] == [own["real"], own["synthetic"]]
    assert knobs["max_cases"] == [4, None]
    assert (knobs["max_epochs"], knobs["seed"], knobs["learning_rate"]) == (5, 3, 0.01)
    assert "ckpt_path" not in knobs
    configs, knobs = asked["E2-5_both_then_real"]
    assert configs == ["train", "unetr", "finetune"]
    assert knobs["dataset_dir"] == [own["real"]]
    assert knobs["ckpt_path"] == str(root / "E2-3_both" / "model.pt")
    assert (knobs["max_epochs"], knobs["weight_decay"]) == (2, 0.5)
    assert not {"learning_rate", "max_cases"} & knobs.keys()
    configs, knobs = asked["E3-3_from_E2-4_2_cases"]
    assert knobs["dataset_dir"] == [own["transfer"]]
    assert knobs["max_cases"] == [2]
    assert knobs["ckpt_path"] == str(root / "E2-4_synthetic_then_real" / "model.pt")
    assert asked["E3-1_scratch_2_cases"][1]["max_epochs"] == 7
    configs, knobs = asked["E3-1_scratch_2_cases/scores_transfer"]
    assert configs == ["inference", "evaluate"]
    assert (knobs["dataset_dir"], knobs["overlap"]) == (own["transfer"], 0.25)
    # one grid for all, and no look at the cases that are scored
    lessons = [knobs for configs, knobs in asked.values() if "train" in configs]
    assert {json.dumps([k["spacing"], k["patch_size"]]) for k in lessons} == {
        "[[1.0, 1.0, 1.0], [16, 16, 16]]"
    }
    assert not any(knobs["has_validation"] for knobs in lessons)
    assert all(knobs["iterations_per_epoch"] == 2 for knobs in lessons)
    assert all(knobs["device"] == "cpu" for _, knobs in asked.values())
    # the networks of E2 are scored on the second dataset as they are
    assert "E2-2_synthetic/scores_transfer" in asked
    assert "E2-1_real_4_cases/scores_transfer" not in asked


def test_drawn_real_cases_are_the_same_with_and_without_synthetic_ones(
    runs: Ran, cohorts: dict[str, Path], tmp_path: Path
) -> None:
    two = {key: cohorts[key] for key in ("real", "synthetic")}
    knobs: dict[str, Any] = {"options": SMALL, "protocols": "E2-1", "seeds": (0, 1)}
    run_utility(tmp_path, BUNDLES, **two, real_cases=(2, 4, 6), **knobs)
    drawn: dict[tuple[int, str], set[str]] = {}
    for folder, configs, knobs in runs:
        if "train" in configs:
            items = load_items(
                knobs["dataset_dir"], max_cases=knobs.get("max_cases"), seed=knobs["seed"]
            )
            real = {i["case"] for i in items if i["dataset_dir"] == str(cohorts["real"])}
            drawn[knobs["seed"], folder.name] = real
            extra = len(items) - len(real)
            assert extra == (8 if "both" in folder.name else 0)
    for seed in (0, 1):
        two_cases = drawn[seed, "E2-1_real_2_cases"]
        four = drawn[seed, "E2-1_real_4_cases"]
        assert two_cases < four < drawn[seed, "E2-1_real"]
        assert drawn[seed, "E2-3_both_4_cases"] == four
    assert len(drawn[0, "E2-1_real"]) == 6
    # six of six are the whole cohort: no run of its own
    assert not any("6_cases" in name for _, name in drawn)


def test_finished_runs_are_kept_and_an_interrupted_table_goes_on(
    runs: Ran,
    cohorts: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    work = utility_bench.run_bundle
    out = tmp_path / "out"

    def go(**more: Any) -> Path:
        two = {key: cohorts[key] for key in ("real", "synthetic")}
        return run_utility(out, BUNDLES, **two, **({"options": SMALL} | more))

    def stop_at(count: int) -> Callable[..., None]:
        def run(bundle: Path, configs: Any, knobs: Any) -> None:
            if len(runs) == count:
                raise DataError("stopped")
            work(bundle, configs, knobs)

        return run

    monkeypatch.setattr(utility_bench, "run_bundle", stop_at(5))
    with pytest.raises(DataError, match="stopped"):
        go()
    assert len(runs) == 5
    assert not (out / "utility.json").exists()
    monkeypatch.setattr(utility_bench, "run_bundle", work)
    go(plan=True)
    text = capsys.readouterr().out
    assert text.count("  there  ") == 5
    assert "3 trainings and 4 scorings to do; about" in text
    assert len(runs) == 5
    assert go() == out / "utility.md"
    # five and a control, trained and scored, each once
    assert len(runs) == len({folder for folder, _, _ in runs}) == 12
    said = capsys.readouterr().out
    assert "5 of 12 runs are there" in said
    assert "[6 of 12] score E2-2 (synthetic), unet3d, seed 0 on the test set" in said
    stamps = {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*")}
    before = (out / "utility.json").read_bytes()
    go()
    assert len(runs) == 12
    assert (out / "utility.json").read_bytes() == before
    assert {p: p.stat().st_mtime_ns for p in (out / "runs").rglob("*")} == stamps
    # checkpoints of finished runs are gone, their weights are not
    assert not list(out.rglob("checkpoint.pt"))
    assert len(list(out.rglob("model.pt"))) == 6
    # another machine, and more rows, go on in the same folder
    go(device="cpu", protocols="E2-1", real_cases=3, curve="E2-1")
    assert len(runs) == 14
    # other settings do not
    with pytest.raises(DataError, match=r"finished.json: expected the run asked for now.*batch"):
        go(options={**SMALL, "batch_size": 3})
    with pytest.raises(DataError, match=r"max_epochs': 4.*another output_dir"):
        go(max_epochs=4)
    assert len(runs) == 14


def test_other_data_in_the_same_folder_is_refused(
    runs: Ran, cohorts: dict[str, Path], tmp_path: Path
) -> None:
    synthetic = tmp_path / "synthetic"
    shutil.copytree(cohorts["synthetic"], synthetic)

    def go() -> None:
        knobs: dict[str, Any] = {"protocols": "E2-2", "options": SMALL}
        run_utility(tmp_path / "out", BUNDLES, cohorts["real"], synthetic, **knobs)

    go()
    count = len(runs)
    content = read_json(synthetic / "dataset.json")
    content["training"] = content["training"][:-1]
    content["numTraining"] = 7
    write_json(synthetic / "dataset.json", content)
    with pytest.raises(DataError, match=r"synthetic: training: expected 8 as when .* found 7"):
        go()
    assert len(runs) == count
    # the table of another cohort is none of this one's report
    cohorts_now = {"synthetic": load_dataset(synthetic), "real": load_dataset(cohorts["real"])}
    with pytest.raises(
        DataError, match=r"inputs.synthetic: expected a table of .*synthetic, found"
    ):
        usefulness_part(tmp_path / "out", cohorts_now)
    cohorts_now["synthetic"] = load_dataset(cohorts["synthetic"])
    usefulness_part(tmp_path / "out", cohorts_now)
    table = tmp_path / "out" / "utility.json"
    for rows in ([{}], 5, [{"results": None}]):
        write_json(table, {**read_json(table), "rows": rows})
        with pytest.raises(DataError, match=r"utility.json: rows: expected a usefulness table"):
            usefulness_part(tmp_path / "out", cohorts_now)


def test_a_corrected_label_map_of_the_same_size_is_other_data(
    runs: Ran, cohorts: dict[str, Path], tmp_path: Path
) -> None:
    synthetic = shutil.copytree(cohorts["synthetic"], tmp_path / "synthetic")
    knobs: dict[str, Any] = {"protocols": "E2-2", "options": SMALL}

    def go(folder: Path) -> None:
        run_utility(tmp_path / "out", BUNDLES, cohorts["real"], folder, **knobs)

    go(synthetic)
    count = len(runs)
    moved = synthetic.rename(tmp_path / "moved")
    go(moved)  # the same files elsewhere are the same cohort
    assert len(runs) == count
    label = next((moved / "labelsTr").iterdir())
    label.write_bytes(gzip.compress(gzip.decompress(label.read_bytes()), 1, mtime=1))
    with pytest.raises(DataError, match=r"synthetic: contents: expected '\w+' as when"):
        go(moved)


def test_a_finished_table_is_known_from_another_directory(
    runs: Ran, cohorts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs: dict[str, Any] = {"protocols": "E2-4", "options": SMALL}
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    run_utility("out", BUNDLES, cohorts["real"], cohorts["synthetic"], **knobs)
    count = len(runs)
    monkeypatch.chdir(tmp_path / "below")
    run_utility("../out", BUNDLES, cohorts["real"], cohorts["synthetic"], **knobs)
    assert len(runs) == count


@pytest.mark.parametrize("key", ["options", "finetune_options"])
def test_lengths_that_the_table_could_not_tell_are_refused(
    runs: Ran, cohorts: dict[str, Path], tmp_path: Path, key: str
) -> None:
    wrong: dict[str, Any] = {"options": SMALL, key: {"iterations_per_epoch": None}}
    with pytest.raises(DataError, match=rf"{key}: .*iterations_per_epoch"):
        run_utility(tmp_path, BUNDLES, cohorts["real"], cohorts["synthetic"], **wrong)
    assert not runs


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"protocols": "E2-6"}, r"protocols: expected some of .* found \['E2-6'\]"),
        ({"protocols": "E3-1"}, r"protocols: .* found \['E3-1'\]"),
        ({"curve": "E2-2", "real_cases": 2}, r"curve: expected some of"),
        ({"real_cases": 7}, "real_cases: expected whole numbers from 1 to 6, found 7"),
        ({"architectures": "resnet"}, "architectures: expected some of"),
        ({"architectures": "swin_unetr"}, "swin_unetr expects an axis of 64"),
        ({"options": {"bach_size": 2}}, r"options: expected knobs .* found \['bach_size'\]"),
        ({"options": {"max_epochs": 2}}, r"does not decide itself, found \['max_epochs'\]"),
        ({"scoring_options": {"channels": 2}}, "scoring_options: expected knobs of inference"),
        ({"test_split": "test"}, "test: expected cases, found none"),
        ({"test_split": "training"}, "expected a held-out case, found one of the training"),
        ({"max_epochs": 0}, "max_epochs: expected whole numbers from 1, found 0"),
        ({"seeds": "one"}, "seeds: expected whole numbers from 0, found 'one'"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_runs(
    more: dict[str, Any], message: str, runs: Ran, cohorts: dict[str, Path], tmp_path: Path
) -> None:
    two = {key: cohorts[key] for key in ("real", "synthetic")}
    with pytest.raises(ValueError, match=message):
        run_utility(tmp_path / "out", BUNDLES, **two, **({"options": SMALL} | more))
    assert runs == []
    assert not (tmp_path / "out").exists()


def test_a_second_dataset_of_other_classes_is_not_scored_without_training(
    runs: Ran, cohorts: dict[str, Path], tmp_path: Path
) -> None:
    other = tiny_dataset(tmp_path / "other", count=3, validation=1, num_labels=1)
    two = {key: cohorts[key] for key in ("real", "synthetic")}
    out = tmp_path / "out"
    # the fake runner's scores have two classes whatever the folder; the plan is what counts here
    run_utility(out, BUNDLES, **two, transfer=other, transfer_cases=1, options=SMALL)
    scored = [folder.as_posix() for folder, configs, _ in runs if "evaluate" in configs]
    assert not any("E2" in Path(f).parts[-2][:2] and TRANSFER in f for f in scored)
    assert "other classes" in (out / "utility.md").read_text()


def test_time_left_is_judged_by_runs_of_the_same_kind() -> None:
    def job(epochs: int, architecture: str = "unet3d", test: str | None = None) -> Job:
        return Job(Training("E2-1", architecture, 0, None, epochs), test)

    left = [job(20), job(10), job(1, test="test")]
    assert "no run has ended yet" in time_left(left, {})
    # ten epochs took 60 s: thirty take three minutes; scoring is not known
    known = {job(10, "unet3d"): 60.0}
    assert (
        time_left(left, known) == "about 3 min left for 3 runs, and 1 runs of a kind not seen yet"
    )
    known |= {job(5, "unetr"): 3600.0, job(1, test="test"): 5.0}
    assert time_left(left, known) == "about 3 min left for 3 runs"
    assert time_left([job(1, "unet2d", "test")], known) == "about 5 s left for 1 runs"


def test_a_whole_table_through_the_bundle(
    in_this_process: list[str], cohorts: dict[str, Path], tmp_path: Path
) -> None:
    """Trained for a moment: every row is scored on the same cases, and the parts agree."""
    out = tmp_path / "out"
    two = {key: cohorts[key] for key in ("real", "synthetic")}
    knobs: dict[str, Any] = {"options": SMALL, "max_epochs": 2, "finetune_epochs": 1}
    knobs |= {"device": "cpu", "real_cases": 2, "protocols": "E2-4"}
    # fine-tuning that changes nothing shows whose weights it began with
    knobs["finetune_options"] = {"learning_rate": 0.0}
    assert run_utility(out, BUNDLES, **two, **knobs) == out / "utility.md"
    content = read_json(out / "utility.json")
    rows = {(row["protocol"], row["cases"]): row for row in content["rows"]}
    assert list(rows) == [
        *((name, None) for name in ("E2-1", "E2-1F", "E2-2", "E2-4")),
        *((name, 2) for name in ("E2-1", "E2-3")),
    ]
    assert len(in_this_process) == 2 * len(rows)
    assert content["synthetic_per_real"] == pytest.approx(8 / 6)
    assert rows["E2-4", None]["iterations"] == rows["E2-1F", None]["iterations"] == 6
    assert rows["E2-3", 2]["trained_on"] == {"real": 2, "synthetic": 8}
    for row in rows.values():
        scores = read_json(out / row["scores"][0])
        for region in ("volume", "roi"):
            for name in ("class_1", "class_2", "mean"):
                for measure in ("dsc", "bahd_mm"):
                    own = row["results"][region][name][measure]
                    assert own["mean"] == pytest.approx(
                        scores["summary"][region][name][measure]["mean"]
                    )
                    assert own["n"] == 3
    for name, start in (("E2-4", "E2-2"), ("E2-1F", "E2-1")):
        assert rows[name, None]["results"] == rows[start, None]["results"]
    compared = rows["E2-4", None]["against"]["E2-1F"]["volume"]["mean"]["dsc"]
    means = [rows[k, None]["results"]["volume"]["mean"]["dsc"]["mean"] for k in ("E2-4", "E2-1F")]
    assert compared["difference"] == pytest.approx(means[0] - means[1])
    assert abs(compared["difference"]) > 1e-6
    # all networks have the real cohort's grid
    folder = out / "runs" / "unet3d" / "seed_0"
    cards = [read_json(path) for path in folder.glob("*/model.json")]
    assert len({json.dumps([c["task"]["spacing"], c["segmenter"]]) for c in cards}) == 1
    # the table names no folder of this machine
    assert str(tmp_path.parent.parent) not in (out / "utility.json").read_text()
    assert (out / "utility.png").stat().st_size > 5000
    assert "E2-1F: real, fine-tuned on real (control)" in (out / "utility.md").read_text()
