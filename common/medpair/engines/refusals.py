"""Errors of the data as one sentence, not as forty lines of traceback."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType, TracebackType

from medpair.data.files import DataError
from medpair.engines.knobs import refuse_unknown_knobs
from medpair.engines.overrides import refuse_unknown_overrides


def first_data_error(error: BaseException) -> DataError | None:
    """Return the outermost ``DataError`` among an error and its causes, or None."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, DataError):
            return current
        current = current.__cause__ or current.__context__
    return None


def plain_refusals() -> None:
    """Let this process end on a ``DataError`` with its message alone and exit code 1.

    Bundles call it first in ``initialize``. ``MEDPAIR_TRACEBACK=1`` shows the traceback too. On
    SIGTERM the process removes what it has half written, and exits with 143 (a training finishes
    its step first). The first thing that is refused is a knob that does not exist, given on the
    command line or from Python.
    """
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\nmedpair: stopped; the same command goes on", file=sys.stderr)
            return
        refusal = first_data_error(error)
        if refusal is None or os.environ.get("MEDPAIR_TRACEBACK"):
            previous(kind, error, trace)
        if refusal is not None:
            print(f"\nmedpair: {refusal}", file=sys.stderr)

    sys.excepthook = hook
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)
    refuse_unknown_knobs()
    refuse_unknown_overrides()


def _leave(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C: files that are open are closed, partial ones removed."""
    raise SystemExit(128 + number)
