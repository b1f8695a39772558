"""Keep freed memory in the process when training on a CPU."""

from __future__ import annotations

import ctypes
import ctypes.util
import sys

# Parameters of glibc's mallopt (malloc.h)
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
KEEP_BYTES = 2**31 - 1  # mallopt takes an int
TOP_PAD_BYTES = 256 * 2**20
# Blocks over this are better given back: among kept ones of that size, holes add half to the peak
LARGEST_BYTES = 128 * 2**20


def keep_freed_memory(largest: int = 0) -> bool:
    """Tell glibc to reuse large blocks instead of returning each to the kernel.

    A training step frees and asks again for the same hundreds of megabytes; by default glibc maps
    and unmaps each block, and the kernel clears every page anew: a fifth of a CPU step's time for
    volumes. Returns False where there is no glibc, or where the largest block asked for again and
    again has more than 128 MiB (``largest``, bytes); results never depend on it.
    """
    if largest > LARGEST_BYTES or not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(ctypes.util.find_library("c"))
        done = [
            libc.mallopt(M_MMAP_MAX, 0),
            libc.mallopt(M_TRIM_THRESHOLD, KEEP_BYTES),
            libc.mallopt(M_TOP_PAD, TOP_PAD_BYTES),
        ]
    except (OSError, AttributeError):
        return False
    return all(done)
