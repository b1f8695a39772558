"""One training, or one cohort, shared by several processes: several GPUs, several machines.

``torchrun`` starts the processes and tells each its number; ``multi_gpu_*.json`` calls ``start``
first and ``stop`` last. In between PyTorch's ``DistributedDataParallel`` averages gradients, and
only the main process, rank 0, writes what there is once. Without ``start`` everything here does
nothing: one process is its own main one.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from medpair.data.files import DataError
from medpair.data.sampling import torch_generator

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def is_distributed() -> bool:
    """Return whether ``start`` was called."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's number, from 0; 0 for a process alone."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Return how many processes there are."""
    return dist.get_world_size() if is_distributed() else 1


def is_main_rank() -> bool:
    """Return whether this process writes what there is once: checkpoints, logs, cards, pictures."""
    return rank() == 0


def rank_device() -> torch.device:
    """Return the GPU of this process on its machine, or the CPU where there is none.

    Raises:
        DataError: if there are fewer GPUs than processes.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    local, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local >= count:
        raise DataError(
            f"--nproc_per_node: expected at most the {count} GPUs of this machine, found process "
            f"{local + 1}"
        )
    return torch.device("cuda", local)


def start(device: torch.device | str, timeout_minutes: float = 30.0) -> None:
    """Join the other processes: over NCCL where they compute on GPUs, else over gloo.

    Processes but the main one then only log warnings.

    Args:
        device: of this process.
        timeout_minutes: what waits for another process longer than this ends with an error. It
            must cover the main process's longest work of its own (writing a checkpoint), and the
            difference in time between the first and the last process to finish a cohort.

    Raises:
        DataError: if this process was not started by ``torchrun``.
    """
    missing = [name for name in ENVIRONMENT if name not in os.environ]
    if missing:
        raise DataError(
            "multi_gpu config: expected a process started by torchrun (docs/multi_gpu.md), "
            f"found no {', '.join(missing)} in the environment"
        )
    device = torch.device(device)
    if device.type == "cuda" and device.index is None:
        raise DataError(
            "device: expected each process to have a GPU of its own, as without --device, found "
            "'cuda' for all"
        )
    timeout = timedelta(minutes=timeout_minutes)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=timeout, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=timeout)
    # The group's destructor waits for its threads, and a gloo thread that drops a finished work may
    # wait for the interpreter lock that the destructor holds: for ever. So it is never destructed.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(dist.group.WORLD))
    if not is_main_rank():
        logging.disable(logging.INFO)


def stop() -> None:
    """Leave the other processes."""
    if not is_distributed():
        return
    logging.disable(logging.NOTSET)
    # ignite, which MONAI's metrics ask, remembers the group once it has seen it
    idist.finalize()
    if dist.is_initialized():
        dist.destroy_process_group()


def data_parallel(module: M, may_skip: bool = False) -> M:
    """Return a module whose gradients are means over the processes; alone, the module itself.

    Its forward must come once before each backward: a loss of several passes is one module. On a
    GPU, BatchNorm takes its statistics over all processes' samples (in place; PyTorch has no such
    layer for CPUs, where each process normalises its own).

    Args:
        module: on this process's device.
        may_skip: some parameters may be unused in some steps, on some processes.
    """
    if not is_distributed():
        return module
    if next(module.parameters()).device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
    wrapped: Any = DistributedDataParallel(module, find_unused_parameters=may_skip)
    return wrapped


def rank_generator(*counters: int) -> torch.Generator:
    """Return a CPU generator seeded by counters and rank; the main one's is as without ranks."""
    number = rank()
    return torch_generator(*counters, *([number] if number else []))


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of each value over the processes."""
    if not is_distributed():
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def largest_over_ranks(value: int) -> int:
    """Return the largest of the processes' numbers."""
    if not is_distributed():
        return value
    kind = "cuda" if dist.get_backend() == "nccl" else "cpu"
    largest = torch.tensor(value, device=kind)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest.item())


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def main_rank_first(act: Callable[[], None]) -> None:
    """Let the main process do something, the others wait; what it refuses, all refuse.

    Raises:
        DataError: in every process, if the main one raises it; whatever else it raises, such as a
            folder that may not be written, they end on as well and do not wait for it.
    """
    refusal: Exception | None = None
    if is_main_rank():
        try:
            act()
        except Exception as error:
            refusal = error
    told = gathered(None if refusal is None else f"{refusal}" or repr(refusal))[0]
    if refusal is not None:
        raise refusal
    if told is not None:
        raise DataError(told)


def wait_for_all() -> None:
    """Go on when all processes have come here."""
    if is_distributed():
        dist.barrier()
