"""What the package does for each class outside its networks, timed and checked for memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from growth_cells import Cell, clock
from harness import peak_memory_of
from monai.data import MetaTensor

from medpair.data.check import check_dataset
from medpair.data.label_codes import LabelCode
from medpair.data.labels import LabelChannels
from medpair.engines.scoring import CaseScores
from medpair.report.alignment_part import agreement
from medpair.report.label_part import label_part, measure
from medpair.report.pairs import few, open_pairs
from medpair.report.privacy_grid import frame_of, on_grid

# Seconds; what takes longer is done once
QUICK = 1.0


def pieces(classes: int, data: Path, scores: Path) -> dict[str, Callable[[], Any]]:
    """Return the pieces of work on a cohort of cubes with so many foreground classes."""
    pairs = open_pairs(data)
    one = few(pairs, 1)
    pair = one[0]
    label = torch.from_numpy(pair.label.astype(np.int64))[None]
    bits, one_hot = (LabelCode(classes + 1, name) for name in ("bits", "one_hot"))
    channels = LabelChannels(classes)
    moved = np.roll(pair.label, 1, axis=0)
    case = open_pairs(data).cases[0]
    item = {
        "pred": MetaTensor(moved[None].astype(np.int32), affine=np.eye(4)),
        "case": case.name,
        "truth": str(case.label),
        "dataset_dir": str(data),
    }
    table = CaseScores(scores, ["background", *pairs.names])
    frame = frame_of(pairs)
    return {
        "bits, there and back": lambda: bits.decode(bits.encode(label)),
        "one_hot, there and back": lambda: one_hot.decode(one_hot.encode(label)),
        "label channels of the WGAN, there and back": lambda: channels.decode(
            channels.encode(label[None])
        ),
        "check of the dataset, a case": lambda: check_dataset(data, splits=["test"]),
        "report: labels, measuring a volume": lambda: measure(one, 2),
        "report: labels, all of 4 against 4 volumes": lambda: label_part(pairs, pairs),
        "report: alignment, a volume": lambda: agreement(one, lambda _: moved),
        "report: privacy, a volume brought to the grid": lambda: on_grid(pair, classes, frame),
        "scores of a predicted case": lambda: table(dict(item)),
    }


def work(cell: Cell, data: Path, output: Path) -> dict[str, Any]:
    """Return {piece: {seconds, peak}}; what is quick has a run before that does not count."""
    found = {}
    for name, piece in pieces(cell.classes, data, output).items():
        taken: list[float] = []

        def timed(piece: Callable[[], Any] = piece, taken: list[float] = taken) -> None:
            begun = clock("cpu")
            piece()
            taken.append(clock("cpu") - begun)

        peak = peak_memory_of(timed, "cpu")
        if taken[0] < QUICK:
            peak = peak_memory_of(timed, "cpu")
        found[name] = {"seconds": taken[-1], "peak": peak}
    return {"pieces": found}
