"""``medpair generate`` killed anywhere in its chain of bundles, and a real command line stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from medpair.chain import IMAGES, LABELS, REFINER
from medpair.data.sampling import numpy_generator
from tests.bundles.conftest import SMALL_MCDPM, SMALL_REFINER, SMALL_VID2VID
from tests.conftest import tiny_dataset
from tests.hardness.conftest import WGAN, Reference, Whole
from tests.hardness.processes import (
    LONG,
    Command,
    Processes,
    assert_all_files_load,
    assert_same_result,
    partials,
    until,
)
from tests.hardness.test_kill import kill_somewhere

KILLS = 20 if LONG else 3
SHORT = {"max_epochs": 1, "iterations_per_epoch": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    LABELS: {"steps": 1, **{f"train_{k}": v for k, v in (SMALL_MCDPM | SHORT).items()}},
    IMAGES: {f"train_{k}": v for k, v in (SMALL_VID2VID | SHORT).items()},
    REFINER: {
        "refine_steps": 1,
        "grid_steps": 20,
        **{f"train_{k}": v for k, v in (SMALL_REFINER | SHORT).items()},
    },
}


@pytest.mark.fault(30)
def test_a_chain_that_is_killed_ends_as_one_that_is_not(
    processes: Processes, tmp_path: Path
) -> None:
    cohort = tiny_dataset(tmp_path / "set", count=3, size=(16, 12, 12))
    folder = tmp_path / "whole ü"
    knobs = {"dataset_dir": cohort, "num_samples": 2, "device": "cpu", "options": OPTIONS}
    words = ["generate", "medgen3d", "--output_dir", str(folder)]
    words += [part for key, value in knobs.items() for part in (f"--{key}", str(value))]
    command = Command(folder, "medpair.cli", words)
    seconds = processes.finish(command)
    whole = Whole(command, folder, seconds, processes.changes())
    rng = numpy_generator(31)
    kills = rounds = 0
    while kills < KILLS:
        rounds += 1
        again = command.into(tmp_path / f"again {rounds}")
        code = -signal.SIGKILL
        while code and kills < KILLS:
            code = kill_somewhere(processes, again, whole, rng)
            assert code in (0, -signal.SIGKILL), processes.said()
            kills += code != 0
            assert_all_files_load(again.folder)
        processes.finish(again)
        assert_same_chain(folder, again.folder)
        assert partials(again.folder) == []
    print(f"chain: {kills} kills, {rounds} runs")


def assert_same_chain(one: Path, two: Path) -> None:
    """Every stage is the same; sidecars and ``finished.json`` alone could name the folder."""
    for part in ("labels", "images", "pairs", *(f"models/{n}" for n in (LABELS, IMAGES, REFINER))):
        assert_same_result(one / part, two / part)


@pytest.mark.fault(31)
@pytest.mark.parametrize("kind", ["train", "inference"] if LONG else ["train"])
def test_a_command_line_that_is_terminated_exits_with_143(
    kind: str, reference: Reference, processes: Processes, tmp_path: Path
) -> None:
    """A process of its own, as from a shell; the others here are forked."""
    whole = reference(WGAN, kind)
    count = ("max_epochs", "400") if kind == "train" else ("num_samples", "400")
    command = whole.command.into(tmp_path / "out").with_knob(*count)
    with subprocess.Popen(
        [sys.executable, "-m", "monai.bundle", *command.words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        sign = "metrics.jsonl" if kind == "train" else "provenance/pair_000003.json"
        until((command.folder / sign).exists)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143, said[-2000:]
    assert partials(command.folder) == []
    assert assert_all_files_load(command.folder) > 3
    if kind == "train":
        lines = (command.folder / "metrics.jsonl").read_text().splitlines()
        assert 0 < json.loads(lines[-1])["epoch"] < 400
    else:
        assert len(list((command.folder / "provenance").iterdir())) < 400
        processes.finish(whole.command.into(command.folder))
        for path in sorted(whole.folder.rglob("*.nii.gz")):
            same = command.folder / path.relative_to(whole.folder)
            assert same.read_bytes() == path.read_bytes()
