"""Each row of the benchmark's table runs, at sizes of seconds, and its two sides agree."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import harness
import pytest
import torch
from harness import Result, Row, Setting, Sides, measure, table

SPEC = importlib.util.spec_from_file_location(
    "benchmarks_main", Path(__file__).parent / "benchmarks" / "__main__.py"
)
assert SPEC is not None
assert SPEC.loader is not None
MAIN = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MAIN)
ROWS: list[Row] = MAIN.all_rows()


@pytest.mark.parametrize("row", [r for r in ROWS if "cpu" in r.goals], ids=lambda row: row.name)
def test_both_sides_of_a_row_agree(row: Row) -> None:
    result = measure(row, Setting("cpu", repeats=1, small=True))
    assert result.equal, result.check
    assert result.check
    assert min(result.seconds) > 0


@pytest.mark.parametrize("row", [r for r in ROWS if "cpu" not in r.goals], ids=lambda row: row.name)
def test_a_row_for_a_gpu_alone_runs_on_a_cpu_too(row: Row) -> None:
    assert row.build(Setting("cpu", repeats=1, small=True)).check()


def test_names_tell_rows_apart() -> None:
    names = [row.name for row in ROWS]
    assert len(set(names)) == len(names)


class Clock:
    """Time that passes only when a side says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.now)

    def row(self, slow: Sequence[float], fast: Sequence[float], difference: float = 0.0) -> Row:
        """Return a row whose sides take these seconds, one after the other."""
        matrix = torch.ones(100, 200)

        def side(seconds: Iterator[float]) -> None:
            self.now += next(seconds)
            matrix @ matrix.T

        def check() -> str:
            assert difference < 1, "too far"
            return "equal"

        def build(setting: Setting) -> Sides:
            times = [itertools.chain([9.0], given, itertools.repeat(9.0)) for given in (slow, fast)]
            return Sides(lambda: side(times[0]), lambda: side(times[1]), check)

        return Row("a", "b", {"cpu": 2.0}, build)


def test_a_row_is_the_median_of_its_pairs_and_says_what_it_misses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    result = measure(clock.row([3.0, 8.0, 4.0], [1.0, 2.0, 2.0]), Setting(repeats=3))
    assert result.seconds == pytest.approx((4.0, 2.0))
    assert result.ratio == pytest.approx(3.0)
    assert result.spread == pytest.approx((2.0, 4.0))
    assert result.tflop == pytest.approx(2 * 100 * 200 * 100 / 1e12)
    assert result.cells()[-1] == "met"
    far = measure(clock.row([3.0], [2.0]), Setting(repeats=1))
    assert far.cells()[-1] == "falls short"
    differs = measure(clock.row([3.0], [1.0], difference=2), Setting(repeats=1))
    assert not differs.equal
    assert differs.cells()[-2:] == ["too far", "DIFFERS"]
    assert table([result, far]).count("\n") == 3


def test_a_row_may_have_a_limit_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    for limit, end in ((1.0, "met"), (0.5, "falls short")):
        row = clock.row([3.0], [1.0])
        sides = row.build(Setting())
        sides.limit = limit
        result = measure(
            dataclasses.replace(row, build=lambda _, sides=sides: sides), Setting(repeats=1)
        )
        assert result.cells()[-1] == end


def test_a_part_of_the_work_counts_as_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    row = Clock(monkeypatch).row([3.0, 5.0], [2.0, 2.0])
    whole = replace(row, build=lambda setting: replace(row.build(setting), scale=(10.0, 0.5)))
    result = measure(whole, Setting(repeats=2))
    assert result.seconds == pytest.approx((40.0, 1.0))
    assert result.ratio == pytest.approx(40.0)
    assert result.tflop == pytest.approx(0.5 * 2 * 100 * 200 * 100 / 1e12)


def test_a_row_about_memory_compares_peaks() -> None:
    def build(setting: Setting) -> Sides:
        size = 2**24  # 64 MiB of float32: well above what an allocator keeps

        def both() -> None:
            torch.ones(size).add_(torch.ones(size))

        return Sides(both, lambda: torch.ones(size), lambda: "equal", memory=True)

    result: Result = measure(Row("a", "b", {"cpu": 0.7}, build), Setting(repeats=1))
    assert result.memory
    assert result.ratio == pytest.approx(0.5, abs=0.1)
    assert result.met
