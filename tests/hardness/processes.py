"""Bundles as processes that can be killed, and what must hold of the folders they leave."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from PIL import Image

from medpair.chain import bundle_command
from tests.bundles.conftest import BUNDLES

ROOT = Path(__file__).parents[2]
# MEDPAIR_LONG asks for the long form of these tests: the same asserts, bigger numbers
LONG = bool(os.environ.get("MEDPAIR_LONG"))
PATIENCE = 600.0


class Processes:
    """Starts commands in forks of a process that has imported everything."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log.txt"
        self.count = folder / "count.txt"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
        }
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.hardness.driver"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=ROOT,
        )
        self._answer()

    def _answer(self) -> Any:
        assert self.server.stdout is not None
        line = self.server.stdout.readline()
        assert line, "the driver has ended"
        return json.loads(line)

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self.server.stdin is not None
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        return self._answer()

    def start(self, command: Command, **options: Any) -> int:
        """Start a command; return the process's id."""
        self.log.unlink(missing_ok=True)
        task = {"log": str(self.log), "count": str(self.count), **command.task(), **options}
        pid: int = self._ask({"start": task})
        return pid

    def wait(self, pid: int, seconds: float = PATIENCE) -> int | None:
        """Return the exit code (negative: the signal), None if the process runs on."""
        code: int | None = self._ask({"wait": [pid, seconds]})
        return code

    def run(self, command: Command, **options: Any) -> int:
        """Run a command to its end; return the exit code."""
        pid = self.start(command, **options)
        code = self.wait(pid)
        assert code is not None, f"no end after {PATIENCE} s:\n{self.said()}"
        return code

    def finish(self, command: Command) -> float:
        """Run a command that must end well; return the seconds it took."""
        began = time.monotonic()
        code = self.run(command)
        assert code == 0, self.said()
        return time.monotonic() - began

    def changes(self) -> int:
        """Return how many changes to files the last command that ended made."""
        return int(self.count.read_text())

    def said(self) -> str:
        """Return what the last commands wrote to their terminal."""
        text = self.log.read_text() if self.log.exists() else ""
        errors = [line[:500] for line in text.splitlines() if "Error: " in line]
        return "\n".join([*errors, "...", text[-3000:]])

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait(timeout=60)


class Command:
    """A command that writes to a folder; ``into`` gives the same for another folder."""

    def __init__(
        self, folder: Path, module: str, words: list[str], watched: Path | None = None
    ) -> None:
        self.folder, self.module, self.words, self.watched = folder, module, words, watched

    @classmethod
    def bundle(
        cls, name: str, configs: list[str], folder: Path, knobs: Mapping[str, Any]
    ) -> Command:
        """Return the command that runs a bundle."""
        knobs = {"output_dir": str(folder), "device": "cpu", **knobs}
        return cls(folder, "monai.bundle", bundle_command(BUNDLES / name, configs, knobs)[3:])

    def into(self, folder: Path) -> Command:
        """Return the same command with another output folder."""
        own = str(self.folder)
        return Command(
            folder, self.module, [str(folder) if word == own else word for word in self.words]
        )

    def with_knob(self, name: str, value: str) -> Command:
        """Return the same command with another value of a knob."""
        words = [*self.words]
        if f"--{name}" in words:
            words[words.index(f"--{name}") + 1] = value
        else:
            words += [f"--{name}", value]
        return Command(self.folder, self.module, words)

    def task(self) -> dict[str, Any]:
        """Return what the driver needs to know."""
        return {"module": self.module, "words": self.words, "folder": str(self.folder)}


def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait for something that another process does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)


def final_files(folder: Path) -> list[Path]:
    """Return the files that are there under their final names."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith((".", "events.out"))
    )


def partials(folder: Path) -> list[Path]:
    """Return what is half written, or was left so."""
    return sorted(folder.rglob(".partial-*"))


def assert_all_files_load(folder: Path) -> int:
    """Read every file that has its final name to its end; return how many there are."""
    files = final_files(folder)
    for path in files:
        if path.name.endswith(".nii.gz"):
            gzip.decompress(path.read_bytes())  # checks the sum that nibabel does not reach
            np.asanyarray(nib.load(path).dataobj)
        elif path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".jsonl":
            [json.loads(line) for line in path.read_text().splitlines()]
        elif path.suffix == ".png":
            Image.open(path).load()
        else:
            assert path.suffix in (".csv", ".md"), path
    for path in folder.rglob("dataset.json"):
        assert_listed_pairs_are_whole(path)
    return len(files)


def assert_listed_pairs_are_whole(listing: Path) -> int:
    """Every case that ``dataset.json`` lists has its files; return how many it lists."""
    cases = json.loads(listing.read_text())["training"]
    for case in cases:
        for name in case.values():
            gzip.decompress((listing.parent / name).read_bytes())
    return len(cases)


def assert_same_result(one: Path, two: Path) -> None:
    """Both folders hold the same files with the same content, times aside."""
    names, others = (
        # which checkpoint was the last but one depends on where a run was cut
        [path.relative_to(f) for path in final_files(f) if path.name != "checkpoint.previous.pt"]
        for f in (one, two)
    )
    assert names == others
    for name in names:
        first, second = one / name, two / name
        if name.name == "model.pt":
            states = [torch.load(path, weights_only=True) for path in (first, second)]
            assert states[0].keys() == states[1].keys()
            assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), name
        elif name.suffix == ".jsonl":
            assert _lines(first) == _lines(second), name
        elif name.name == "finished.json":
            continue  # names the output folder
        elif not name.name.startswith("checkpoint"):  # holds the order in which sets were made
            assert first.read_bytes() == second.read_bytes(), name


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in lines]
