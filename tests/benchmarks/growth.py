"""Measure how time and memory grow with volume size, number of samples and number of classes.

Run `python tests/benchmarks/growth.py --output growth.jsonl`: it measures what that file does not
hold yet, a line for each cell, and prints the tables of all that it holds.

Each cell has a process of its own, forked from this one, which has imported everything and
computed nothing. On a CPU, seconds are the processor's, of one thread: other work on the machine
does not count. Memory is the most that the whole process (on a GPU: its tensors) held.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import platform
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))

from growth_cells import UNET, Cell, cohort, make, train
from growth_tables import tables
from growth_work import work

from medpair.data.memory import is_out_of_memory

WGAN, MCDPM = "wgan_sn_mp", "medgen3d_mcdpm"
NAMES = (WGAN, MCDPM, "medgen3d_vid2vid", "medgen3d_semantic_refiner", UNET)
TABLES = ("volume", "samples", "classes", "work")


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells of the tables that are asked for; one may be in two tables."""
    where = {"device": options.device, "threads": options.threads, "small": options.small}
    presets = ("compact", "train") if options.device == "cuda" else ("compact",)
    names = [name for name in NAMES if any(word in name for word in options.bundles.split(","))]
    if "volume" in options.tables:
        kinds = [
            (name, preset)
            for name, preset in product(names, presets)
            if name != UNET or preset == presets[0]
        ]
        ones = [
            Cell(name, "train", preset, size, batch=1, **where)
            for size, (name, preset) in product(options.sizes, kinds)
        ]
        for one in ones:
            yield from (one, replace(one, phase="make"))
        yield from (replace(one, batch=0) for one in ones if one.size == min(options.sizes))
    if "samples" in options.tables:
        for samples in options.samples:
            yield Cell(WGAN, "make", size=32, samples=samples, **{**where, "small": True})
    if "classes" in options.tables:
        for classes, name in product(options.classes, names):
            one = Cell(name, "train", "compact", options.class_size, classes, 1, **where)
            for cell in (one, replace(one, encoding="one_hot"))[: 1 + (name == MCDPM)]:
                yield from (cell, replace(cell, phase="make"))
    if "work" in options.tables:
        for classes in options.classes:
            yield Cell("", "work", "", options.class_size, classes, **where)


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing, print the tables; return 1 if a cell failed."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    wanted = list(cells(options))
    done = {key(line["cell"]) for line in records(options.output)}
    failed = 0
    with tempfile.TemporaryDirectory(dir=options.work_dir) as folder:
        for cell in wanted:
            if key(cell.to_json()) in done:
                continue
            print(key(cell.to_json()), file=sys.stderr, flush=True)
            found = measured(cell, Path(folder), options)
            if "failed" in found:
                print(found["failed"], file=sys.stderr, flush=True)
                failed += 1
                continue
            # a GPU that this process has looked at is lost to those it forks
            where = in_own_process(lambda: circumstances(options.device))
            line = {"cell": cell.to_json(), **found, **where}
            with options.output.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
    print(tables(records(options.output), options.samples, options.class_size))
    return int(failed > 0)


def measured(cell: Cell, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return what a cell comes to: numbers, or ``limit`` (what stopped it), or ``failed``."""
    cases = 4 if cell.phase == "work" else 2
    data = folder / f"cohort_{cell.size}_{cell.classes}_{cases}"
    cohort_there = in_own_process(lambda: {"x": str(cohort(data, cell.size, cell.classes, cases))})
    if "x" not in cohort_there:
        return cohort_there
    name = f"{cell.subject}_{cell.preset}_{cell.size}_{cell.classes}{cell.encoding}_{cell.small}"
    weights = folder / name
    if cell.phase == "work":
        return in_own_process(lambda: work(cell, data, folder / "scores"), options)
    if cell.phase == "train":
        steps = options.steps if cell.size < 200 else 2
        return in_own_process(lambda: train(cell, data, weights, steps), options)
    if not (weights / "model.pt").exists():
        one = replace(cell, phase="train", batch=1)
        found = in_own_process(lambda: train(one, data, weights, 1), options)
        if not (weights / "model.pt").exists():
            return found
    output = folder / f"{name}_{cell.batch}_{cell.samples}"
    return in_own_process(lambda: make(cell, data, weights, output, options.seconds), options)


def in_own_process(
    task: Callable[[], dict[str, Any]], options: argparse.Namespace | None = None
) -> dict[str, Any]:
    """Run a task in a forked process, and return what it returns, or how it ended."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        if options is not None and options.device == "cpu":
            most = int(options.memory_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        try:
            there.send(task())
        except Exception as error:
            if options is not None and is_out_of_memory(error):
                whole = options.memory_gib
                if options.device == "cuda":
                    whole = round(torch.cuda.mem_get_info()[1] / 2**30)
                there.send({"limit": "memory", "limit_gib": whole})
            else:
                there.send({"failed": f"{type(error).__name__}: {error}"})

    process = context.Process(target=run)
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = None
    process.join()
    if found is not None:
        return dict(found)
    # what cannot be allocated is not always said with an exception
    kind = signal.Signals(-process.exitcode).name if (process.exitcode or 0) < 0 else ""
    return {"failed": f"ended with {process.exitcode} {kind}"}


def key(cell: dict[str, Any]) -> str:
    """Return a cell as one line."""
    return json.dumps(cell, sort_keys=True)


def records(path: Path) -> list[dict[str, Any]]:
    """Return what was measured; a last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [json.loads(line) for line in lines]


def circumstances(device: str) -> dict[str, Any]:
    """Return machine, date and version."""
    names = [
        line.split(":")[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    machine = torch.cuda.get_device_name() if device == "cuda" else names[0]
    return {
        "machine": machine or platform.processor(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def numbers(text: str) -> list[int]:
        return [int(word) for word in text.split(",")]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="JSON lines, gone on with")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tables", type=lambda text: text.split(","), default=list(TABLES))
    parser.add_argument("--bundles", default="", help="words, by commas, of bundles' names")
    parser.add_argument("--sizes", type=numbers, default=[64, 128, 256])
    parser.add_argument("--samples", type=numbers, default=[10, 100, 1000, 10000])
    parser.add_argument("--classes", type=numbers, default=[2, 8, 32, 104])
    parser.add_argument("--class_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3, help="of training; the first is left out")
    parser.add_argument("--seconds", type=float, default=20, help="after which a part is enough")
    parser.add_argument("--memory_gib", type=float, default=10, help="cells that need more stop")
    parser.add_argument("--small", action="store_true", help="networks that prove nothing")
    parser.add_argument("--work_dir", help="for cohorts and weights; default a temporary folder")
    options = parser.parse_args(arguments)
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"--tables: expected some of {', '.join(TABLES)}, found {sorted(unknown)}")
    return options


if __name__ == "__main__":
    sys.exit(main())
