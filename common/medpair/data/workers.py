"""Processes that load data for a training."""

from __future__ import annotations

import signal

from monai.data.utils import worker_init_fn


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
