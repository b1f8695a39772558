"""``medpair report`` and ``utility``: what a synthetic cohort is worth.

Imports stay inside the verbs, as in ``cli.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medpair.flags import folder_word, numbers


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
    device: str | None = None,
    whole_images: bool = False,
    bundles: str = "bundles",
) -> None:
    """Judge a synthetic cohort: is it faithful, is it useful, is it private? One page.

    Writes report.html, report.json and datasheet.md, and prints the verdict in one line. Goes on
    where it was when it is started again.

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
        device: cpu or cuda; default a GPU where there is one.
        whole_images: show whole images even where they could hold a face.
        bundles: the folder with the bundles; default here, or where MedPair lies.
    """
    from medpair.data.slices import axis_of
    from medpair.evidence import run_report, verdict_line

    page = run_report(
        real,
        synthetic,
        folder_word(output_dir),
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
    print(verdict_line(page))
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
        folder_word(output_dir),
        find_bundles(bundles),
        folder_word(real),
        folder_word(synthetic),
        None if test is None else folder_word(test),
        test_split,
        None if transfer is None else folder_word(transfer),
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
