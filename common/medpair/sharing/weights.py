"""From a training's ``model.pt`` to weights that can be shipped: small, with card and record.

``python -m medpair.sharing.weights RUN/model.pt MODELS/NAME.pt --dataset_dir DATA --command WORDS``
writes ``NAME.pt`` in half precision, its card ``NAME.json``, and ``NAME.training.json``, which says
how it was trained: on which files, by which command, for how long, with which losses.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medpair import __version__
from medpair.data.card import TRAINING, Card, card_path, part_of, read_plain_card
from medpair.data.files import (
    DataError,
    file_sha256,
    load_torch,
    read_json,
    save_torch,
    write_json,
    write_text,
)
from medpair.data.segmentation import load_items
from medpair.data.traits import size_offsets_of, traits_of
from medpair.engines.federated_model import BUILDERS
from medpair.engines.jsonl import whole_records
from medpair.engines.restore import CHECKPOINT
from medpair.engines.settings import training_cases
from medpair.flags import read_by_annotations, refuse_unknown_flags
from medpair.inferers.refinement import Refinement

# Lines that are kept of metrics.jsonl
MOST_METRICS = 200
# Digits that are kept of a loss
DIGITS = 5
# Settings that are listed apart, or are paths of the training's machine
APART = ("cases", "dataset_dir")


def half(model_pt: str | Path, out: str | Path, sampling: Mapping[str, Any] | None = None) -> Path:
    """Write weights in half precision, and their card beside them.

    The file is a deflated archive, which ``torch.load`` reads as it reads any other. float32 and
    bfloat16 become float16; whole numbers (counters of BatchNorm) and float64 stay as
    they are. Loading gives a network in float32 again.

    Args:
        model_pt: a training's ``model.pt``, its card beside it.
        out: the file to write, such as ``models/NAME.pt``; the card is ``models/NAME.json``.
        sampling: how they are to be sampled from, for the card: ``medpair.data.card.Sampling`` of
            a generator of label volumes, ``medpair.inferers.refinement.Refinement`` of a refiner.

    Returns:
        ``out``.

    Raises:
        DataError: if a value is not finite, or is not in float16; names the tensor. Also if the
            weights are not those of the card's network.
    """
    source, target = Path(model_pt), Path(out)
    if target.suffix != ".pt":
        raise DataError(f"{target}: expected a name that ends in .pt")
    if not (sampling is None or isinstance(sampling, Mapping)):
        raise DataError(f"sampling: expected an object, found {sampling!r}")
    if target.resolve() == source.resolve():
        raise DataError(f"{target}: expected another file than the training's")
    card = read_plain_card(source)
    kind = next((key for key in BUILDERS if key in card), None)
    if kind is None:
        raise DataError(f"{card.path}: expected the card of a trained model, found {sorted(card)}")
    if sampling is not None:
        # what the training said of it holds where this says nothing
        card["sampling"] = {**card.get("sampling", {}), **sampling}
        _check_sampling(card, kind)
    state = halved(load_torch(source), source)
    # what is shipped is proved to load as inference loads it
    BUILDERS[kind](card).load_state_dict(state)
    save_torch(target, state, compress=True)
    content = read_json(card.path)
    if sampling is not None:
        content["sampling"] = card["sampling"]
    write_json(target.with_suffix(".json"), content)
    return target


def _check_sampling(card: Card, kind: str) -> None:
    """Refuse to say of weights how they are sampled from in words that their bundle has not."""
    if kind == "code":
        size_offsets_of(card, traits_of(card, "size_traits") if card.get("size_traits") else None)
    elif kind == "frame":
        part_of(card, "sampling", Refinement)
    else:
        raise DataError(
            f"{card.path}: sampling: expected none for these weights (only generators of label "
            f"volumes and refiners read it), found {card['sampling']}"
        )


def halved(state: Mapping[str, Any], source: str | Path = "weights") -> dict[str, Tensor]:
    """Return tensors with float32 and bfloat16 as float16.

    Raises:
        DataError: names a tensor that holds no number, or one beyond float16.
    """
    result = {}
    for name, value in state.items():
        if not isinstance(value, Tensor):
            kind = type(value).__name__
            raise DataError(f"{source}: {name}: expected a tensor, found a value of type {kind}")
        short = value.half() if value.dtype in (torch.float32, torch.bfloat16) else value
        if value.is_floating_point() and not value.isfinite().all():
            raise DataError(f"{source}: {name}: expected finite weights, found others")
        if not short.isfinite().all():
            most = torch.finfo(torch.float16).max
            found = float(value.abs().max())
            raise DataError(f"{source}: {name}: expected values up to {most:g}, found {found:g}")
        result[name] = short.clone()
    return result


def ship(
    model_pt: str,
    out: str,
    dataset_dir: str | Sequence[str],
    command: str,
    machine: str | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Write weights in half precision, their card, and the record of their training.

    Args:
        model_pt: model.pt of a training's folder, with its card, checkpoint.pt and metrics.jsonl.
        out: the file to write: a bundle's models/NAME.pt. NAME.json and NAME.training.json go
            beside it.
        dataset_dir: the dataset folder, or folders, that it was trained on.
        command: the command line that trained it.
        machine: which machine did; default this one's description.
        sampling: how they are sampled from where nothing else is asked for: {'evidence': 0.85,
            'size_offsets': {'csf': 0.9}} for label volumes; {'refine_steps': 3, 'grid_steps': 30,
            'combine': 'alternate'} for a refiner.
    """
    run = Path(model_pt).parent
    record = training_record(run, dataset_dir, str(command), machine)
    path = half(model_pt, out, sampling)
    weights = {
        "weights": path.name,
        "sha256": file_sha256(path),
        "bytes": path.stat().st_size,
        "single_precision_sha256": file_sha256(model_pt),
    }
    write_text(path.with_suffix(TRAINING), as_text({**weights, **record}))
    for name in (path, path.with_suffix(".json"), path.with_suffix(TRAINING)):
        print(f"{name}: {name.stat().st_size / 2**20:.2f} MiB")


def training_record(
    run: str | Path, dataset_dir: Any, command: str, machine: str | None = None
) -> dict[str, Any]:
    """Return how the weights in a training's folder came about.

    Args:
        run: the folder, with ``checkpoint.pt`` and ``metrics.jsonl``.
        dataset_dir: what it was trained on; proved by what the checkpoint knows of each file.
        command: that trained it.
        machine: that it was trained on; default this one.

    Returns:
        Command, machine, seed, steps, hours (of steps, and what was between them), settings,
        ``data`` {case: {role: SHA-256}}, and ``metrics``, at most 200 lines of them.

    Raises:
        DataError: if the folder is no training's, or the dataset is another.
    """
    run = Path(run)
    state = load_torch(run / CHECKPOINT)
    if not isinstance(state, Mapping) or "cases" not in state.get("settings", {}):
        raise DataError(
            f"{run / CHECKPOINT}: expected a training's checkpoint that knows its cases, "
            "found another"
        )
    if not command.strip():
        raise DataError("command: expected the command line that trained the weights, found none")
    metrics_path = run / "metrics.jsonl"
    if not metrics_path.is_file():
        raise DataError(f"{metrics_path}: expected a training's metrics, found none")
    settings, metrics = state["settings"], whole_records(metrics_path)
    return {
        "medpair_version": read_json(card_path(run / "model.pt")).get("medpair_version"),
        "recorded_by": __version__,
        "command": command,
        "machine": machine or this_machine(),
        "seed": settings.get("seed"),
        "steps": state["iteration"],
        "hours": round(seconds(metrics) / 3600, 3),
        "settings": {key: value for key, value in settings.items() if key not in APART},
        "data": training_data(run, settings, dataset_dir),
        "metrics": thinned(metrics),
    }


def training_data(
    run: Path, settings: Mapping[str, Any], dataset_dir: Any
) -> dict[str, dict[str, str]]:
    """Return {case: {role: SHA-256}} of the files that a run was trained on.

    Raises:
        DataError: if the dataset's files are not those that the run has seen.
    """
    group, most = settings.get("label_group"), settings.get("max_cases")
    drawn = (group, most, settings.get("seed") or 0)
    found = training_cases(dataset_dir, *drawn)
    if found != settings["cases"]:
        names = sorted({*found, *settings["cases"]})
        first = next(n for n in names if found.get(n) != settings["cases"].get(n))
        raise DataError(
            f"{dataset_dir}: expected the {len(settings['cases'])} cases that {run / CHECKPOINT} "
            f"was trained on, found others or other files: {first}"
        )
    items = load_items(dataset_dir, "training", group, max_cases=most, seed=drawn[-1])
    # in the same order, so that names of several folders are those of the checkpoint
    return {
        name: {role: file_sha256(item[role]) for role in ("image", "label") if role in item}
        for name, item in zip(found, items, strict=True)
    }


def seconds(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Return how long the steps took that a training's metrics tell of."""
    total, before = 0.0, 0
    for record in metrics:
        total += record["seconds_per_iteration"] * (record["iteration"] - before)
        before = record["iteration"]
    return total


def thinned(metrics: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return at most 200 records, evenly spaced, the first and the last among them, rounded."""
    count = min(MOST_METRICS, len(metrics))
    picks = np.linspace(0, len(metrics) - 1, count).round().astype(int)
    return [{key: _rounded(value) for key, value in metrics[k].items()} for k in picks]


def this_machine() -> str:
    """Return processor, cores and GPU of this machine, and PyTorch's version."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8", errors="replace").splitlines()
        cpu = next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), cpu)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{cpu}, {os.cpu_count()} cores, {gpu}, PyTorch {torch.__version__}"


def as_text(record: Mapping[str, Any]) -> str:
    """Return a record as JSON with a line for each case and each of the metrics."""
    parts = []
    for key, value in record.items():
        if key == "data":
            lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in value.items()]
            text = "{\n    " + ",\n    ".join(lines) + "\n  }"
        elif key == "metrics":
            text = "[\n    " + ",\n    ".join(json.dumps(line) for line in value) + "\n  ]"
        else:
            text = json.dumps(value, indent=2, ensure_ascii=False).replace("\n", "\n  ")
        parts.append(f"  {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _rounded(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


if __name__ == "__main__":
    import fire

    try:
        refuse_unknown_flags({"": ship}, ["", *sys.argv[1:]], "python -m medpair.sharing.weights")
        read_by_annotations({"": ship})
        fire.Fire(ship, name="python -m medpair.sharing.weights")
    except (OSError, ValueError) as error:
        print(f"medpair: {error}", file=sys.stderr)
        sys.exit(1)
