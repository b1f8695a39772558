"""How useful a synthetic cohort is: the papers' protocols, run on the segmentation bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medpair import __version__
from medpair.chain import SEGMENTATION
from medpair.data.files import DataError, atomic_path, read_json, write_json, write_text
from medpair.data.segmentation import read_task, training_patch
from medpair.flags import listed
from medpair.networks.segmenters import MULTIPLES, segmenter
from medpair.report.utility_rows import summarize_rows
from medpair.report.utility_table import table_markdown, table_picture
from medpair.utility_bench import Bench, plan_text, preset_of, run_all
from medpair.utility_inputs import remember, survey
from medpair.utility_plan import (
    CURVE,
    PROTOCOLS,
    REAL,
    SYNTHETIC,
    TEST,
    TRANSFER,
    Job,
    Table,
    check_names,
    plan_jobs,
    whole_numbers,
)

# What the table itself decides.
RESERVED = {
    *("bundle_root", "dataset_dir", "output_dir", "ckpt_path", "seed", "label_group", "max_cases"),
    *("architecture", "max_epochs", "resume", "has_validation", "device", "split"),
}


def run_utility(
    output: str | Path,
    bundles: str | Path,
    real: str | Path,
    synthetic: str | Path,
    test: str | Path | None = None,
    test_split: str = "validation",
    transfer: str | Path | None = None,
    transfer_split: str = "validation",
    transfer_cases: Sequence[int] | int = (1, 5),
    protocols: Sequence[str] | str | None = None,
    architectures: Sequence[str] | str = ("unet3d",),
    seeds: Sequence[int] | int = (0,),
    label_group: str | None = None,
    real_cases: Sequence[int] | int = (),
    curve: Sequence[str] | str = ("E2-1", "E2-3"),
    max_epochs: int = 30,
    finetune_epochs: int = 10,
    options: Mapping[str, Any] | None = None,
    finetune_options: Mapping[str, Any] | None = None,
    scoring_options: Mapping[str, Any] | None = None,
    device: str | None = None,
    plan: bool = False,
) -> Path:
    """Train segmenters on real, synthetic and both cohorts, and compare them on real cases.

    The protocols are those of Han et al. 2023 (Tables 2 to 4) and two controls, see
    ``medpair.utility_plan.PROTOCOLS``. All trainings from nothing have the same number of
    iterations, whatever the size of their cohorts; all fine-tunings too; E2-1F and E3-2F train as
    long as E2-4, E2-5 and E3-3, E3-4 on real cases alone. One grid, the real cohort's, serves all.
    Finished runs are kept, an interrupted one goes on from its last checkpoint.

    Args:
        output: folder of the runs and of ``utility.json``, ``utility.md``, ``utility.png``.
        bundles: the folder with the bundles.
        real: dataset folder; its training split is trained on.
        synthetic: dataset folder of generated pairs; its training split is trained on.
        test: dataset folder to score on; default ``real``.
        test_split: its split.
        transfer: a second real dataset: cases are drawn from its training split.
        transfer_split: the split of it that is scored.
        transfer_cases: numbers of its cases, for E3-1 to E3-4.
        protocols: some of E2-1 to E2-5, E3-1 to E3-4; what they are compared with is added.
            Default all, E3 only with ``transfer``.
        architectures: some of unet3d, unet2d, unetr, swin_unetr.
        seeds: each is a training of every row, and a draw of the few cases.
        label_group: merge of labels, in all folders.
        real_cases: numbers of real cases for the curve; nested for each seed.
        curve: the protocols of the curve.
        max_epochs: length of every training from nothing.
        finetune_epochs: length of every fine-tuning.
        options: knobs of ``train.json`` for all trainings.
        finetune_options: more of them, for fine-tuning alone.
        scoring_options: knobs of ``inference.json``.
        device: cpu or cuda.
        plan: print the runs, do nothing.

    Returns:
        ``utility.md`` (which ``plan`` does not write).

    Raises:
        DataError: if a folder cannot be used or a run fails; names what was expected and found.
        ValueError: if an argument cannot be used.
    """
    folders = {REAL: Path(real), SYNTHETIC: Path(synthetic), TEST: Path(test or real)}
    splits = {REAL: "training", SYNTHETIC: "training", TEST: test_split}
    if transfer is not None:
        folders[TRANSFER], splits[TRANSFER] = Path(transfer), transfer_split
    folders = {role: folder.resolve() for role, folder in folders.items()}
    inputs = survey(folders, splits, label_group)
    second = inputs.get(TRANSFER)
    everything = inputs[REAL]["training"]
    possible = [name for name in PROTOCOLS if second or TRANSFER not in PROTOCOLS[name].data]
    table = Table(
        check_names(listed(protocols or possible), possible, "protocols"),
        check_names(listed(architectures), list(MULTIPLES), "architectures"),
        whole_numbers(seeds, "seeds", 0),
        # all of them are a row of the table, and the curve's last point, in any case
        tuple(n for n in whole_numbers(real_cases, "real_cases", 1, everything) if n < everything),
        check_names(listed(curve), CURVE, "curve"),
        whole_numbers(transfer_cases, "transfer_cases", 1, second["training"]) if second else (),
        whole_numbers(max_epochs, "max_epochs")[0],
        whole_numbers(finetune_epochs, "finetune_epochs")[0],
        zero_shot=second is not None and second["labels"] == inputs[REAL]["labels"],
    )
    bundle = Path(bundles) / SEGMENTATION
    shared, fine, scoring = (dict(o or {}) for o in (options, finetune_options, scoring_options))
    refuse_unknown(bundle, "options", shared, "train")
    refuse_unknown(bundle, "finetune_options", fine, "train")
    refuse_unknown(bundle, "scoring_options", scoring, "inference")
    # else rows would not be comparable, or be said to have another length than they have
    if "iterations_per_epoch" in fine:
        raise DataError(
            "finetune_options: expected iterations_per_epoch among options, for all trainings, "
            "found it here (finetune_epochs is the length of fine-tuning)"
        )
    if "iterations_per_epoch" in shared:
        whole_numbers(shared["iterations_per_epoch"], "options: iterations_per_epoch")
    machine = {} if device is None else {"device": device}
    training = {
        name: training_knobs(bundle, name, folders[REAL], label_group, shared) | machine
        for name in table.architectures
    }
    output = Path(output)
    bench = Bench(output, bundle, folders, splits, training, fine, scoring | machine, label_group)
    jobs = plan_jobs(table)
    path = output / "utility.md"
    if plan:
        print(plan_text(bench, jobs))
        return path
    remember(output / "inputs.json", inputs)
    run_all(bench, jobs)
    write_table(bench, table, jobs, inputs)
    return path


def refuse_unknown(bundle: Path, key: str, given: Mapping[str, Any], config: str) -> None:
    """Refuse knobs that a config does not have, which the runner would take without a word.

    Raises:
        DataError: if there are some, or some that the table itself decides.
    """
    known = set(read_json(bundle / "configs" / f"{config}.json")) - RESERVED
    unknown = sorted(set(given) - known)
    if unknown:
        raise DataError(
            f"{key}: expected knobs of {config}.json that the table does not decide itself, "
            f"found {unknown}"
        )


def training_knobs(
    bundle: Path, architecture: str, real: Path, label_group: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the knobs of every training of a network: the caller's, and one grid for all.

    Left to itself each training would take spacing and patch size from its own cohort, and the
    rows would differ by more than what they are trained on; UNETR's weights fit one patch only.

    Raises:
        ValueError: if the network cannot be built for the patch.
    """
    configs: dict[str, Any] = {}
    for name in ["train", *preset_of(architecture)]:
        configs |= read_json(bundle / "configs" / f"{name}.json")
    configs |= options
    task = read_task(real, label_group, configs["spacing"])
    patch = configs["patch_size"]
    if isinstance(patch, Mapping):
        patch = training_patch(task.longest, patch["multiple"], configs["largest_patch"])
    sizes = {key: configs[key] for key in ("channels", "hidden_size", "feature_size")}
    # built once here, to hear of a patch that does not suit it before hours have passed
    segmenter(architecture, task.num_classes, patch, **sizes)
    return {**options, "spacing": list(task.spacing), "patch_size": list(patch)}


def write_table(
    bench: Bench, table: Table, jobs: Sequence[Job], inputs: Mapping[str, Any]
) -> dict[str, Any]:
    """Write ``utility.json``, ``utility.md`` and ``utility.png`` from the runs' scores."""
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    runs: dict[tuple[Any, ...], list[list[dict[str, Any]]]] = {}
    for job in jobs:
        one = job.training
        key = (one.architecture, one.protocol, one.cases, job.test)
        if job.test is None:
            continue
        path = bench.folder(job) / "scores.json"
        row = rows.setdefault(key, describe(bench, job, inputs))
        row["seeds"].append(one.seed)
        row["scores"].append(path.relative_to(bench.output).as_posix())
        runs.setdefault(key, []).append(read_json(path)["cases"])
    references = {name: entry.references for name, entry in PROTOCOLS.items()}
    content = {
        "medpair_version": __version__,
        # names only: tables are passed on, and paths tell more than they should
        "inputs": {role: {**i, "folder": Path(i["folder"]).name} for role, i in inputs.items()},
        "synthetic_per_real": inputs[SYNTHETIC]["training"] / inputs[REAL]["training"],
        "label_group": bench.label_group,
        "seeds": list(table.seeds),
        "budget": {
            "training_iterations": table.max_epochs * iterations(bench, table.architectures[0]),
            "finetuning_iterations": table.finetune_epochs
            * iterations(bench, table.architectures[0]),
        },
        "knobs": bench.knobs,
        "finetune_options": bench.finetune,
        "balanced": bool(bench.knobs[table.architectures[0]].get("balance_folders", False)),
        "curve": list(table.curve) if table.real_cases else [],
        "zero_shot": table.zero_shot,
        "rows": summarize_rows(list(rows.values()), list(runs.values()), references),
    }
    write_json(bench.output / "utility.json", content)
    with atomic_path(bench.output / "utility.png") as partial:
        partial.write_bytes(table_picture(content))
    write_text(bench.output / "utility.md", table_markdown(content))
    return content


def iterations(bench: Bench, architecture: str) -> int:
    """Return the iterations of an epoch."""
    configs = read_json(bench.bundle / "configs" / "train.json")
    return int(
        bench.knobs[architecture].get("iterations_per_epoch", configs["iterations_per_epoch"])
    )


def describe(bench: Bench, job: Job, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a row of the table is."""
    one = job.training
    counts = {
        role: inputs[role]["training"] if one.cases is None or role == SYNTHETIC else one.cases
        for role in PROTOCOLS[one.protocol].data
    }
    return {
        "architecture": one.architecture,
        "protocol": one.protocol,
        "what": PROTOCOLS[one.protocol].what,
        "cases": one.cases,
        "trained_on": counts,
        "iterations": one.total_epochs * iterations(bench, one.architecture),
        "test": job.test,
        "seeds": [],
        "scores": [],
    }
