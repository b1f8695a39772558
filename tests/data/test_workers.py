"""How many processes load data beside a device."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from medpair.data import workers
from medpair.data.workers import loading_workers


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Linux machine of 16 cores and 8 GiB of shared memory, a process of its own."""
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(workers, "SHARED", Path("/"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=8 * 2**30))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    return monkeypatch


def test_none_beside_a_cpu_and_a_few_beside_a_gpu(machine: pytest.MonkeyPatch) -> None:
    assert loading_workers("cpu") == 0
    assert loading_workers("cuda:1") == 8
    for cores, expected in ((1, 0), (2, 1), (6, 5), (64, 8)):
        machine.setattr(os, "sched_getaffinity", lambda pid, n=cores: set(range(n)))
        assert loading_workers("cuda") == expected


def test_processes_of_one_machine_share_its_cores(machine: pytest.MonkeyPatch) -> None:
    machine.setenv("LOCAL_WORLD_SIZE", "4")
    assert loading_workers("cuda:3") == 3


def test_a_container_of_little_shared_memory_gets_none_and_is_told(
    machine: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    machine.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    assert loading_workers("cuda") == 0
    assert "less than 1024 MiB free: the GPU will wait for data" in caplog.text
    machine.setattr(workers, "SHARED", Path("/nowhere"))
    assert loading_workers("cuda") == 0


def test_where_processes_are_not_forked_there_are_none(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    assert loading_workers("cuda") == 0
