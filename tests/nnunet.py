"""nnU-Net's own check of a dataset folder."""

from __future__ import annotations

import multiprocessing.dummy
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest


def verify(folder: Path) -> None:
    """Run nnU-Net's check, which raises, or prints what it only warns of; skip without nnU-Net.

    It asks for a pool of fresh processes. Each imports PyTorch again, and a pool whose process has
    died waits for its answer for ever: threads do the same work here. So they do for the pool that
    lists files, whose forks have the bundles' handler of SIGTERM: where that comes while a fork
    begins, Python drops what the handler raises, and the pool waits for a process that stays.
    """
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from nnunetv2.experiment_planning import verify_dataset_integrity as check
    from nnunetv2.utilities import utils

    threads = SimpleNamespace(get_context=lambda method: multiprocessing.dummy)
    with (
        mock.patch.object(check, "multiprocessing", threads),
        mock.patch.object(utils, "Pool", multiprocessing.dummy.Pool),
    ):
        check.verify_dataset_integrity(str(folder), num_processes=1)
