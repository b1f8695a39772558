"""A long generation: flat memory, no handles left open, a folder that is valid at every moment."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medpair.data.check import check_dataset
from medpair.data.faults import errors_of
from tests.hardness.conftest import WGAN, Reference
from tests.hardness.processes import (
    LONG,
    Command,
    Processes,
    assert_listed_pairs_are_whole,
    partials,
)

PAIRS = 10_000 if LONG else 300
# Memory of the second half of a run may exceed that of the first by this much: what is counted for
# every pair (its entry in the list of those missing, its path) is some hundred bytes
GROWTH_MIB = 4.0 + PAIRS * 600 / 2**20


class Watch:
    """What a running process and its folder look like from outside."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.process, self.folder = Path(f"/proc/{pid}"), folder
        self.mib: list[float] = []
        self.files: list[int] = []
        self.seconds: list[float] = []
        self.pairs: list[int] = []
        self.began = time.monotonic()
        self.sampled = 0

    def look(self) -> None:
        """Take one sample; what is there under its final name is read."""
        try:
            pages = int((self.process / "statm").read_text().split()[1])
            handles = len(os.listdir(self.process / "fd"))
        except (FileNotFoundError, ProcessLookupError):
            return
        if pages == 0:
            return
        self.mib.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
        self.files.append(handles)
        self.seconds.append(time.monotonic() - self.began)
        sidecars = [entry.name for entry in self.entries("provenance")]
        self.pairs.append(len(sidecars))
        for name in sidecars[-2:]:
            case = name.removesuffix(".json")
            record = json.loads((self.folder / "provenance" / name).read_text())
            assert record["index"] == int(case.removeprefix("pair_"))
            for part in (f"imagesTr/{case}_0000.nii.gz", f"labelsTr/{case}.nii.gz"):
                assert (self.folder / part).stat().st_size
            self.sampled += 1
        listing = self.folder / "dataset.json"
        if listing.exists():  # the list of an earlier, shorter run, or of this one
            assert_listed_pairs_are_whole(listing)

    def entries(self, name: str) -> list[os.DirEntry[str]]:
        """Return the files of a subfolder that have their final names."""
        path = self.folder / name
        entries = os.scandir(path) if path.exists() else ()
        return [entry for entry in entries if not entry.name.startswith(".")]


def run_watched(processes: Processes, command: Command, interval: float) -> Watch:
    """Run a command to its end, looking at it every now and then."""
    pid = processes.start(command)
    watch = Watch(pid, command.folder)
    code: Any = None
    while code is None:
        watch.look()
        code = processes.wait(pid, interval)
    assert code == 0, processes.said()
    return watch


@pytest.mark.parametrize("workers", [0, 2])
def test_many_pairs_in_flat_memory(
    workers: int, processes: Processes, reference: Reference, tmp_path: Path
) -> None:
    pairs = PAIRS // 3 if workers and LONG else PAIRS
    command = reference(WGAN, "inference").command.into(tmp_path / "out")
    command = command.with_knob("batch_size", "8").with_knob("num_workers", str(workers))
    # a first part, so that there is a list while the rest is made
    processes.finish(command.with_knob("num_samples", "8"))
    watch = run_watched(
        processes, command.with_knob("num_samples", str(pairs)), 1.0 if LONG else 0.05
    )
    # the first quarter is start-up: imports of what is used first, the pool of memory
    count = len(watch.mib)
    done = np.array(watch.pairs) / pairs
    early, late = (done > 0.25) & (done <= 0.5), done > 0.5
    assert early.sum() > 1
    assert late.sum() > 1
    mib = np.array(watch.mib)
    first, second = mib[early], mib[late]
    print(
        f"{pairs} pairs, {workers} workers: {watch.seconds[-1]:.0f} s, {count} samples, "
        f"{watch.sampled} pairs read on the way; MiB {mib[early][0]:.1f} at a quarter, "
        f"{np.median(first):.1f} and {np.median(second):.1f} in the halves, {mib.max():.1f} at "
        f"most; handles {min(watch.files)} to {max(watch.files)}"
    )
    assert np.median(second) - np.median(first) < GROWTH_MIB
    assert second.max() - first.max() < GROWTH_MIB
    handles = np.array(watch.files)
    assert handles[late].max() <= handles[early].max() + 4
    assert len(watch.entries("provenance")) == pairs
    assert assert_listed_pairs_are_whole(command.folder / "dataset.json") == pairs
    assert partials(command.folder) == []
    assert errors_of(check_dataset(command.folder, quick=LONG)) == []


def test_the_time_for_a_pair_does_not_depend_on_how_many_there_are(
    reference: Reference, tmp_path: Path
) -> None:
    """Counted, not timed: how often the folder is listed while 20 and 80 pairs are written."""
    from medpair.data.cohort import Cohort, read_card
    from medpair.data.files import Volume, write_volume
    from medpair.inferers.folder import SyntheticFolder, centred_affine

    card = read_card(reference(WGAN, "train").folder / "model.pt")
    listings: list[int] = []
    for count in (20, 80):
        folder = SyntheticFolder(tmp_path / str(count), Cohort.from_json(card["cohort"]), {"a": 1})
        seen = [0]
        look = folder._sidecars

        def counting(seen: list[int] = seen, look: Any = look) -> list[Path]:
            seen[0] += 1
            return list(look())

        folder._sidecars = counting  # type: ignore[method-assign]
        for index in range(count):
            with folder.writing():
                volume = Volume(np.zeros((4, 4, 4), np.int16), centred_affine((1, 1, 1), (4, 4, 4)))
                for name in folder.paths(index).values():
                    write_volume(folder.root / name, volume)
                folder.finish_case(index)
        folder.complete()
        listings.append(seen[0])
    # for the origin before the first pair and at the end, and for the list: however many pairs
    assert listings[0] == listings[1] <= 3
