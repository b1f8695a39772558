"""Every kind of simulated cohort as a dataset folder."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError
from medpair.data.phantoms.cohort import KINDS, write_phantom_cohort

SMALL = {
    "vessels": ((32, 32, 16), (1.0, 1.0, 2.0)),
    "thorax": ((48, 48, 32), (8.0, 8.0, 9.0)),
    "brain": ((48, 48, 32), (8.0, 8.0, 9.0)),
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_folder_has_no_fault(kind: str, tmp_path: Path) -> None:
    size, spacing = SMALL[kind]
    write_phantom_cohort(kind, tmp_path, 3, size=size, spacing=spacing, validation=1)
    assert check_dataset(tmp_path) == []
    folder = load_dataset(tmp_path)
    assert [len(folder.split(split)) for split in ("training", "validation")] == [2, 1]
    image = nib.load(folder.split("training")[0].image)
    assert image.shape == size
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == pytest.approx(spacing)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_knows_its_own_grid(kind: str, tmp_path: Path) -> None:
    made = KINDS[kind]
    default = inspect.signature(made.make).parameters
    assert (default["size"].default, default["spacing"].default) == (made.size, made.spacing)


def test_default_size_is_the_kinds(tmp_path: Path) -> None:
    write_phantom_cohort("brain", tmp_path, 1)
    case = load_dataset(tmp_path).split("training")[0]
    assert nib.load(case.image).shape == KINDS["brain"].size


def test_left_lung_lies_on_the_patients_left(tmp_path: Path) -> None:
    size, spacing = SMALL["thorax"]
    write_phantom_cohort("thorax", tmp_path, 1, size=size, spacing=spacing)
    case = load_dataset(tmp_path).split("training")[0]
    assert case.label is not None
    stored = nib.load(case.label)
    label = np.asarray(stored.dataobj)
    labels = KINDS["thorax"].labels
    world = {
        name: nib.affines.apply_affine(stored.affine, np.argwhere(label == labels[name])).mean(0)
        for name in ("left_lung", "right_lung", "heart")
    }
    # In the world of a NIfTI file x grows to the patient's right.
    assert world["left_lung"][0] < -20 < 20 < world["right_lung"][0]
    assert world["heart"][0] < 0


def test_classes_can_be_stored_merged(tmp_path: Path) -> None:
    size, spacing = SMALL["thorax"]
    for folder, group in (("all", None), ("merged", "large_organs")):
        write_phantom_cohort(
            "thorax", tmp_path / folder, 1, size=size, spacing=spacing, label_group=group
        )
        assert check_dataset(tmp_path / folder) == []
    whole, merged = load_dataset(tmp_path / "all"), load_dataset(tmp_path / "merged")
    assert merged.labels().names == ("background", "lungs", "heart", "body")
    assert merged.labels() == replace(whole.labels("large_organs"), values=((0,), (1,), (2,), (3,)))
    one, two = (
        np.asarray(nib.load(folder.split("training")[0].label).dataobj)
        for folder in (whole, merged)
    )
    assert (whole.labels("large_organs").encode(one) == two).all()
    with pytest.raises(DataError, match=r"expected volumes made as asked for now"):
        write_phantom_cohort("thorax", tmp_path / "merged", 1, size=size, spacing=spacing)
    with pytest.raises(DataError, match=r"label_group: expected one of \[\], found 'lobes'"):
        write_phantom_cohort("brain", tmp_path / "brain", 1, label_group="lobes")
    assert not (tmp_path / "brain").exists()


def test_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"brain.*thorax.*vessels.*found 'lungs'"):
        write_phantom_cohort("lungs", tmp_path, 1)


def test_a_size_that_was_refused_does_not_claim_the_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="size: expected three whole numbers"):
        write_phantom_cohort("thorax", tmp_path, 1, size=(8, 8, 8))
    size, spacing = SMALL["thorax"]
    write_phantom_cohort("thorax", tmp_path, 1, size=size, spacing=spacing)
    with pytest.raises(DataError, match="choose another folder"):
        write_phantom_cohort("thorax", tmp_path, 1, size=(64, 48, 32), spacing=spacing)
