"""``medpair export`` and ``medpair import``: other tools' folders.

Imports stay inside the verbs, as in ``cli.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any


def export_nnunet(
    dataset: str,
    output_dir: str,
    id: int,
    name: str | None = None,
    label_group: str | None = None,
) -> None:
    """Write a dataset folder as nnU-Net's raw DatasetXXX_Name, ready to be planned.

    Goes on where it was when it is started again.

    Args:
        dataset: the dataset folder.
        output_dir: where DatasetXXX_Name goes, such as nnUNet_raw.
        id: XXX, 1 to 999.
        name: Name; default the dataset's.
        label_group: merge of labels.
    """
    from medpair.sharing.convert_nnunet import export_nnunet

    print(export_nnunet(dataset, output_dir, id, name, label_group))


def export_bids(
    dataset: str,
    output_dir: str,
    suffix: str | None = None,
    label_group: str | None = None,
    authors: Sequence[str] | str | None = None,
    skull_stripped: bool = False,
) -> None:
    """Write a dataset folder as a BIDS derivative dataset.

    Goes on where it was when it is started again.

    Args:
        dataset: the dataset folder.
        output_dir: the BIDS folder, such as derivatives/medpair.
        suffix: of the images: T1w, T2w, PDw, T2starw, FLAIR, inplaneT1, inplaneT2, angio or ct;
            default by the channel's name.
        label_group: merge of labels.
        authors: "Ada Lovelace,Alan Turing", for a CITATION.cff; without them none is written.
        skull_stripped: say that voxels outside the brain are 0.
    """
    from medpair.sharing.convert_bids import export_bids

    print(export_bids(dataset, output_dir, suffix, label_group, words(authors), skull_stripped))


def import_nnunet(
    source: str,
    output_dir: str,
    channel: int | str | None = None,
    splits: str | None = None,
    fold: int = 0,
    ignore_as_background: bool = False,
) -> None:
    """Write nnU-Net's raw DatasetXXX_Name as a dataset folder.

    Goes on where it was when it is started again.

    Args:
        source: the folder with nnU-Net's dataset.json.
        output_dir: the dataset folder to write.
        channel: number or name of the channel to take, where there are several.
        splits: a splits_final.json; default the one in the source, if there is one.
        fold: which of its folds; its val becomes the validation list.
        ignore_as_background: take voxels of an ignore label for background.
    """
    from medpair.sharing.convert_nnunet_read import import_nnunet

    print(import_nnunet(source, output_dir, channel, splits, fold, ignore_as_background))


def import_bids(
    source: str,
    output_dir: str,
    suffix: str | None = None,
    desc: str | None = None,
    segmentation: str | None = None,
    labels: Mapping[str, int] | None = None,
    matched_only: bool = False,
) -> None:
    """Write a BIDS folder, raw with derivatives or a derivative alone, as a dataset folder.

    Goes on where it was when it is started again.

    Args:
        source: the BIDS folder.
        output_dir: the dataset folder to write.
        suffix: of the images; default the only one there is.
        desc: desc entity of the images; default those without.
        segmentation: where an image has several label maps: desc, seg or derivative of the one to
            take.
        labels: "{'left': 1, 'right': 2}", instead of the _dseg.tsv files.
        matched_only: leave out images without label map and label maps without image.
    """
    from medpair.sharing.convert_bids_read import import_bids

    print(import_bids(source, output_dir, suffix, desc, segmentation, labels, matched_only))


def import_dicom(
    source: str,
    output_dir: str,
    labels: Sequence[str] | str | None = None,
    priority: Sequence[str] | str | None = None,
    segmentation: str | None = None,
    name: str = "dicom",
    mapping: str | None = None,
) -> None:
    """Write CT or MR series with their SEG or RTSTRUCT objects as a dataset folder.

    No name, number or date of a patient goes into it. Goes on where it was when it is started
    again. Needs the extra dicom.

    Args:
        source: a folder with DICOM files, in any order.
        output_dir: the dataset folder to write.
        labels: names of the segments to take, such as liver,spleen; default all.
        priority: names of segments, the first wins where they overlap; default overlaps are
            refused.
        segmentation: where a series has several label objects: a word in the description of the
            one to take.
        name: of the dataset.
        mapping: a CSV file to write outside the folder: which case is which patient.
    """
    from medpair.sharing.convert_dicom import import_dicom

    names, first = words(labels), words(priority)
    print(import_dicom(source, output_dir, names, first, segmentation, name, mapping))


def words(value: Sequence[Any] | str | None) -> list[str] | None:
    """Return ``a,b`` as it comes from the command line, or a list, as a list of words."""
    if value is None:
        return None
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)):
        parts = [parts]
    return [str(part).strip() for part in parts]


EXPORTS: dict[str, Callable[..., None]] = {"nnunet": export_nnunet, "bids": export_bids}
IMPORTS: dict[str, Callable[..., None]] = {
    "nnunet": import_nnunet,
    "bids": import_bids,
    "dicom": import_dicom,
}
