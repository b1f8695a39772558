"""Logs that were cut off, and places that cannot be written."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from medpair.engines.board import Board
from medpair.engines.jsonl import whole_records
from medpair.engines.logs import MetricsLog, ValidationLog


def engine(iteration: int, **output: float) -> Any:
    state = SimpleNamespace(
        iteration=iteration, epoch=1, max_epochs=1, epoch_length=9, output=output, metrics=output
    )
    return SimpleNamespace(state=state)


def records(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    return [{k: v for k, v in record.items() if k != "seconds_per_iteration"} for record in found]


@pytest.mark.parametrize(
    "torn", [b'{"iteration": 3, "lo', b"{", b"\xff\xfe", b'{"iteration": 3}{"iter', b"3\n"]
)
def test_a_torn_line_does_not_stop_a_resumed_run(
    torn: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"iteration": 1, "loss": 0.5}\n{"iteration": 2, "loss": 0.4}\n' + torn)
    log = MetricsLog(tmp_path, interval=1, progress=False)
    with caplog.at_level(logging.WARNING):
        log._start(engine(2))
    assert f"{path}: line 3 is torn, and dropped" in caplog.text
    log._iteration(engine(3, loss=0.3))
    log._close(engine(3))
    assert [r["iteration"] for r in records(path)] == [1, 2, 3]
    assert records(path)[-1] == {"iteration": 3, "epoch": 1, "loss": 0.3}


def test_a_torn_line_of_the_validation_log_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "validation.jsonl"
    path.write_bytes(b'{"epoch": 1, "dice": 0.5}\n{"epoch": 2, "di')
    log = ValidationLog(tmp_path)
    for epoch, dice in ((2, 0.6), (3, float("nan"))):
        evaluator = engine(3, dice=dice)
        evaluator.state.epoch = epoch
        log._write(evaluator)
    assert records(path) == [
        {"epoch": 1, "dice": 0.5},
        {"epoch": 2, "dice": 0.6},
        {"epoch": 3, "dice": None},
    ]
    assert len(whole_records(path)) == 3


def test_tensorboard_hides_the_steps_that_were_done_twice(tmp_path: Path) -> None:
    """Killed after step 6, gone on from the checkpoint of step 3."""
    for iteration, last, loss in ((0, 6, 0.5), (3, 5, 0.25)):
        log = MetricsLog(tmp_path, interval=1, progress=False)
        log._start(engine(iteration))
        for step in range(iteration + 1, last + 1):
            log._iteration(engine(step, loss=loss))
        log._close(engine(last))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (curve,) = (events.Scalars(tag) for tag in events.Tags()["scalars"] if tag.endswith("loss"))
    assert [(point.step, point.value) for point in curve] == [
        (1, 0.5), (2, 0.5), (3, 0.5), (4, 0.25), (5, 0.25),
    ]  # fmt: skip


@pytest.mark.fault(35)
def test_means_are_over_what_is_finite(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, interval=3, progress=False)
    log._start(engine(0))
    for iteration, loss in enumerate((1.0, float("nan"), 2.0), start=1):
        log._iteration(engine(iteration, loss=loss, other=3.0))
    log._close(engine(3))
    (record,) = records(tmp_path / "metrics.jsonl")
    assert record == {"iteration": 3, "epoch": 1, "bad_steps": 1, "loss": 1.5, "other": 3.0}


def test_a_board_that_fails_later_is_given_up_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    board = Board(tmp_path / "board")
    assert board.writer is not None

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    board.writer.add_scalar = full
    with caplog.at_level(logging.WARNING):
        for step in range(3):
            board.add_scalar("loss", 1.0, step)
    board.close()
    assert caplog.text.count("no TensorBoard: cannot be written") == 1
