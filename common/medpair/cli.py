"""The command ``medpair``: what is not running one bundle.

Imports stay inside the verbs: ``medpair --help`` must not wait for MONAI.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medpair import __version__
from medpair.flags import folder_word, listed, numbers


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
    label_group: str | None = None,
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
        label_group: store the labels merged: large_organs of thorax (lungs, heart, body).
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
        label_group=label_group,
    )
    print(path)


def generate(
    family: str,
    output_dir: str = "generated",
    num_samples: int | None = None,
    dataset_dir: str | None = None,
    labels: str | None = None,
    models: str | None = None,
    preset: str | None = None,
    label_group: str | None = None,
    spacing: Sequence[float] | str | None = None,
    slicing_axis: str | None = None,
    unlabelled_classes: int | None = None,
    seed: int = 0,
    device: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    bundles: str = "bundles",
) -> None:
    """Run all stages of a method, one bundle after the other; the last folder holds the pairs.

    Goes on where it was when it is started again.

    Args:
        family: medgen3d.
        output_dir: where everything goes: labels, perhaps completed, images, pairs, and models if
            they are trained.
        num_samples: label maps to generate, 16 by default; not with labels.
        dataset_dir: train every stage on this dataset folder first; default: weights that exist.
        labels: start from your own label maps, a dataset folder whose entries need no image; each
            gets an image.
        models: folder with the weights of an earlier run (its models); default the bundles' own.
            Not with dataset_dir.
        preset: overlay for training, with dataset_dir: compact (for a CPU), or finetune (from the
            weights that come with the bundles).
        label_group: merge of labels, of dataset_dir or of labels.
        spacing: millimetres per axis to train at, such as 2,2,2; with dataset_dir.
        slicing_axis: axial, coronal or sagittal; with dataset_dir.
        unlabelled_classes: into how many classes what has no label is divided by intensity, so that
            images are drawn with all of a patient (1 to 4; one training more); with dataset_dir.
            Default 0, or with the preset finetune as the weights have it.
        seed: of the samples.
        device: cpu or cuda.
        options: further knobs by bundle, train_KEY for its training:
            "{'medgen3d_mcdpm': {'steps': 10, 'train_max_epochs': 20}}"; those of
            medgen3d_mcdpm_completion are for what is generated around label maps.
        bundles: the folder with the bundles; default here, or where MedPair lies.
    """
    from medpair.chain import find_bundles, generate_medgen3d

    if family != "medgen3d":
        raise ValueError(f"generate: expected medgen3d, found {family!r}")
    grid = None if spacing is None else numbers(spacing)
    shared = {"label_group": label_group, "device": device}
    training = {
        **shared,
        "spacing": grid,
        "slicing_axis": slicing_axis,
        "unlabelled_classes": unlabelled_classes,
    }
    pairs = generate_medgen3d(
        Path(folder_word(output_dir)),
        find_bundles(bundles),
        num_samples,
        None if dataset_dir is None else Path(folder_word(dataset_dir)),
        None if labels is None else Path(folder_word(labels)),
        None if models is None else Path(folder_word(models)),
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
    cases: str | Sequence[str] | None = None,
) -> None:
    """Draw pairs of one or several datasets side by side: three planes, labels laid over.

    Args:
        datasets: dataset folders, a column each; one alone gets two.
        output: the PNG to write.
        count: pairs per folder.
        split: which list of the dataset.json.
        label_group: merge of labels.
        cases: names such as pair_000003,pair_000017 in place of the first pairs.
    """
    from medpair.report.preview import preview_datasets

    folders = [str(folder) for folder in datasets]
    names = None if cases is None else [str(name) for name in listed(cases)]
    print(preview_datasets(folders, output, count, split, label_group, names))


def demo(output_dir: str = "demo", dataset: str | None = None, bundles: str = "bundles") -> None:
    """Make pairs from the bundles' own weights; then run the whole job small, trainings included.

    The job: cohort, generator, synthetic pairs, segmenters, scores, report, pictures. Goes on
    where it was when it is started again.

    Args:
        output_dir: where everything goes.
        dataset: your own dataset folder; default a simulated cohort. Weights of its classes are
            also compared with it.
        bundles: the folder with the bundles; default here, or where MedPair lies.
    """
    from medpair.chain import find_bundles
    from medpair.demo import run_demo

    own = Path(folder_word(dataset)) if dataset else None
    run_demo(Path(folder_word(output_dir)), find_bundles(bundles), own)


def main() -> None:
    """Run a verb; errors of the data end in one line, not a traceback."""
    if sys.argv[1:2] == ["--version"]:
        print(f"medpair {__version__}")
        return
    import fire

    from medpair.cli_convert import EXPORTS, IMPORTS
    from medpair.cli_evidence import report, utility
    from medpair.cli_share import global_model, pack, verify
    from medpair.flags import help_alone, read_by_annotations, refuse_unknown_flags

    # ours at INFO; of others' warnings alone: some announce themselves when they are imported
    logging.basicConfig(format="%(message)s")
    logging.getLogger("medpair").setLevel(logging.INFO)
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
        words = help_alone(verbs, sys.argv[1:])
        refuse_unknown_flags(verbs, words)
        read_by_annotations(verbs)
        fire.Fire(verbs, command=words, name="medpair")
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
