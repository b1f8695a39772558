"""What ends a run is said once."""

from __future__ import annotations

import io
import logging
import signal
import sys
from collections.abc import Iterator

import pytest
from ignite.engine import Engine

from medpair.data.files import DataError
from medpair.engines.refusals import plain_refusals


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """What a process that ends on refusals logs, as the bundles' ``logging.conf`` has it."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger().addHandler(handler)
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    before = signal.getsignal(signal.SIGTERM)
    plain_refusals()
    yield text
    signal.signal(signal.SIGTERM, before)
    logging.getLogger().removeHandler(handler)


def caused() -> RuntimeError:
    error = RuntimeError("Failed to evaluate")
    error.__cause__ = DataError("one.nii: label: expected 0 or 1, found 7")
    return error


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (DataError("one.nii: label: expected 0 or 1, found 7"), 0),
        (caused(), 0),
        (SystemExit(143), 0),
        (KeyboardInterrupt(), 0),
        (RuntimeError("a fault of the code"), 2),  # of the epoch, of the run
    ],
)
def test_the_engine_leaves_refusals_to_the_last_line(
    error: BaseException, lines: int, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(engine: Engine, batch: int) -> None:
        raise error

    def run() -> str:
        said.truncate(0)
        engine = Engine(step)
        engine.logger.setLevel(logging.ERROR)
        with pytest.raises(type(error)):
            engine.run([0])
        return said.getvalue()

    assert run().count("terminating due to exception") == lines
    monkeypatch.setenv("MEDPAIR_TRACEBACK", "1")
    assert "terminating due to exception" in run() or isinstance(error, KeyboardInterrupt)
