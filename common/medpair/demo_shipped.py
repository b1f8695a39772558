"""The demo's first part: pairs from the weights that the bundles bring, and what they are worth.

Without real volumes one thing can be said of them: whether a segmenter finds in the images the
labels they were drawn with. How near they are to real ones, and whether they are copies, takes the
real cohort; where the user's dataset has the same classes, the report is made against it.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medpair.chain import (
    SEGMENTATION,
    STAGES,
    WGAN,
    generate_medgen3d,
    run_bundle,
)
from medpair.data.card import MODEL, TRAINING, card_path
from medpair.data.cohort import Cohort, cohort_of, read_card
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, atomic_path, file_sha256, read_json, write_json
from medpair.data.segmentation import read_segmenter_card
from medpair.evidence import run_report, verdict_line
from medpair.report.pairs import open_pairs
from medpair.report.pictures import cohort_picture

# Hundredths of a second each, and enough for a mean
WGAN_PAIRS = 40
# MedGen3D takes more than a minute for one
MEDGEN3D_PAIRS = 2
# A report on fewer says little
LEAST_FOR_REPORT = 20
PICTURED = 4
# What a report can say where the real cohort is not known to be what the weights were trained on
WITHOUT_MEMBERS = ("labels", "fidelity", "diversity", "alignment")


@dataclass(frozen=True)
class Shipped:
    """What one generator of the bundles makes, in the demo's folder.

    Attributes:
        folder: of its files: ``pairs`` (a dataset), ``pairs.png``, ``scores``, ``report``.
        weights: its files, the last of which makes the images.
        cohort: what it was trained on.
        count: how many pairs it is asked for.
    """

    folder: Path
    weights: tuple[Path, ...]
    cohort: Cohort
    count: int

    @property
    def pairs(self) -> Path:
        """The dataset folder with what it makes."""
        return self.folder / "pairs"


def show_shipped(output: Path, bundles: Path, dataset: Path | None = None) -> None:
    """Generate from every weights file of the bundles, each once; draw and judge what comes.

    Args:
        output: the demo's folder; ``shipped`` in it has a folder for each generator.
        bundles: the folder with the bundles.
        dataset: the user's dataset; generators of its classes are compared with it.
    """
    shown = find_shipped(output / "shipped", bundles)
    if not shown:
        print(f"{bundles}: no generator's weights there; the first part is left out", flush=True)
    lines = []
    for shipped in shown:
        finish_pairs(shipped, bundles)
        lines += ["", f"{shipped.cohort.name}: {shipped.count} pairs in {shipped.pairs}"]
        lines += [f"  picture: {draw(shipped)}", *judged(shipped, bundles, dataset)]
    print("\n".join(lines), flush=True)


def find_shipped(folder: Path, bundles: Path) -> list[Shipped]:
    """Return the generators whose weights lie in the bundles: each WGAN's, and MedGen3D's three."""
    found = []
    for path in weights_of(bundles / WGAN):
        cohort = cohort_of(read_card(path))
        name = cohort.name if path.name == MODEL else path.stem
        found.append(Shipped(folder / plain_name("wgan", name), (path,), cohort, WGAN_PAIRS))
    stages = tuple(bundles / bundle / "models" / MODEL for bundle in STAGES)
    if all(path.is_file() for path in stages):
        cohort = cohort_of(read_card(stages[0])).labelled
        place = folder / plain_name("medgen3d", cohort.name)
        found.append(Shipped(place, stages, cohort, MEDGEN3D_PAIRS))
    return found


def weights_of(bundle: Path) -> list[Path]:
    """Return the weights in a bundle that have a card, ``model.pt`` first."""
    paths = [path for path in (bundle / "models").glob("*.pt") if card_path(path).exists()]
    return sorted(paths, key=lambda path: (path.name != MODEL, path.name))


def plain_name(family: str, name: str) -> str:
    """Return a folder's name of a family and a cohort's name, whatever that holds."""
    return f"{family}_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:60]}"


def finish_pairs(shipped: Shipped, bundles: Path) -> None:
    """Generate the pairs unless they are there, whole; ``finished.json`` is written last."""
    asked = {
        "weights": {str(k): file_sha256(path) for k, path in enumerate(shipped.weights)},
        "num_samples": shipped.count,
    }
    if _asked_before(shipped.folder, asked):
        print(f"\n{shipped.folder}: made already", flush=True)
        return
    if len(shipped.weights) == 1:
        knobs = {"ckpt_path": str(shipped.weights[0]), "output_dir": str(shipped.pairs)}
        run_bundle(bundles / WGAN, ["inference"], {**knobs, "num_samples": shipped.count})
    else:
        generate_medgen3d(shipped.folder, bundles, shipped.count)
    write_json(shipped.folder / "finished.json", asked)


def draw(shipped: Shipped) -> Path:
    """Draw some pairs; of MedGen3D the image before refinement, too. No face is shown."""
    stages = {"image": shipped.folder / "images", "refined image": shipped.pairs}
    if len(shipped.weights) == 1:
        stages = {"synthetic": shipped.pairs}
    path = shipped.folder / "pairs.png"
    columns = [(title, open_pairs(folder)) for title, folder in stages.items()]
    with atomic_path(path) as partial:
        partial.write_bytes(cohort_picture(columns, PICTURED))
    return path


def judged(shipped: Shipped, bundles: Path, dataset: Path | None) -> list[str]:
    """Return lines on what the pairs are worth, as far as it can be said here."""
    segmenter = segmenter_of(bundles, shipped.cohort)
    lines = [] if segmenter is None else [f"  {agreement(shipped, bundles, segmenter)}"]
    words = ["--synthetic", str(shipped.pairs), "--output_dir", str(shipped.folder / "report")]
    words += [] if segmenter is None else ["--segmenter", str(segmenter)]
    if dataset is None or not same_classes(dataset, shipped.cohort):
        lines.append("  likeness to real volumes, and privacy, take the cohort it was trained on:")
    elif shipped.count < LEAST_FOR_REPORT:
        lines.append(f"  {shipped.count} pairs are too few for a report; make more, then:")
    else:
        return lines + reported(shipped, bundles, dataset, segmenter)
    command = shlex.join(["medpair", "report", "--real", "COHORT", "--holdout", "COHORT", *words])
    return [*lines, f"  $ {command}"]


def segmenter_of(bundles: Path, cohort: Cohort) -> Path | None:
    """Return weights of a segmenter of the cohort's classes that the bundles bring, or None."""
    for path in weights_of(bundles / SEGMENTATION):
        if tuple(read_segmenter_card(path)["task"]["labels"]) == cohort.labels:
            return path
    return None


def agreement(shipped: Shipped, bundles: Path, segmenter: Path) -> str:
    """Score a segmenter on the pairs, once; return in words how far it finds their labels."""
    scores = shipped.folder / "scores"
    knobs = {"ckpt_path": str(segmenter), "dataset_dir": str(shipped.pairs), "split": "training"}
    asked = {"weights": file_sha256(segmenter), "num_samples": shipped.count}
    if not _asked_before(scores, asked):
        run_bundle(
            bundles / SEGMENTATION,
            ["inference", "evaluate"],
            {**knobs, "output_dir": str(scores)},
        )
        write_json(scores / "finished.json", asked)
    dice = read_json(scores / "scores.json")["summary"]["volume"]["mean"]["dsc"]["mean"]
    return (
        f"a U-Net of these classes ({segmenter}) finds the labels in the images: Dice {dice:.3f}; "
        "what it reaches on real volumes is in its bundle's docs"
    )


def _asked_before(folder: Path, asked: Mapping[str, Any]) -> bool:
    done = folder / "finished.json"
    return done.exists() and bool(read_json(done) == asked)


def same_classes(dataset: Path, cohort: Cohort) -> bool:
    """Return whether a dataset has a cohort's classes, or a merge of its labels has."""
    folder = load_dataset(dataset)
    try:
        names = folder.labels(cohort.label_group).names
    except DataError:
        return False
    return tuple(names) == cohort.labels


def reported(shipped: Shipped, bundles: Path, dataset: Path, segmenter: Path | None) -> list[str]:
    """Make the report against the user's dataset; return its verdict in lines."""
    held_out = held_out_split(dataset)
    members = all(trained_on(path, dataset, held_out) for path in shipped.weights)
    parts: Sequence[str] | None = None if members else WITHOUT_MEMBERS
    page = run_report(
        dataset,
        shipped.pairs,
        shipped.folder / "report",
        holdout=None if held_out is None else dataset,
        holdout_split=held_out,
        parts=parts,
        label_group=shipped.cohort.label_group,
        spacing=shipped.cohort.spacing,
        segmenter=segmenter,
        bundles=bundles,
    )
    lines = [f"  {verdict_line(page)}", f"  report: {page}"]
    if not members:
        lines.append(
            f"  (privacy is left out: {dataset} is not known to be what it was trained on)"
        )
    return lines


def held_out_split(dataset: Path) -> str | None:
    """Return the list of a dataset that is held out and labelled throughout, or None."""
    cases = load_dataset(dataset).cases
    for name in ("validation", "test"):
        if cases[name] and all(case.label is not None for case in cases[name]):
            return name
    return None


def trained_on(weights: Path, dataset: Path, held_out: str | None) -> bool:
    """Return whether weights are recorded to have seen a dataset's training list, and no more.

    Args:
        weights: ``NAME.pt``; ``NAME.training.json`` beside it lists what it was trained on.
        dataset: whose training list they must have seen.
        held_out: the list that they must not have seen.
    """
    record = weights.with_suffix(TRAINING)
    if not record.exists():
        return False
    seen = {files.get("image") for files in read_json(record)["data"].values()}
    folder = load_dataset(dataset)
    training = {file_sha256(c.image) for c in folder.cases["training"] if c.image is not None}
    others = folder.cases[held_out] if held_out is not None else ()
    unseen = {file_sha256(case.image) for case in others if case.image is not None}
    return training <= seen and not unseen & seen
