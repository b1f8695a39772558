"""The demo: what the weights that are here make; then a whole job, small, from a cohort to scores.

The second part trains everything it uses, on a simulated cohort or on the user's own. On the
simulated one it shows both families, side by side.
"""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from medpair.chain import (
    IMAGES,
    LABELS,
    REFINER,
    SEGMENTATION,
    WGAN,
    generate_medgen3d,
    run_bundle,
    train_step,
)
from medpair.data.check import check_dataset, format_report
from medpair.data.check_json import ROLES
from medpair.data.dataset import SPLITS, load_dataset, write_dataset_json
from medpair.data.files import DataError, atomic_path, read_json, write_json
from medpair.data.phantoms.cohort import write_phantom_cohort
from medpair.demo_shipped import held_out_split, show_shipped
from medpair.evidence import run_report, verdict_line
from medpair.report.preview import preview_datasets

# The second part's sizes: minutes on two cores. Simulated thoraxes, since organs that lie alike in
# every volume are learned in minutes; vessels, thin and anywhere, are not.
DEMO_THORAX: dict[str, Any] = {
    "count": 50,
    "size": (32, 32, 32),
    "spacing": (12.5, 12.5, 10.0),
    "validation": 10,
    "label_group": "large_organs",
}
DEMO_PATCH = [64, 64, 48]
DEMO_WGAN = {
    "max_epochs": 10,
    "iterations_per_epoch": 50,
    "val_interval": 2,
    "batch_size": 4,
    "filters": 128,
    "critic_filters": 128,
}
DEMO_UNET = {"max_epochs": 5, "iterations_per_epoch": 25, "val_interval": 5, "batch_size": 4}
# The user's own volumes, about which nothing is known, are worth some minutes more
OWN_WGAN = {"max_epochs": 20, "iterations_per_epoch": 60, "val_interval": 3, "batch_size": 4}
OWN_UNET = {"max_epochs": 16, "iterations_per_epoch": 25, "val_interval": 8, "batch_size": 4}
DEMO_SYNTHETIC = 80
# Of each cohort, for the report: its time grows with the square
DEMO_REPORT = 20
# The second method, on the same thoraxes: each stage trained for a minute or two
DEMO_MEDGEN3D_SAMPLES = 4
DEMO_MEDGEN3D: dict[str, dict[str, Any]] = {
    LABELS: {"train_max_epochs": 12, "train_batch_size": 8, "evidence": 0.25},
    IMAGES: {"train_max_epochs": 5, "train_grow_every": 1},
    REFINER: {"train_max_epochs": 6, "train_batch_size": 2},
}
# Folder of the simulated cohort, or of a user's with cases held out
COPY = "real"
# Share of the cases held out for scoring where the user's dataset names none
HELD_OUT_SHARE = 0.2


def run_demo(output: Path, bundles: Path, dataset: Path | None) -> None:
    """Show what the bundles' own weights make, then train: each step once.

    Steps that have left their result are skipped; an interrupted training goes on from its
    checkpoint.
    """
    origin = refuse_other_data(output, dataset)
    if dataset is not None:
        require_sound(dataset)
    write_json(output / "demo.json", origin)
    own = None if dataset is None else own_cohort(dataset, output)
    print("Part one: pairs from the weights that come with the bundles", flush=True)
    show_shipped(output, bundles, dataset)
    print("\nPart two: the whole job, from a cohort to scores", flush=True)
    train_and_compare(output, bundles, own)


def train_and_compare(output: Path, bundles: Path, own: Path | None) -> None:
    """Run the main job from a cohort to scores, a report and a picture.

    Args:
        output: the demo's folder.
        bundles: the folder with the bundles.
        own: the user's cohort, checked and with cases held out; None simulates one.
    """
    real = demo_cohort(output) if own is None else own
    split = held_out_split(real) or ""
    synthetic = output / "synthetic"
    patch = {"patch_size#largest": DEMO_PATCH}
    train_step(
        output / "wgan",
        bundles / WGAN,
        ["train", "compact"],
        (DEMO_WGAN if own is None else OWN_WGAN) | patch | {"dataset_dir": str(real)},
    )
    run_bundle(
        bundles / WGAN,
        ["inference"],
        {
            "ckpt_path": str(output / "wgan" / "model.pt"),
            "output_dir": str(synthetic),
            "num_samples": DEMO_SYNTHETIC,
        },
    )
    print(f"\n$ medpair check {synthetic}", flush=True)
    faults = check_dataset(synthetic)
    print(format_report(str(synthetic), faults))
    if any(fault.level == "error" for fault in faults):
        raise DataError(f"{synthetic}: expected a clean dataset, found the faults above")
    scores = {}
    for name, folder in (("synthetic", synthetic), ("real", real)):
        steps = (DEMO_UNET if own is None else OWN_UNET) | {"dataset_dir": str(folder)}
        scores[name] = train_and_score(output, bundles / SEGMENTATION, name, steps, real, split)
    page = report_pairs(output, bundles, real, synthetic)
    if own is None:
        show_medgen3d(output, bundles, real, synthetic)
    summarize_demo(output, real, synthetic, scores)
    print(f"\n{verdict_line(page)}\nreport: {page}")


def report_pairs(output: Path, bundles: Path, real: Path, synthetic: Path) -> Path:
    """Make the report of the generated pairs, judged by the U-Net of real ones; return its page."""
    held_out = held_out_split(real)
    return run_report(
        real,
        synthetic,
        output / "report",
        None if held_out is None else real,
        held_out,
        segmenter=output / "unet_real" / "model.pt",
        max_volumes=DEMO_REPORT,
        bundles=bundles,
    )


def train_and_score(
    output: Path, bundle: Path, name: str, steps: Mapping[str, Any], real: Path, split: str
) -> dict[str, Any]:
    """Train a U-Net on one cohort, score it on the held-out real cases, return its scores."""
    model = output / f"unet_{name}"
    train_step(model, bundle, ["train"], {"largest_patch": DEMO_PATCH, **steps})
    target = output / f"scores_{name}"
    if not (target / "scores.json").exists():
        run_bundle(
            bundle,
            ["inference", "evaluate"],
            {
                "ckpt_path": str(model / "model.pt"),
                "dataset_dir": str(real),
                "split": split,
                "output_dir": str(target),
            },
        )
    return read_json(target / "scores.json")


def demo_cohort(output: Path) -> Path:
    """Simulate the demo's "real" cohort."""
    folder = output / "real"
    size, spacing = (",".join(map(str, DEMO_THORAX[key])) for key in ("size", "spacing"))
    print(
        f"$ medpair phantom thorax {folder} --count {DEMO_THORAX['count']} --size {size} "
        f"--spacing {spacing} --validation {DEMO_THORAX['validation']} "
        f"--label_group {DEMO_THORAX['label_group']}",
        flush=True,
    )
    write_phantom_cohort("thorax", folder, progress=True, **DEMO_THORAX)
    return folder


def show_medgen3d(output: Path, bundles: Path, real: Path, synthetic: Path) -> None:
    """Train MedGen3D's three stages on the simulated cohort; draw a few pairs, stage by stage.

    Args:
        output: the demo's folder.
        bundles: the folder with the bundles.
        real: the simulated cohort.
        synthetic: the WGAN's pairs, drawn beside.
    """
    folder = output / "medgen3d"
    pairs = generate_medgen3d(
        folder,
        bundles,
        DEMO_MEDGEN3D_SAMPLES,
        dataset=real,
        preset="compact",
        training={"slicing_axis": "axial", "val_interval": 10},
        options=DEMO_MEDGEN3D,
    )
    stages = [folder / name for name in ("labels", "images")] + [pairs, synthetic, real]
    picture = preview_datasets(stages, output / "stages.png", DEMO_MEDGEN3D_SAMPLES)
    print(
        "\nlabel map, image and refined image of MedGen3D, a pair of the WGAN, and a real pair "
        f"(rows are samples): {picture}"
    )


def require_sound(dataset: Path) -> None:
    """Check the user's folder.

    Raises:
        DataError: if it has faults.
    """
    print(f"$ medpair check {dataset}", flush=True)
    faults = check_dataset(dataset)
    print(format_report(str(dataset), faults))
    if any(fault.level == "error" for fault in faults):
        raise DataError(f"{dataset}: expected a clean dataset, found the faults above")


def own_cohort(dataset: Path, output: Path) -> Path:
    """Return the user's folder; where it names no held-out cases, make a folder that does.

    The new folder has copies of the volumes, since a dataset's paths stay inside its folder; a copy
    whose original has changed since is made anew.
    """
    if held_out_split(dataset) is not None:
        return dataset
    folder = load_dataset(dataset)
    entries = folder.content["training"]
    held_out = max(1, round(len(entries) * HELD_OUT_SHARE))
    if held_out >= len(entries):
        raise DataError(f"{dataset}: training: expected two cases or more, found {len(entries)}")
    order = np.random.default_rng(0).permutation(len(entries))
    shuffled = [entries[index] for index in order]
    target = output / COPY
    # of each entry its files alone: whatever else it says is no path
    shuffled = [{role: case[role] for role in ROLES if case.get(role)} for case in shuffled]
    for case in shuffled:
        for path in case.values():
            copied = target / path
            if not copied.exists() or not filecmp.cmp(dataset / path, copied, shallow=False):
                with atomic_path(target / path) as partial:
                    partial.write_bytes((dataset / path).read_bytes())
    known = {"name", "labels", "channel_names", "numTraining", *SPLITS}
    write_dataset_json(
        target,
        folder.name,
        folder.content["labels"],
        {"training": shuffled[held_out:], "validation": shuffled[:held_out]},
        folder.content.get("channel_names"),
        **{key: value for key, value in folder.content.items() if key not in known},
    )
    return target


def refuse_other_data(output: Path, dataset: Path | None) -> dict[str, str]:
    """Refuse the output folder of another dataset; return what ``demo.json`` says of this one."""
    path, cohort = output / "demo.json", output / COPY
    itself = dataset is not None and dataset.resolve() == cohort.resolve()
    if itself or ((cohort / "dataset.json").exists() and not path.exists()):
        raise DataError(
            f"{cohort}: expected room for the demo's own cohort, found a dataset (choose another "
            "output_dir)"
        )
    origin = {"dataset": "simulated thoraxes" if dataset is None else str(dataset.resolve())}
    if path.exists() and read_json(path) != origin:
        raise DataError(
            f"{path}: expected the dataset of this folder's earlier run "
            f"{read_json(path)['dataset']}, found {origin['dataset']} "
            f"(remove {output} to start anew)"
        )
    return origin


def summarize_demo(
    output: Path, real: Path, synthetic: Path, scores: Mapping[str, dict[str, Any]]
) -> None:
    """Print the table, write ``results.json`` and the picture."""
    rows = {}
    for region in scores["real"]["summary"]:
        for name in scores["real"]["summary"][region]:
            pair = {k: scores[k]["summary"][region][name] for k in ("synthetic", "real")}
            rows[f"{region}: {name}"] = {
                **{f"dsc_{k}": m["dsc"]["mean"] for k, m in pair.items()},
                **{f"bahd_mm_{k}": m["bahd_mm"]["mean"] for k, m in pair.items()},
            }
    write_json(output / "results.json", rows)
    picture = preview_datasets([real, synthetic], output / "pairs.png", count=4)
    print("\nU-Net trained on        synthetic      real   |   synthetic      real")
    print(f"{'':24}{'DSC':>9}{'DSC':>10}   |{'bAHD mm':>12}{'bAHD mm':>10}")
    for name, row in rows.items():
        print(
            f"{name:24.24}{row['dsc_synthetic']:9.3f}{row['dsc_real']:10.3f}   |"
            f"{row['bahd_mm_synthetic']:12.2f}{row['bahd_mm_real']:10.2f}"
        )
    print(f"\nreal and synthetic pairs side by side: {picture}")
    print(f"datasets, weights, scores: {output}")
