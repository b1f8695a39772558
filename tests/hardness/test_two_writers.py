"""Two runs in one folder: a training has it to itself, generators share it or refuse."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.locks import RUN, hold
from tests.hardness.conftest import BUNDLES, REFINER, UNET, VID2VID, WGAN, Reference
from tests.hardness.processes import (
    LONG,
    Command,
    Processes,
    assert_all_files_load,
    assert_same_result,
    partials,
    until,
)

LOCKS = Path("/proc/locks")


def held(folder: Path) -> bool:
    """Return whether a process holds the folder.

    Where the kernel lists its locks, without taking the lock: a run that wanted it just then would
    be refused.
    """
    path = folder / RUN
    if LOCKS.exists():
        number = f":{path.stat().st_ino} " if path.exists() else None
        return number is not None and number in LOCKS.read_text()
    try:
        lock = hold(folder)
    except ValueError:
        return True
    assert lock is not None
    lock.release()
    return False


@pytest.mark.parametrize("bundle", BUNDLES if LONG else [WGAN, UNET])
def test_a_second_training_is_refused_and_the_first_unharmed(
    bundle: str, processes: Processes, reference: Reference, tmp_path: Path
) -> None:
    whole = reference(bundle, "train")
    command = whole.command.into(tmp_path / "out")
    first = processes.start(command)
    until(lambda: held(command.folder))
    # stopped, so that it cannot end before the second has looked
    os.kill(first, signal.SIGSTOP)
    second = processes.run(command.with_knob("seed", "77"))
    last = processes.said().strip().splitlines()[-1]
    os.kill(first, signal.SIGCONT)
    assert second == 1, processes.said()
    assert last.startswith(f"medpair: {command.folder}: expected no other run"), last
    assert processes.wait(first) == 0, processes.said()
    assert_same_result(whole.folder, command.folder)


def test_a_killed_training_with_workers_leaves_no_lock(
    processes: Processes, reference: Reference, tmp_path: Path
) -> None:
    """Workers outlive a killed run for seconds; the lock must not live with them."""
    whole = reference(WGAN, "train")
    command = whole.command.into(tmp_path / "out").with_knob("num_workers", "2")
    pid = processes.start(command)
    children = Path(f"/proc/{pid}/task/{pid}/children")
    # they are past their start when there are batches
    until((command.folder / "metrics.jsonl").exists)
    os.kill(pid, signal.SIGSTOP)
    workers = [int(word) for word in children.read_text().split()]
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    assert processes.wait(pid) == -signal.SIGKILL
    try:
        assert len(workers) == 2
        assert all(Path(f"/proc/{worker}").exists() for worker in workers)
        assert not held(command.folder)
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
    processes.finish(command)
    assert_same_result(whole.folder, command.folder)


def together(processes: Processes, commands: list[Command]) -> list[int | None]:
    """Run commands at the same time; return their exit codes."""
    return [processes.wait(pid) for pid in [processes.start(command) for command in commands]]


@pytest.mark.parametrize("ranges", [[(0, 5), (0, 5)], [(0, 2), (2, 3)], [(0, 4), (2, 3)]])
@pytest.mark.parametrize("bundle", [b for b in BUNDLES if b != UNET] if LONG else [WGAN])
def test_generators_that_share_a_folder_make_one_dataset(
    bundle: str,
    ranges: list[tuple[int, int]],
    processes: Processes,
    reference: Reference,
    tmp_path: Path,
) -> None:
    """With equal, disjoint and overlapping indices; the batches stay the same."""
    whole = reference(bundle, "inference")
    for repeat in range(5 if LONG else 1):
        command = whole.command.into(tmp_path / f"out {repeat}").with_knob("batch_size", "1")
        shards = [
            command.with_knob("start_index", str(first)).with_knob("num_samples", str(count))
            for first, count in ranges
        ]
        assert together(processes, shards) == [0, 0], processes.said()
        assert errors_of(check_dataset(command.folder)) == []
        cases = load_dataset(command.folder, images=False).split("training")
        wanted = max(first + count for first, count in ranges)
        if bundle in (VID2VID, REFINER):  # there are as many as label maps
            wanted = min(wanted, len(load_dataset(whole.folder).split("training")))
        assert len(cases) == wanted
        alone = whole.command.into(tmp_path / f"alone {repeat}").with_knob("batch_size", "1")
        processes.finish(alone.with_knob("num_samples", str(wanted)))
        assert_same_result(alone.folder, command.folder)
        assert partials(command.folder) == []


def test_generators_of_two_seeds_never_mix(
    processes: Processes, reference: Reference, tmp_path: Path
) -> None:
    """Both find the folder empty; one of them gets it, the other is told so."""
    whole = reference(WGAN, "inference")
    for repeat in range(10 if LONG else 3):
        command = whole.command.into(tmp_path / f"out {repeat}")
        others = {seed: command.with_knob("seed", str(seed)) for seed in (5, 6)}
        codes = dict(zip(others, together(processes, list(others.values())), strict=True))
        assert sorted(code for code in codes.values() if code is not None) == [0, 1], codes
        winner = next(seed for seed, code in codes.items() if code == 0)
        alone = whole.command.into(tmp_path / f"alone {repeat}").with_knob("seed", str(winner))
        processes.finish(alone)
        assert_same_result(alone.folder, command.folder)
        loser = others[11 - winner]
        assert processes.run(loser) == 1
        assert "expected pairs of the same origin" in processes.said().strip().splitlines()[-1]
        assert_same_result(alone.folder, command.folder)


def test_predictions_into_one_folder_do_not_mix(
    processes: Processes, reference: Reference, tmp_path: Path
) -> None:
    whole = reference(UNET, "inference")
    command = whole.command.into(tmp_path / "out")
    first = processes.start(command)
    until(lambda: held(command.folder))
    os.kill(first, signal.SIGSTOP)
    assert processes.run(command) == 1
    assert "expected no other run at work" in processes.said().strip().splitlines()[-1]
    os.kill(first, signal.SIGCONT)
    assert processes.wait(first) == 0
    assert_all_files_load(command.folder)
    assert_same_result(whole.folder, command.folder)
