"""Out of memory: real allocation failures on the CPU, and the logic for a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medpair.data.memory import OutOfMemoryError, Parts, is_out_of_memory

# A network whose every pair takes 64 MiB while it is made, and next to nothing afterwards
SCRIPT = """
import logging, resource, torch
from torch import nn
from medpair.data.memory import OutOfMemoryError
from medpair.inferers.pairs import PairInferer

MIB = 2**20

class Network(nn.Module):
    def __init__(self, size=16):
        super().__init__()
        self.size = size

    def forward(self, latent):
        wide = latent.repeat(1, self.size * MIB // 4)  # four of such are alive at once
        return ((wide * 2 + 1) * (wide - 3)).view(len(latent), -1, 1, 1, 4)[:, :5].clone()

def allow(room):
    text = open("/proc/self/status").read()
    size = int(text.split("VmSize:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + room * MIB, resource.RLIM_INFINITY))

logging.basicConfig(level=logging.WARNING, format="%(message)s")
torch.set_num_threads(1)
latent = torch.arange(8, dtype=torch.float32)[:, None]
with torch.no_grad():
    whole = torch.cat([PairInferer()(row[None], Network()) for row in latent])
    allow(96)
    inferer = PairInferer()
    made = inferer(latent, Network())
    print("MADE", inferer.parts.fits, torch.equal(made, whole))
    allow(32)
    try:
        PairInferer()(latent[:2], Network(128))
    except OutOfMemoryError as error:
        print("STOP", error)
"""


@pytest.mark.fault(37)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS is Linux's")
def test_real_allocations_that_fail(tmp_path: Path) -> None:
    """Room for 96 MiB: 8 pairs of 64 MiB and 4 do not fit, one does. Then a pair of 512 MiB."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script)]
    # Another thread's heap would reserve most of the room. And glibc's threshold moves: once freed,
    # blocks of 16 MiB come from the heap, whose gaps are room for now two pairs, now none
    own = {**os.environ, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
    result = subprocess.run(command, capture_output=True, text=True, env=own)
    assert result.returncode == 0, result.stderr
    made, stop = result.stdout.splitlines()
    assert made == "MADE 1 True"
    for fits in (4, 2, 1):
        assert f"going on with {fits} of the pairs at a time" in result.stderr
    assert stop.startswith(
        "STOP out of memory on cpu with one of the pairs at a time, of shape (1,)"
    )
    assert "float32 (peak " in stop
    assert "DefaultCPUAllocator: can't allocate memory" in stop


@pytest.mark.fault(37)
def test_the_cuda_error_halves_until_it_fits_and_is_remembered() -> None:
    asked: list[tuple[int, int]] = []

    def compute(part: slice) -> torch.Tensor:
        asked.append((part.start, part.stop))
        if part.stop - part.start > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return torch.arange(part.start, part.stop)

    parts = Parts("pairs")
    like = torch.zeros(7, 3)
    assert torch.cat(parts(compute, 7, like)).tolist() == list(range(7))
    assert asked == [(0, 7), (0, 3), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7)]
    asked.clear()
    assert torch.cat(parts(compute, 4, like)).tolist() == list(range(4))
    assert asked == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert parts.fits == 1


@pytest.mark.fault(37)
def test_memory_lost_in_the_middle_keeps_what_is_done() -> None:
    fails = iter([False, True, False, False, False])
    asked: list[int] = []

    def compute(part: slice) -> torch.Tensor:
        asked.append(part.stop - part.start)
        if next(fails):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return torch.arange(part.start, part.stop)

    assert torch.cat(Parts("slices")(compute, 8, torch.zeros(8), most=4)).tolist() == list(range(8))
    assert asked == [4, 4, 2, 2]


def test_other_errors_are_not_taken_for_it() -> None:
    def compute(part: slice) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Parts("pairs")(compute, 4, torch.zeros(4))


@pytest.mark.fault(37)
def test_a_real_allocation_that_fails_is_recognised_through_its_causes() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**46)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    outer = RuntimeError("Failed to evaluate")
    outer.__cause__ = caught.value
    assert is_out_of_memory(outer)
    assert not is_out_of_memory(RuntimeError("shape"))
    for text in (
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
    ):
        assert is_out_of_memory(RuntimeError(text))
    message = r"of shape \(3,\) in float64 \(peak .*\): .*try a machine with more memory or --n 1"
    like = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(OutOfMemoryError, match=message):
        Parts("pairs", "--n 1")(lambda part: torch.empty(2**46), 2, like)
