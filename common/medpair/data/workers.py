"""Processes that load data for a training."""

from __future__ import annotations

import logging
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import torch
from monai.data.utils import worker_init_fn

logger = logging.getLogger(__name__)

# Batches travel through memory that processes share; containers often have 64 MiB of it
SHARED, LEAST_SHARED = Path("/dev/shm"), 2**30
MOST_WORKERS = 8


def loading_workers(device: torch.device | str | int) -> int:
    """Return how many processes load data where ``num_workers`` is not given.

    A CPU has better things to do. A GPU would wait for one core that loads: beside it there are up
    to eight, one core being left to the training; none where batches cannot travel between
    processes at little cost (little shared memory, no fork). Results do not depend on it.
    """
    if torch.device(device).type != "cuda" or multiprocessing.get_start_method() != "fork":
        return 0
    if not SHARED.is_dir() or shutil.disk_usage(SHARED).free < LEAST_SHARED:
        logger.warning(
            "num_workers: 0, since %s has less than %d MiB free: the GPU will wait for data (in a "
            "container, --shm-size or --ipc=host)",
            *(SHARED, LEAST_SHARED >> 20),
        )
        return 0
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(MOST_WORKERS, cores - 1))


class TrainersWorkers:
    """What a data loader's worker does first, for trainers that save when they are stopped.

    A batch system sends its signal to every process of a job, a terminal to every process of the
    command. The trainer finishes its step and saves; it can only do so if its workers stay, and
    ends them itself. Random transforms of MONAI draw from the worker's own seed.
    """

    def __call__(self, worker_id: int) -> None:
        """Prepare this process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        worker_init_fn(worker_id)
