"""The device that was asked for, looked at before anything is built on it."""

from __future__ import annotations

import logging

import numpy as np
import torch

from medpair.data.files import DataError

logger = logging.getLogger(__name__)


def require_device(device: torch.device | str | int, sampling_amp: bool | None = None) -> None:
    """Raise DataError unless tensors can be made on a device; bundles call it in ``initialize``.

    A CPU counts numbers below 1e-38 as zero from here on, see ``flush_denormals``.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        sampling_amp: whether mixed precision was asked of MONAI's evaluator, whose autocast is
            CUDA's: on another device, where it changes nothing, that is said. On a GPU what is
            sampled is to be the same in every run, and cuDNN is asked for algorithms that are.
            None: this is a training.
    """
    try:
        torch.empty(1, device=device).zero_()
    except Exception as error:  # every backend fails in its own way
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        there = ["cpu", *(f"cuda:{number}" for number in range(count))]
        raise DataError(
            f"device: expected a device of this machine ({', '.join(there)}), found {device}: "
            f"{(str(error).splitlines() or [type(error).__name__])[0]}"
        ) from error
    if torch.device(device).type == "cpu":
        flush_denormals()
    elif sampling_amp is not None:
        torch.backends.cudnn.deterministic = True
    if sampling_amp and torch.device(device).type != "cuda":
        logger.warning(
            "amp: expected a CUDA device, found %s: this computes in float32 (on a CPU amp is for "
            "training)", device,
        )  # fmt: skip


def flush_denormals() -> None:
    """Tell the processor to count numbers below 1e-38 as zero, in this thread and later ones.

    A convolution over such numbers takes a hundred times as long and more, and the gradient of a
    class that is as good as certain is full of them: training the label diffusion takes half the
    time without. It must be said before the first parallel computation begins PyTorch's other
    threads, and stays so in the process.
    """
    for dtype in (np.float32, np.float64):
        np.finfo(dtype)  # NumPy before 2.3 warns if it learns of the least numbers only now
    torch.set_flush_denormal(True)
