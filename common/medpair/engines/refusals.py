"""Errors of the data as one sentence, not as forty lines of traceback."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType

from medpair.data.files import DataError
from medpair.engines.config_errors import argument_refusal
from medpair.engines.knob_numbers import refuse_wrong_numbers
from medpair.engines.knobs import refuse_misread_texts, refuse_unknown_knobs
from medpair.engines.overrides import refuse_unknown_overrides
from medpair.engines.tracking import suit_tracking
from medpair.sharing.own_code import require_own_code


def first_data_error(error: BaseException) -> DataError | None:
    """Return the outermost ``DataError`` among an error and its causes, or None."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, DataError):
            return current
        current = current.__cause__ or current.__context__
    return None


def plain_refusals(bundle_root: str | Path | None = None, hooks: bool = True) -> None:
    """Let this process end on a ``DataError`` with its message alone and exit code 1.

    So it does on wrong arguments of a component (see ``medpair.engines.config_errors``).

    Bundles call it first in ``initialize``. ``MEDPAIR_TRACEBACK=1`` shows the traceback too. The
    first things that are refused are another bundle's code, a knob that does not exist, given on
    the command line or from Python, a folder that was read as a number, and a number that a knob
    cannot have. A tracking server that is down is no reason to end. On SIGTERM the process removes
    what it has half written, and exits with 143 (a training finishes its step first).

    Args:
        bundle_root: the bundle's folder; None: do not ask whose code runs.
        hooks: False leaves ``sys.excepthook`` and signals to who runs the bundle: a federated
            client.
    """
    if hooks:
        _take_over_the_end()
    if bundle_root is not None:
        require_own_code(bundle_root)
    refuse_unknown_knobs()
    refuse_misread_texts()
    refuse_wrong_numbers()
    refuse_unknown_overrides()
    suit_tracking()


def _take_over_the_end() -> None:
    """Print refusals as one line, and clean up on SIGTERM."""
    previous = sys.excepthook
    if getattr(previous, "plain_refusals", False):  # several workflows in one process
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            print("\nmedpair: stopped; the same command goes on", file=sys.stderr)
            return
        refusal = first_data_error(error) or argument_refusal(error)
        if refusal is None or os.environ.get("MEDPAIR_TRACEBACK"):
            previous(kind, error, trace)
        if refusal is not None:
            print(f"\nmedpair: {refusal}", file=sys.stderr)

    hook.plain_refusals = True  # type: ignore[attr-defined]
    sys.excepthook = hook
    for handler in logging.getLogger().handlers:
        handler.addFilter(_not_said_twice)
    if (
        threading.current_thread() is threading.main_thread()
        # who has a handler of its own keeps it
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    ):
        signal.signal(signal.SIGTERM, _leave)


def _not_said_twice(record: logging.LogRecord) -> bool:
    """Leave out an engine's line on the way of what ends the process with one line of its own."""
    if not record.name.startswith("ignite.engine") or os.environ.get("MEDPAIR_TRACEBACK"):
        return True
    error = sys.exc_info()[1]  # it is logged where it is caught, and raised again
    stopped = isinstance(error, (SystemExit, KeyboardInterrupt))
    return error is None or not (stopped or first_data_error(error))


def _leave(number: int, frame: FrameType | None) -> None:
    """End as after Ctrl-C: files that are open are closed, partial ones removed."""
    raise SystemExit(128 + number)
