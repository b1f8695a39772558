"""Measure what fewer steps cost a label diffusion: its label statistics against the real cohort's.

python tests/benchmarks/measure_steps.py --checkpoint runs/mcdpm/model.pt --dataset_dir my_cohort

samples volumes with each solver and number of steps, keeps what it measured of each in JSON lines
(`--output`), and prints a table. The same command again goes on where it was stopped. Volumes are
independent, whatever their seed, so that intervals are bootstrapped over volumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from label_samples import (
    open_model,
    real_lines,
    sample_lines,
    span_of,
    span_option,
    weights_id,
    where,
)
from steps_table import describe_steps

from medpair.data.card import Card
from medpair.engines.jsonl import keep_records, whole_records
from medpair.inferers.label_volume import LabelVolumeInferer

SOLVERS = "dpm_solver_pp,ancestral,ddim,flow"


def main(arguments: list[str] | None = None) -> None:
    """Sample what the file does not have yet, and print the table of all it has."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    card, network = open_model(options.checkpoint)
    lines = whole_records(options.output) if options.output.exists() else []
    keep_records(options.output, lines)  # a torn last line would swallow the next
    weights = weights_id(network)
    for solver in fitting(card, options.solvers):
        for seed, steps in itertools.product(options.seeds, options.steps):
            asked = {"evidence": options.evidence, **where(solver, options.log_snr)}
            inferer = LabelVolumeInferer(card, seed, solver, steps, **asked)
            made = {"weights": weights, "solver": solver, "steps": steps, "seed": seed}
            made |= {"evidence": inferer.evidence, "log_snr": span_of(inferer)}
            made |= {"size_offsets": inferer.size_offsets}
            known = [{"size_offsets": {}, **line} for line in lines]  # older ones had none
            done = {line["index"] for line in known if made.items() <= line.items()}
            missing = [index for index in range(options.volumes) if index not in done]
            for start in range(0, len(missing), options.batch_size):
                new = sample_lines(inferer, network, missing[start : start + options.batch_size])
                lines += new
                with options.output.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in new))
                print(f"{solver} {steps}, seed {seed}: {len(new)} made", file=sys.stderr)
    inferer = LabelVolumeInferer(card, evidence=options.evidence)
    real = real_lines(inferer, options.dataset_dir, options.label_group)
    mine = [line for line in lines if line["weights"] == weights]
    print(describe_steps(mine, real, inferer.cohort.labels[1:]))


def fitting(card: Card, solvers: list[str]) -> list[str]:
    """Return the solvers that the model's objective allows; say which are left out, and why."""
    left = []
    for solver in solvers:
        try:
            LabelVolumeInferer(card, solver=solver)
            left.append(solver)
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    return left


def parse(arguments: list[str] | None) -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return [word for word in text.split(",") if word]

    def numbers(text: str) -> list[int]:
        return [int(word) for word in words(text)]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="model.pt")
    parser.add_argument("--dataset_dir", required=True, help="the real cohort")
    parser.add_argument("--label_group", help="merge of its labels")
    parser.add_argument("--output", type=Path, default=Path("steps.jsonl"))
    parser.add_argument("--solvers", type=words, default=words(SOLVERS))
    parser.add_argument("--steps", type=numbers, default=[4, 10, 20, 30, 50])
    parser.add_argument("--seeds", type=numbers, default=[0, 1])
    parser.add_argument("--volumes", type=int, default=8, help="of each seed; 0: the table alone")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--evidence", type=float, help="default: what the weights say")
    parser.add_argument("--log_snr", type=span_option, help="of dpm_solver_pp, such as =-4,0.5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
