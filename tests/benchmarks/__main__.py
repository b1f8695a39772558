"""The table of all comparisons: `make bench`, `make bench-gpu`.

python tests/benchmarks                       all rows that have a goal on the CPU
python tests/benchmarks --device cuda         those that have one on a GPU
python tests/benchmarks --rows wgan,refiner   rows whose name holds one of these words
python tests/benchmarks --output bench.md     write the table there too, with machine and date
python tests/benchmarks --small               minutes become seconds; proves nothing
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from harness import Result, Row, Setting, measure, table

# Modules of rows, in the table's order
MODULES = (
    "rows_wgan",
    "rows_labels",
    "rows_refiner",
    "rows_medgen3d",
    "rows_metrics",
    "rows_data",
)


def all_rows() -> list[Row]:
    """Return the rows of all modules."""
    return [row for name in MODULES for row in importlib.import_module(name).ROWS]


def main() -> int:
    """Measure and print; return 1 if a row's two sides differ, or a row fails."""
    options = parse()
    torch.set_num_threads(options.threads)
    setting = Setting(options.device, options.repeats, options.small)
    rows = [row for row in all_rows() if options.device in row.goals]
    if options.only is not None:
        row = next(row for row in rows if row.name == options.only)
        print(json.dumps(measure(row, setting).to_json()))
        return 0
    words = options.rows.split(",")
    rows = [row for row in rows if any(word.lower() in row.name.lower() for word in words)]
    results = [result for row in rows if (result := in_own_process(row, options)) is not None]
    text = f"{describe(options)}\n\n{table(results)}\n"
    notes = [f"- {result.name}: {result.notes}" for result in results if result.notes]
    text += "\n" + "\n".join(notes) + "\n" if notes else ""
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    return 0 if len(results) == len(rows) and all(result.equal for result in results) else 1


def in_own_process(row: Row, options: argparse.Namespace) -> Result | None:
    """Measure one row in a fresh process; None, and what it said, if it ended badly."""
    print(f"{row.name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, str(Path(__file__).parent), "--only", row.name]
    command += ["--device", options.device, "--repeats", str(options.repeats)]
    command += ["--threads", str(options.threads), *(["--small"] if options.small else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{row.name}: failed\n{done.stderr[-3000:]}", file=sys.stderr)
        return None
    return Result(**json.loads(done.stdout.splitlines()[-1]))


def describe(options: argparse.Namespace) -> str:
    """Return machine, date and command in one sentence."""
    cpu = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        if Path("/proc/cpuinfo").exists()
        else iter(()),
        platform.processor(),
    )
    machine = f"{cpu}, {options.threads} threads of {os.cpu_count()}"
    if options.device == "cuda":
        machine = f"{torch.cuda.get_device_name()}, {machine}"
    today = datetime.date.today().isoformat()
    command = f"python tests/benchmarks --device {options.device} --threads {options.threads}"
    small = ", sizes too small to prove anything" if options.small else ""
    return (
        f"{machine}; PyTorch {torch.__version__}; {today}; `{command}`, {options.repeats} pairs"
        f"{small}."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare with what a user would otherwise run.")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rows", default="", help="words, by commas, that a row's name holds")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
