"""The command ``medpair``: what is not running one bundle.

Imports stay inside the verbs: ``medpair --help`` must not wait for MONAI.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def check(dataset: str, label_group: str | None = None, quick: bool = False) -> None:
    """List every fault of a dataset folder; exit code 1 if there is an error.

    Of a bundle, or of a configuration file, it lists what would be run beyond what ours need.

    Args:
        dataset: the folder with the dataset.json; or a bundle's folder, or a configuration.
        label_group: also check that this merge of labels exists.
        quick: read headers only, not the voxels.
    """
    from medpair.data.check import check_dataset, format_report
    from medpair.engines.config_code import foreign_code, is_bundle

    if is_bundle(str(dataset)):
        faults = foreign_code(str(dataset))
    else:
        faults = check_dataset(str(dataset), label_group, quick=quick, progress=sys.stderr.isatty())
    print(format_report(str(dataset), faults))
    if any(fault.level == "error" for fault in faults):
        sys.exit(1)


def phantom(
    kind: str,
    output_dir: str,
    count: int = 20,
    seed: int = 0,
    size: Sequence[int] | str | None = None,
    spacing: Sequence[float] | str | None = None,
    validation: int = 0,
) -> None:
    """Simulate a labelled cohort as a dataset folder.

    Args:
        kind: vessels, thorax or brain.
        output_dir: the folder to write.
        count: how many volumes.
        seed: volume i depends on the seed and i.
        size: voxels per axis, such as 128,128,64; default the kind's own.
        spacing: millimetres per axis; default the kind's own.
        validation: how many of the volumes go into the validation list.
    """
    from medpair.data.phantoms.cohort import write_phantom_cohort

    path = write_phantom_cohort(
        kind,
        output_dir,
        count,
        seed,
        None if size is None else [int(n) for n in numbers(size)],
        None if spacing is None else numbers(spacing),
        validation,
        progress=True,
    )
    print(path)


def generate(
    family: str,
    output_dir: str = "generated",
    num_samples: int = 16,
    dataset_dir: str | None = None,
    labels: str | None = None,
    models: str | None = None,
    preset: str | None = None,
    label_group: str | None = None,
    spacing: Sequence[float] | str | None = None,
    slicing_axis: str | None = None,
    seed: int = 0,
    device: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    bundles: str = "bundles",
) -> None:
    """Run all stages of a method, one bundle after the other; the last folder holds the pairs.

    Goes on where it was when it is started again.

    Args:
        family: medgen3d.
        output_dir: where everything goes: labels, images, pairs, and models if they are trained.
        num_samples: label maps to generate.
        dataset_dir: train every stage on this dataset folder first; default: weights that exist.
        labels: start from your own label maps, a dataset folder whose entries need no image.
        models: folder with the weights of an earlier run (its models); default the bundles' own.
        preset: overlay for training: compact.
        label_group: merge of labels.
        spacing: millimetres per axis to train at, such as 2,2,2.
        slicing_axis: axial, coronal or sagittal.
        seed: of the samples.
        device: cpu or cuda.
        options: further knobs by bundle, train_KEY for its training:
            "{'medgen3d_mcdpm': {'steps': 10, 'train_max_epochs': 20}}".
        bundles: the folder with the bundles; default here, or where MedPair lies.
    """
    from medpair.chain import find_bundles, generate_medgen3d

    if family != "medgen3d":
        raise ValueError(f"generate: expected medgen3d, found {family!r}")
    grid = None if spacing is None else numbers(spacing)
    shared = {"label_group": label_group, "device": device}
    training = {**shared, "spacing": grid, "slicing_axis": slicing_axis}
    pairs = generate_medgen3d(
        Path(output_dir),
        find_bundles(bundles),
        num_samples,
        None if dataset_dir is None else Path(dataset_dir),
        None if labels is None else Path(labels),
        None if models is None else Path(models),
        preset,
        {key: value for key, value in training.items() if value is not None},
        {"seed": seed, **({} if device is None else {"device": device})},
        options,
        label_group,
    )
    print(pairs)


def preview(
    *datasets: str,
    output: str = "preview.png",
    count: int = 4,
    split: str = "training",
    label_group: str | None = None,
) -> None:
    """Draw pairs of one or several datasets side by side: three planes, labels laid over.

    Args:
        datasets: dataset folders, a column each.
        output: the PNG to write.
        count: pairs per folder.
        split: which list of the dataset.json.
        label_group: merge of labels.
    """
    from medpair.report.preview import preview_datasets

    print(preview_datasets([str(folder) for folder in datasets], output, count, split, label_group))


def report(
    real: str,
    synthetic: str,
    output_dir: str = "report",
    holdout: str | None = None,
    holdout_split: str | None = None,
    parts: Sequence[str] | str | None = None,
    label_group: str | None = None,
    spacing: Sequence[float] | str | None = None,
    segmenter: str | None = None,
    segmenter_epochs: int = 10,
    medicalnet: str | None = None,
    critic: str | None = None,
    utility: str | None = None,
    slicing_axis: str = "axial",
    max_volumes: int = 200,
    seed: int = 0,
    device: str = "cpu",
    whole_images: bool = False,
    bundles: str = "bundles",
) -> None:
    """Judge a synthetic cohort: is it faithful, is it useful, is it private? One page.

    Writes report.html, report.json and datasheet.md. Goes on where it was when it is started again.

    Args:
        real: dataset folder the generator was trained on (its training list).
        synthetic: dataset folder it made.
        output_dir: where the report goes.
        holdout: dataset folder with real cases that the generator has not seen; the real folder
            itself stands for its validation list.
        holdout_split: which list of it; default see above, or the first list that has cases.
        parts: some of labels, fidelity, diversity, alignment, privacy, usefulness; default all.
        label_group: merge of the real labels.
        spacing: bring all volumes to these millimetres per axis first; default as stored.
        segmenter: model.pt of a segmenter trained on the real cohort; default one is trained.
        segmenter_epochs: length of that training, 50 iterations each.
        medicalnet: path of MedicalNet's resnet_10_23dataset.pth, for the features of
            Subramaniam et al.
        critic: checkpoint.pt of a WGAN's training, for the attack by its critic.
        utility: folder of medpair utility, whose table becomes a part.
        slicing_axis: of the slices whose overlap is taken: axial, coronal or sagittal.
        max_volumes: use so many of each cohort, drawn by the seed.
        seed: of all draws.
        device: cpu or cuda.
        whole_images: show whole images even where they could hold a face.
        bundles: the folder with the bundles; default here, or where MedPair lies.
    """
    from medpair.data.slices import axis_of
    from medpair.evidence import run_report

    page = run_report(
        real,
        synthetic,
        output_dir,
        holdout,
        holdout_split,
        parts,
        label_group,
        None if spacing is None else numbers(spacing),
        segmenter,
        segmenter_epochs,
        medicalnet,
        critic,
        utility,
        axis_of(slicing_axis),
        max_volumes,
        seed,
        device,
        whole_images,
        bundles,
    )
    print(page)


def utility(
    real: str,
    synthetic: str,
    output_dir: str = "utility",
    test: str | None = None,
    test_split: str = "validation",
    transfer: str | None = None,
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
    bundles: str = "bundles",
) -> None:
    """Train segmenters on real, synthetic and both cohorts; compare them on real cases.

    The papers' protocols: E2-1 real, E2-2 synthetic, E2-3 both, E2-4 synthetic then real, E2-5
    both then real; E3-1 to E3-4 the same as starts for a second dataset with few cases. Writes
    utility.md, utility.json and utility.png. Finished runs are kept.

    Args:
        real: dataset folder; its training list is trained on.
        synthetic: dataset folder of generated pairs.
        output_dir: of the runs and the table.
        test: dataset folder to score on; default the real one.
        test_split: which list of it.
        transfer: a second real dataset.
        transfer_split: the list of it that is scored.
        transfer_cases: numbers of its training cases.
        protocols: some of E2-1 to E2-5, E3-1 to E3-4; default all that can be run.
        architectures: some of unet3d, unet2d, unetr, swin_unetr.
        seeds: a training of every row for each.
        label_group: merge of labels, in all folders.
        real_cases: numbers of real cases for the curve, such as 10,20,40.
        curve: protocols of the curve.
        max_epochs: length of every training from nothing, 50 iterations each.
        finetune_epochs: length of every fine-tuning.
        options: knobs of the segmentation bundle's train.json: "{'batch_size': 2}".
        finetune_options: more of them for fine-tuning alone.
        scoring_options: knobs of its inference.json.
        device: cpu or cuda.
        plan: print the runs and stop.
        bundles: the folder with the bundles; default here, or where MedPair lies.
    """
    from medpair.chain import find_bundles
    from medpair.utility import run_utility

    table = run_utility(
        output_dir,
        find_bundles(bundles),
        real,
        synthetic,
        test,
        test_split,
        transfer,
        transfer_split,
        transfer_cases,
        protocols,
        architectures,
        seeds,
        label_group,
        real_cases,
        curve,
        max_epochs,
        finetune_epochs,
        options,
        finetune_options,
        scoring_options,
        device,
        plan,
    )
    if not plan:
        print(table)


def pack(bundle: str, output_dir: str = "dist") -> None:
    """Write a bundle as one zip that runs where MedPair is not installed.

    Args:
        bundle: the bundle's folder; one named so in the repository's bundles will do.
        output_dir: where NAME_vVERSION.zip goes.
    """
    from medpair.chain import find_bundles
    from medpair.data.files import file_sha256
    from medpair.sharing.pack import pack_bundle

    folder = Path(bundle) if Path(bundle).is_dir() else find_bundles() / bundle
    path = pack_bundle(folder, output_dir)
    print(f"{path}\nsha256 {file_sha256(path)}")


def verify(bundle: str) -> None:
    """Compare a packed bundle with its manifest; exit code 1 if anything differs.

    Args:
        bundle: the zip, or the folder that it was unpacked to.
    """
    from medpair.data.files import file_sha256
    from medpair.sharing.manifest import verify_bundle
    from medpair.sharing.own_code import MANIFEST

    faults = verify_bundle(bundle)
    print("\n".join(faults) or f"{bundle}: every file is as {MANIFEST} says")
    hashed = Path(bundle) / MANIFEST if Path(bundle).is_dir() else Path(bundle)
    print(f"sha256 {file_sha256(hashed)} {hashed.name}")
    if faults:
        sys.exit(1)


def demo(output_dir: str = "demo", dataset: str | None = None, bundles: str = "bundles") -> None:
    """Run the whole job small: cohort, generator, synthetic pairs, segmenters, scores, picture.

    Goes on where it was when it is started again.

    Args:
        output_dir: where everything goes.
        dataset: your own dataset folder; default a simulated cohort.
        bundles: the folder with the bundles; default here, or where MedPair lies.
    """
    from medpair.chain import find_bundles
    from medpair.demo import run_demo

    run_demo(Path(output_dir), find_bundles(bundles), None if not dataset else Path(dataset))


def global_model(weights: str, *cards: str, output_dir: str = "global") -> None:
    """Turn what a federation averaged into model.pt and model.json, for inference.

    Args:
        weights: the server's file, such as NVIDIA FLARE's FL_global_model.pt.
        cards: model.json of one or all sites; sizes and ranges of several are pooled.
        output_dir: where the two files go.
    """
    from medpair.engines.federated_model import write_global_model

    print(write_global_model(weights, cards, output_dir))


def numbers(value: Any) -> list[float]:
    """Return ``128,128,64`` or (128, 128, 64) as a list of three numbers.

    Raises:
        ValueError: if it is anything else.
    """
    parts = value.split(",") if isinstance(value, str) else value
    try:
        result = [float(part) for part in parts]
    except (TypeError, ValueError):
        result = []
    if len(result) != 3:
        raise ValueError(
            f"size or spacing: expected three numbers such as 128,128,64, found {value!r}"
        )
    return result


def main() -> None:
    """Run a verb; errors of the data end in one line, not a traceback."""
    import fire

    from medpair.cli_convert import EXPORTS, IMPORTS
    from medpair.flags import refuse_unknown_flags

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    verbs: dict[str, Any] = {
        "check": check,
        "phantom": phantom,
        "generate": generate,
        "preview": preview,
        "report": report,
        "utility": utility,
        "pack": pack,
        "verify": verify,
        "demo": demo,
        "export": EXPORTS,
        "import": IMPORTS,
        "global_model": global_model,
    }
    try:
        refuse_unknown_flags(verbs, sys.argv[1:])
        fire.Fire(verbs, name="medpair")
    except OSError as error:  # a full disk, a folder that may not be written
        print(f"medpair: {error}", file=sys.stderr)
        sys.exit(1)
    except ValueError as error:  # DataError and the checks of arguments
        print(f"medpair: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
