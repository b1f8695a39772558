"""Two sides of one task, timed by turns in one process, and checked to give the same.

A row of the table is a ``Row``: who is compared, from which ratio on the goal is met, and a
function that builds both sides. Every row runs in a process of its own, so that no row's memory or
caches reach the next one's.
"""

from __future__ import annotations

import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

# Dense arithmetic that a GPU can do, in FLOP/s. A share of the floor is the time that the
# arithmetic alone would take at this rate, over the time taken. Other devices get no share.
PEAK = {
    ("H200", "bfloat16"): 790e12,
    ("H200", "float16"): 790e12,
    ("H200", "tf32"): 395e12,
    ("H200", "float32"): 60e12,
}


@dataclass
class Sides:
    """What is timed.

    Attributes:
        baseline, ours: the two; each does the whole task once. What they return is dropped.
        check: shows that speed costs nothing, and says so in a few words with the number that it
            found (``largest difference 3e-7``); raises AssertionError if it does.
        precision: the arithmetic of our side (a key of ``PEAK``), for its share of the floor.
        count_flops: False where the arithmetic is not PyTorch's, or too long to count.
        memory: which ratio the row is about: False, seconds; True, peak memory of the two.
        limit: seconds that our side may take, whatever the baseline takes.
        scale: what the seconds (and FLOP) of the baseline and of ours are multiplied with, where a
            side does a part of the task, or several at once; the notes say so.
        notes: said under the table.
    """

    baseline: Callable[[], Any]
    ours: Callable[[], Any]
    check: Callable[[], str]
    precision: str = "float32"
    count_flops: bool = True
    memory: bool = False
    limit: float | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    notes: str = ""


@dataclass(frozen=True)
class Setting:
    """Where and how long.

    Attributes:
        device: ``cpu`` or ``cuda``.
        repeats: pairs of runs.
        small: sizes that only show that everything works.
    """

    device: str = "cpu"
    repeats: int = 5
    small: bool = False


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: what is done, with its sizes.
        against: what the baseline is.
        goals: {device: ratio}; a device without a goal is not measured. For time (and for all that
            is slower when it is larger) baseline / ours must be at least the goal; for memory ours
            / baseline at most.
        build: makes both sides, with the same weights, seeds and data.
    """

    name: str
    against: str
    goals: dict[str, float]
    build: Callable[[Setting], Sides]


@dataclass
class Result:
    """What a row came to."""

    name: str
    against: str
    goal: float
    memory: bool
    seconds: tuple[float, float] = (0.0, 0.0)
    ratio: float = 0.0
    spread: tuple[float, float] = (0.0, 0.0)
    peak: tuple[int | None, int | None] = (None, None)
    tflop: float | None = None
    share: float | None = None
    check: str = ""
    equal: bool = False
    notes: str = ""
    device: str = ""
    limit: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def met(self) -> bool:
        enough = self.ratio <= self.goal if self.memory else self.ratio >= self.goal
        return enough and (self.limit is None or self.seconds[1] <= self.limit)

    def cells(self) -> list[str]:
        """Return the cells of its line."""
        low, high = self.spread
        return [
            self.name,
            self.against,
            *(f"{value:.3g} s" for value in self.seconds),
            f"{self.ratio:.2f}{'' if self.memory else 'x'} ({low:.2f} to {high:.2f})",
            f"{'at most' if self.memory else 'at least'} {self.goal:g}"
            + ("" if self.limit is None else f", {self.limit:g} s"),
            " / ".join("-" if size is None else f"{size / 2**20:.0f}" for size in self.peak),
            "-" if self.tflop is None else f"{self.tflop:.3g}",
            "-" if self.share is None else f"{self.share:.0%}",
            self.check,
            "DIFFERS" if not self.equal else "met" if self.met else "falls short",
        ]


HEADINGS = (
    "what",
    "against",
    "baseline",
    "ours",
    "ratio, median of pairs (range)",
    "goal",
    "peak memory added, MiB",
    "TFLOP",
    "of the floor",
    "check",
    "",
)


def table(results: Sequence[Result]) -> str:
    """Return the results as a Markdown table."""
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), *(result.cells() for result in results)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def measure(row: Row, setting: Setting) -> Result:
    """Check both sides of a row, then time them by turns, each going first every other time."""
    sides = row.build(setting)
    result = Result(row.name, row.against, row.goals[setting.device], sides.memory)
    result.device, result.limit = setting.device, sides.limit
    try:
        result.check, result.equal = sides.check(), True
    except AssertionError as error:
        result.check = str(error).splitlines()[0]
    both = (sides.baseline, sides.ours)
    for side in both:  # kernels are chosen and buffers made before the clock starts
        side()
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(1 if sides.memory else setting.repeats):
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):
            seconds = seconds_of(both[side], setting.device)
            times[side].append(seconds * sides.scale[side])
    result.seconds = (statistics.median(times[0]), statistics.median(times[1]))
    pairs = [slow / fast for slow, fast in zip(*times, strict=True)]
    result.peak = (
        peak_memory_of(sides.baseline, setting.device),
        peak_memory_of(sides.ours, setting.device),
    )
    if sides.memory:
        baseline, ours = result.peak
        assert baseline, "peak memory cannot be told here"
        pairs = [(ours or 0) / baseline]
    result.ratio, result.spread = statistics.median(pairs), (min(pairs), max(pairs))
    if sides.count_flops:
        with Flops() as counter:
            sides.ours()
        flops = counter.total * sides.scale[1]
        result.tflop = flops / 1e12
        result.share = share_of_floor(flops, result.seconds[1], sides.precision, setting.device)
    result.notes = sides.notes
    return result


class Flops(TorchDispatchMode):
    """Count arithmetic as PyTorch's ``FlopCounterMode`` does.

    That one tells modules apart as well, by hooks that gradients of gradients do not suffer.
    """

    total = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        count = flop_registry.get(func._overloadpacket)
        if count is None:
            with self:  # in inference mode, operators that are made of others come whole
                parts = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if parts is NotImplemented else parts
        result = func(*args, **kwargs)
        self.total += count(*args, **kwargs, out_val=result)
        return result


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """Return how long ``work`` takes, until the device is done."""
    synchronize(device)
    start = time.perf_counter()
    work()
    synchronize(device)
    return time.perf_counter() - start


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def peak_memory_of(work: Callable[[], Any], device: str) -> int | None:
    """Return the bytes that ``work`` adds at its peak; None where the system does not tell."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # freed memory would hide what the work asks for
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
    except OSError:
        return None
    resting = resident("VmRSS")
    work()
    peak = resident("VmHWM")
    return None if resting is None or peak is None else max(peak - resting, 0)


def resident(name: str) -> int | None:
    """Return a field of /proc/self/status in bytes.

    Not ``ru_maxrss``, which a process inherits from the one that started it.
    """
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else None


def share_of_floor(flops: float, seconds: float, precision: str, device: str) -> float | None:
    """Return the time that the arithmetic alone would take over the time taken."""
    if device != "cuda" or not flops:
        return None
    name = torch.cuda.get_device_name()
    if precision == "float32" and torch.backends.cudnn.allow_tf32:
        precision = "tf32"
    peak = next((v for (gpu, kind), v in PEAK.items() if gpu in name and kind == precision), None)
    return None if peak is None else flops / peak / seconds


def largest_difference(one: torch.Tensor, two: torch.Tensor, limit: float) -> str:
    """Say how far two results are apart.

    Raises:
        AssertionError: if further than ``limit``.
    """
    found = (one - two).abs().max().item()
    told = f"largest difference {found:.1e}"
    assert found <= limit, f"{told}, more than {limit:g}"
    return f"{told} (limit {limit:g})"
