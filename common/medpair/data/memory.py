"""Running out of memory: recognised on every device, said in one line, survived where it can be.

What samples can be made in parts of a batch: each depends on its index alone, so that the parts
give the volumes that a smaller batch would have given.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from medpair.data.files import DataError

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How PyTorch's CPU allocator, CUDA and the kernels say it, without an exception of its own
TEXTS = (
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    # cuDNN, where no algorithm's workspace fits
    "unable to find an engine to execute this computation",
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "could not create a memory object",
    "std::bad_alloc",
    "Unable to allocate",
)


class OutOfMemoryError(DataError, MemoryError):
    """Not even the smallest part of the work fits; the message says what would."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or one that it comes from, is a lack of memory, on CPU or GPU."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, (torch.OutOfMemoryError, MemoryError)):
            return True
        if isinstance(current, RuntimeError) and any(t in str(current) for t in TEXTS):
            return True
        current = current.__cause__ or current.__context__
    return False


def peak_memory(device: torch.device | str | None = None) -> str:
    """Return in words the most memory that was in use: on a GPU by tensors, else by the process."""
    kind = "cpu" if device is None else torch.device(device).type
    if kind == "cuda" and torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated(device)
        _, total = torch.cuda.mem_get_info(device)
        return f"peak {gib(peak)} of {gib(total)} on {torch.cuda.get_device_name(device)}"
    try:
        import resource
    except ImportError:  # not on Windows
        return "peak unknown of this process on the CPU"
    # kilobytes on Linux, bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return f"peak {gib(peak)} of this process on the CPU"


def gib(size: float) -> str:
    """Return bytes as GiB."""
    return f"{size / 2**30:.2f} GiB"


class Parts:
    """Do a batch's work at once, or, where memory is short, in halves, quarters, ...

    Args:
        what: of the pieces, for messages: ``pairs``.
        knobs: what else may be changed when not even one piece fits, beside the usual.

    Attributes:
        fits: pieces that are done at a time; None until a batch was too large. It is remembered:
            the next batch would not fit either.
    """

    def __init__(self, what: str, knobs: str = "") -> None:
        self.what = what
        self.knobs = knobs
        self.fits: int | None = None

    def __call__(
        self,
        compute: Callable[[slice], T],
        count: int,
        like: Tensor,
        most: int | None = None,
        shape: Sequence[int] | None = None,
    ) -> list[T]:
        """Return ``compute`` of consecutive slices that cover ``range(count)``.

        Args:
            compute: of a slice; called again for the same pieces after it ran out of memory, and
                must then give the same.
            count: pieces.
            like: a tensor of the work: its device, size and type go into the message.
            most: pieces at a time, if not all.
            shape: of one piece; default that of ``like`` without its first axis.

        Raises:
            OutOfMemoryError: if one piece does not fit.
        """
        size = min(count if most is None else most, self.fits or sys.maxsize)
        done: list[T] = []
        first = 0
        while first < count:
            try:
                done.append(compute(slice(first, min(count, first + size))))
                first += size
            except (RuntimeError, MemoryError) as error:
                if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
                    raise
                if size <= 1:
                    raise OutOfMemoryError(self._message(like, shape, error)) from error
            else:
                continue
            # only here, when the error's frames no longer hold the tensors
            size = self.fits = size // 2
            release()
            logger.warning(
                "out of memory (%s): going on with %d of the %s at a time, which gives the same",
                peak_memory(like.device), size, self.what,
            )  # fmt: skip
        return done

    def _message(self, like: Tensor, shape: Sequence[int] | None, error: BaseException) -> str:
        kind = like.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
        size = tuple(like.shape[1:] if shape is None else shape)
        try_ = ["--amp True", "--device cpu"] if kind == "cuda" else ["a machine with more memory"]
        advice = " or ".join([*try_, *([self.knobs] if self.knobs else [])])
        return (
            f"out of memory on {kind} with one of the {self.what} at a time, of shape {size} in "
            f"{str(dtype).removeprefix('torch.')} ({peak_memory(like.device)}): "
            f"expected it to fit, found: {first_line(error)}; try {advice}"
        )


def first_line(error: BaseException) -> str:
    """Return the first line of an error, cut."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def release() -> None:
    """Give freed memory back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
