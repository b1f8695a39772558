"""Runs that are killed again and again: nothing is torn, and the end is that of one whole run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from medpair.data.sampling import numpy_generator
from tests.hardness.conftest import BUNDLES, UNET, WGAN, Reference, Whole
from tests.hardness.processes import (
    LONG,
    Command,
    Processes,
    assert_all_files_load,
    assert_same_result,
    partials,
    until,
)

KILLS = 20 if LONG else 4
KINDS = ("train", "inference")


def kill_somewhere(
    processes: Processes, command: Command, whole: Whole, rng: np.random.Generator
) -> int:
    """Start a command and kill it at a moment drawn from a whole run's; return the exit code.

    Half of the moments are between two changes to files, half are any time.
    """
    if rng.integers(2):
        moment = int(rng.integers(1, whole.changes + 1))
        return processes.run(command, signal_at=(signal.SIGKILL, moment))
    pid = processes.start(command)
    code = processes.wait(pid, float(rng.uniform(0, whole.seconds)))
    if code is None:
        os.kill(pid, signal.SIGKILL)
        code = processes.wait(pid)
    assert code is not None
    return code


@pytest.mark.fault(30)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_run_that_is_killed_ends_as_one_that_is_not(
    bundle: str, kind: str, processes: Processes, reference: Reference, tmp_path: Path
) -> None:
    whole = reference(bundle, kind)
    rng = numpy_generator(BUNDLES.index(bundle), KINDS.index(kind))
    kills = rounds = left = 0
    while kills < KILLS:
        rounds += 1
        folder = tmp_path / f"{rounds} ü"
        command = whole.command.into(folder)
        code = -signal.SIGKILL
        while code and kills < KILLS:
            code = kill_somewhere(processes, command, whole, rng)
            assert code in (0, -signal.SIGKILL), processes.said()
            kills += code != 0
            left += len(partials(folder))
            assert_all_files_load(folder)
        processes.finish(command)
        assert_same_result(whole.folder, folder)
        # what the killed writers left is gone
        assert partials(folder) == []
    print(f"{bundle} {kind}: {kills} kills, {rounds} runs, {left} partial files seen")


@pytest.mark.fault(31)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_run_that_is_asked_to_stop_leaves_nothing_half_done(
    bundle: str,
    kind: str,
    number: signal.Signals,
    processes: Processes,
    reference: Reference,
    tmp_path: Path,
) -> None:
    if number == signal.SIGINT and not LONG and bundle != BUNDLES[0]:
        pytest.skip("Ctrl-C for every bundle: make test-long")
    whole = reference(bundle, kind)
    command = whole.command.into(tmp_path / "out")
    # a training's last changes are of its model, after the last step; a sampling's first
    # are of the folder
    moment = whole.changes // 2 if kind == "train" else whole.changes * 3 // 4
    code = processes.run(command, signal_at=(number, moment))
    assert code == 128 + number, processes.said()
    assert partials(command.folder) == []
    assert_all_files_load(command.folder)
    assert list(command.folder.rglob("checkpoint.pt" if kind == "train" else "*.nii.gz"))
    processes.finish(command)
    assert_same_result(whole.folder, command.folder)


@pytest.mark.fault(30)
@pytest.mark.parametrize("bundle", [WGAN, UNET])
def test_a_line_of_the_log_that_a_kill_cuts_in_two_is_the_same(
    bundle: str, processes: Processes, reference: Reference, tmp_path: Path
) -> None:
    """The checkpoint is of step 3; the line is the mean of steps 3 and 4."""
    whole = reference(bundle, "train")
    # on a busy machine the run may be a checkpoint further before it is killed
    for attempt in range(5):
        command = whole.command.into(tmp_path / f"out_{attempt}")
        pid = processes.start(command)
        until((command.folder / "checkpoint.pt").exists)
        os.kill(pid, signal.SIGKILL)
        assert processes.wait(pid) == -signal.SIGKILL
        state = torch.load(command.folder / "checkpoint.pt", weights_only=True)
        if state["iteration"] == 3:
            break
    assert state["iteration"] == 3
    processes.finish(command)
    assert_same_result(whole.folder, command.folder)
