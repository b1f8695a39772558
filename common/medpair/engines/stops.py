"""What stops a training run, in one line and, for numbers, in a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from medpair.data.files import DataError, read_json, write_json
from medpair.data.memory import OutOfMemoryError, first_line, is_out_of_memory, peak_memory, release
from medpair.engines.distributed import rank
from medpair.engines.numerics import NotFiniteError, identity, precision

logger = logging.getLogger(__name__)

BAD_BATCH = "bad_batch.json"


def explained(engine: Any, error: BaseException, folder: Path, saved: int) -> BaseException:
    """Return the error that a run is to end with: one line, where more is known than it says.

    Numbers that were not finite leave ``bad_batch.json`` (iteration, cases, losses, loss scale of
    the bad steps) in ``folder``; of several processes each leaves its own.

    Args:
        engine: the trainer.
        error: what it raised.
        folder: of the run.
        saved: iteration of the last checkpoint; negative if there is none.
    """
    last = f"the last good checkpoint is of iteration {saved}" if saved >= 0 else "none saved yet"
    if isinstance(error, NotFiniteError):
        own = f".rank{rank()}.json" if rank() else ".json"
        path = (folder / BAD_BATCH).with_suffix(own)
        content = {
            "iteration": int(engine.state.iteration),
            "message": str(error),
            "precision": precision(engine),
            "last_checkpoint": saved if saved >= 0 else None,
            **error.report,
        }
        try:
            write_json(path, content)
        except OSError as reason:
            logger.warning("%s: cannot be written: %s", path, reason)
        return NotFiniteError(f"{error} ({path}; {last})", error.report)
    if is_out_of_memory(error) and not isinstance(error, DataError):
        message = out_of_memory(engine, error)
        release()
        return OutOfMemoryError(f"{message}; {last}")
    return error


def out_of_memory(engine: Any, error: BaseException) -> str:
    """Return peak memory, shapes, precision and the knobs to change, as one line."""
    device = engine.state.device
    batch = engine.state.batch
    tensors = batch.items() if isinstance(batch, Mapping) else ()
    shapes = [
        f"{key} {tuple(t.shape)}" for key, t in tensors if isinstance(t, Tensor) and t.ndim > 2
    ]
    knobs = [f"a smaller {name}" for name in getattr(engine, "memory_knobs", ("batch_size",))]
    if device.type == "cuda" and precision(engine) == "float32":
        knobs.append("--amp True")
    cases = identity(batch).get("case")
    return (
        f"iteration {engine.state.iteration}: out of memory on {device.type} "
        f"({peak_memory(device)}) at {', '.join(shapes) or 'this batch'} in {precision(engine)}"
        f"{f' of {cases}' if cases and not shapes else ''}: expected it to fit, found: "
        f"{first_line(error)}; try {' or '.join(knobs)}"
    )


def earlier_stop(folder: Path, iteration: int) -> str:
    """Return in words that the run had stopped on its numbers after ``iteration``, or nothing."""
    path = folder / BAD_BATCH
    try:
        stop = read_json(path) if path.exists() else None
    except DataError:
        return ""
    if not isinstance(stop, dict) or not stop.get("iteration", 0) > iteration:
        return ""
    return f" (it had stopped at {stop['iteration']} on numbers that were not finite, see {path})"
