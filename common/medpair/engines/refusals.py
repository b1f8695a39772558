"""Errors of the data as one sentence, not as forty lines of traceback."""

from __future__ import annotations

import os
import sys
from types import TracebackType

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

    Bundles call it first in ``initialize``. ``MEDPAIR_TRACEBACK=1`` shows the traceback too. The
    first thing that is refused is a knob that does not exist, given on the command line or from
    Python.
    """
    _print_refusals()
    refuse_unknown_knobs()
    refuse_unknown_overrides()


def _print_refusals() -> None:
    previous = sys.excepthook
    if getattr(previous, "plain_refusals", False):  # several workflows in one process
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        refusal = first_data_error(error)
        if refusal is None or os.environ.get("MEDPAIR_TRACEBACK"):
            previous(kind, error, trace)
        if refusal is not None:
            print(f"\nmedpair: {refusal}", file=sys.stderr)

    hook.plain_refusals = True  # type: ignore[attr-defined]
    sys.excepthook = hook
