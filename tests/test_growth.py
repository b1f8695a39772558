"""The growth tables: a tiny cell of every bundle is measured, once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import growth
import numpy as np
import pytest
import torch
from growth_tables import tables

from medpair.inferers.label_windows import WindowDenoiser

SMALL = ("--small", "--sizes", "32", "--classes", "3", "--class_size", "32", "--steps", "2")


def inline(task: Callable[[], dict[str, Any]], options: Any = None) -> dict[str, Any]:
    """Run a task here: a process forked from one that has computed is no test of the numbers."""
    return json.loads(json.dumps(task()))


def test_every_bundle_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "growth.jsonl"
    command = [*SMALL, "--output", str(output), "--tables", "volume,samples,work"]
    command += ["--samples", "1,3"]
    monkeypatch.setattr(growth, "in_own_process", inline)
    assert growth.main(command) == 0
    told = capsys.readouterr().out
    lines = growth.records(output)
    measured = [(line["cell"]["subject"], line["cell"]["phase"]) for line in lines]
    assert set(measured) == {(n, p) for n in growth.NAMES for p in ("train", "make")} | {
        ("", "work")
    }
    for line in lines:
        pieces = line["pieces"].values() if "pieces" in line else [line]
        assert all(piece["seconds"] > 0 and piece["peak"] >= 0 for piece in pieces)
    # what a part stands for is what a whole volume takes
    rows = {line["cell"]["subject"]: line["counted"] for line in lines if line.get("counted")}
    assert rows["medgen3d_vid2vid"] == rows["medgen3d_semantic_refiner"] == 1
    assert rows["medgen3d_mcdpm"] == 1
    assert "not measured" not in told
    assert all(f"| {name}" in told for name in growth.NAMES)

    def again(*_: Any) -> dict[str, Any]:
        raise AssertionError("measured again")

    monkeypatch.setattr(growth, "in_own_process", again)
    before = output.read_text()
    assert growth.main(command) == 0
    assert capsys.readouterr().out == told
    with output.open("a") as stream:
        stream.write('{"cell": {"subj')  # cut off while it was written
    assert growth.records(output) == lines
    assert output.read_text().startswith(before)
    with pytest.raises(AssertionError, match="measured again"):
        growth.main([*command[:-1], "1,3,4"])


def test_a_part_stands_for_the_whole(tmp_path: Path) -> None:
    one = growth.Cell("medgen3d_vid2vid", "train", size=32, batch=1, small=True)
    data = growth.cohort(tmp_path / "data", 32, 2)
    growth.train(one, data, tmp_path / "weights", 1)
    found = growth.make(one, data, tmp_path / "weights", tmp_path / "out", limit=0.0)
    assert found["share"] == found["counted"] == 8 / 32
    assert not list((tmp_path / "out").rglob("*.nii.gz"))


def test_windows_that_fill_up_a_batch_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, which gets more of them at a time than one volume has."""
    monkeypatch.setattr(WindowDenoiser, "windows_at_once", lambda self, device: 5)
    one = growth.Cell("medgen3d_mcdpm", "train", size=32, batch=1, small=True)
    data = growth.cohort(tmp_path / "data", 32, 2)
    growth.train(one, data, tmp_path / "weights", 1)
    found = growth.make(one, data, tmp_path / "weights", tmp_path / "out", limit=1e9)
    assert found["share"] == found["counted"] == 1


def test_a_cell_has_a_process_and_a_limit_of_its_own(tmp_path: Path) -> None:
    options = growth.parse(["--output", str(tmp_path / "x"), "--memory_gib", "3"])
    assert growth.in_own_process(lambda: {"pid": os.getpid()}, options)["pid"] != os.getpid()

    def large() -> dict[str, Any]:
        return {"sum": float(torch.ones(2**30).sum())}

    assert growth.in_own_process(large, options) == {"limit": "memory", "limit_gib": 3.0}

    def killed() -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    assert "SIGKILL" in growth.in_own_process(killed, options)["failed"]
    found = growth.in_own_process(lambda: {"x": int("a")}, options)
    assert found["failed"].startswith("ValueError: invalid literal")


def test_tables_say_what_was_not_measured_and_what_did_not_fit() -> None:
    cell = growth.Cell("wgan_sn_mp", "train", size=64, batch=1)
    both = {"machine": "m", "torch": "2", "date": "2026-01-01"}
    lines = [
        {"cell": cell.to_json(), "seconds": 0.5, "peak": 2**30, "batch": 1, **both},
        {
            "cell": growth.replace(cell, size=128).to_json(),
            "limit": "memory",
            "limit_gib": 10.0,
            **both,
        },
        {
            "cell": growth.replace(cell, phase="make").to_json(),
            "seconds": 0.01,
            "peak": 2**29,
            "share": 0.25,
            **both,
        },
    ]
    told = tables(lines, (10,), 64).splitlines()
    assert told[0] == "m, PyTorch 2; cpu, threads 1; 2026-01-01."
    part = "10 ms (from 0.25 of it), 512 MiB"
    assert told[-2:] == [
        f"| wgan_sn_mp, `compact` | 64 | 0.5 s, 1.00 GiB | not measured | {part} |",
        "| wgan_sn_mp, `compact` | 128 | needs more than 10 GiB | not measured | not measured |",
    ]


def test_the_cohort_has_every_class(tmp_path: Path) -> None:
    from medpair.report.pairs import open_pairs

    pairs = open_pairs(growth.cohort(tmp_path, 32, 104))
    assert [len(np.unique(pair.label)) for pair in pairs] == [105, 105]
