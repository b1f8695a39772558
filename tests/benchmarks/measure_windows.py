"""Measure what fewer steps change, on first windows: a fifteenth of a volume's cost, and paired.

python tests/benchmarks/measure_windows.py --checkpoint runs/mcdpm/model.pt

The first window of volume i lies at the same place whatever the sampler, so that what the place
decides drops out of differences: they are told to a few percent from twenty windows. What windows
make of each other is not in them; `measure_steps.py` measures whole volumes. JSON lines
(`--output`) keep what was made; the same command again goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))

from label_samples import (
    FirstWindow,
    open_model,
    span_of,
    span_option,
    swapped,
    weights_id,
    where,
    window_statistics,
)
from measure_steps import SOLVERS, fitting

from medpair.engines.jsonl import keep_records, whole_records
from medpair.metrics.summary import bootstrap_interval

HEADINGS = (
    "solver",
    "steps",
    "windows",
    "s a window",
    "share of each class, change in % [95 %]",
    "pieces of each class",
    "least p",
)
Line = dict[str, Any]


def main(arguments: list[str] | None = None) -> None:
    """Sample what the file does not have yet, and print the table of all it has."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    card, network = open_model(options.checkpoint)
    lines = whole_records(options.output) if options.output.exists() else []
    keep_records(options.output, lines)
    weights = weights_id(network)
    asked = itertools.product(fitting(card, options.solvers), options.steps)
    spans = []
    for solver, steps in dict.fromkeys([options.reference, *asked]):
        inferer = FirstWindow(card, solver=solver, steps=steps, **where(solver, options.log_snr))
        made = {"weights": weights, "solver": solver, "steps": steps, "log_snr": span_of(inferer)}
        spans.append(made["log_snr"])
        done = {line["index"] for line in lines if made.items() <= line.items()}
        missing = [index for index in range(options.windows) if index not in done]
        for start in range(0, len(missing), options.batch_size):
            indices = missing[start : start + options.batch_size]
            before = time.process_time()
            rows = window_statistics(inferer, network, indices, torch.device("cpu"))
            made["seconds"] = round((time.process_time() - before) / len(indices), 3)
            pairs = zip(indices, rows.tolist(), strict=True)
            new = [{**made, "index": index, "statistics": row} for index, row in pairs]
            lines += new
            with options.output.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line) + "\n" for line in new))
    mine = [line for line in lines if line["weights"] == weights and line.get("log_snr") in spans]
    print(describe_windows(mine, options.reference))


def describe_windows(lines: list[Line], reference: tuple[str, int]) -> str:
    """Return a Markdown table: how each solver and number of steps differs from the reference.

    Of the windows that both have. ``least p``: over all shares and pieces, by a test that swaps the
    two of a pair; below 0.05 divided by the number of these, they differ by more than chance.
    """
    groups: dict[tuple[str, int], dict[int, Line]] = {}
    for line in lines:
        groups.setdefault((line["solver"], line["steps"]), {})[line["index"]] = line
    base = groups.pop(reference)
    rows = [list(HEADINGS), ["---"] * len(HEADINGS), _row(reference, base, base)]
    rows += [_row(key, groups[key], base) for key in sorted(groups)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"Against {reference[1]} steps of {reference[0]}.\n\n{table}"


def _row(key: tuple[str, int], group: dict[int, Line], base: dict[int, Line]) -> list[str]:
    common = sorted(group.keys() & base.keys())
    one, two = (np.array([part[i]["statistics"] for i in common]) for part in (group, base))
    classes = one.shape[1] // 2
    cells = [key[0], str(key[1]), str(len(common))]
    cells.append(f"{np.mean([line['seconds'] for line in group.values()]):.2f}")
    if group is base:
        means = " / ".join(f"{share:.2f}" for share in 100 * one.mean(axis=0)[:classes])
        pieces = " / ".join(f"{count:.1f}" for count in one.mean(axis=0)[classes:])
        return [*cells, f"{means} % of the voxels", pieces, "-"]
    changes = []
    for index in range(classes):
        scale = 100 / two[:, index].mean()
        change = (one - two)[:, index] * scale
        low, high = bootstrap_interval(change)
        changes.append(f"{change.mean():+.1f} [{low:+.1f}, {high:+.1f}]")
    pieces = " / ".join(f"{count:.1f}" for count in one.mean(axis=0)[classes:])
    return [*cells, " / ".join(changes), pieces, f"{swapped(one, two).min():.4f}"]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    def sampler(text: str) -> tuple[str, int]:
        solver, steps = text.split(",")
        return solver, int(steps)

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt")
    parser.add_argument("--output", type=Path, default=Path("windows.jsonl"))
    parser.add_argument("--reference", type=sampler, default=("ancestral", 1000))
    parser.add_argument("--solvers", type=words, default=words(SOLVERS))
    parser.add_argument("--steps", type=numbers, default=[2, 4, 10, 20, 30, 50])
    parser.add_argument("--windows", type=int, default=10)
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--log_snr", type=span_option, help="of dpm_solver_pp, such as =-4,0.5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
