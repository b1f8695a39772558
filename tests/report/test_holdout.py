"""Held-out cases: which list they are in, and that nobody has seen them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.conftest import tiny_dataset

from medpair.data.files import DataError, read_json, write_json
from medpair.report.build import Cohorts
from medpair.report.holdout import refuse_overlap, split_of_holdout
from medpair.report.pairs import open_pairs


def moved_to(folder: Path, split: str) -> Path:
    """Move the training cases of a folder into another of its lists."""
    content = read_json(folder / "dataset.json")
    content |= {split: content["training"], "training": []}
    write_json(folder / "dataset.json", content)
    return folder


def test_split_of_holdout(tmp_path: Path) -> None:
    real = tiny_dataset(tmp_path / "real", 2, (8, 6, 6), 1)
    other = tiny_dataset(tmp_path / "other", 2, (8, 6, 6), 1, validation=0)
    assert split_of_holdout(real, tmp_path / "real" / ".." / "real") == "validation"
    assert split_of_holdout(real, other) == "training"
    assert split_of_holdout(real, moved_to(other, "test")) == "test"
    alone = tiny_dataset(tmp_path / "alone", 2, (8, 6, 6), 1, validation=0)
    with pytest.raises(DataError, match=r"alone.dataset\.json: expected cases to hold out"):
        split_of_holdout(alone, alone)


def test_held_out_cases_must_not_be_trained_on(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "real", 3, (8, 6, 6), 1)
    link = tmp_path / "link"
    link.symlink_to(folder)
    real = open_pairs(folder)
    made = open_pairs(tiny_dataset(tmp_path / "made", 3, (8, 6, 6), 1))
    refuse_overlap(Cohorts(real, made, None))
    refuse_overlap(Cohorts(real, made, open_pairs(folder, "validation")))
    with pytest.raises(DataError, match=r"case_000_0000\.nii\.gz: expected held-out cases"):
        refuse_overlap(Cohorts(real, made, open_pairs(link)))
    # also where the shared case was not drawn
    one = open_pairs(folder, limit=1)
    with pytest.raises(DataError, match="expected held-out cases, found one of the real"):
        refuse_overlap(Cohorts(one, made, open_pairs(link)))
    with pytest.raises(DataError, match="expected held-out cases, found one of the synthetic"):
        refuse_overlap(Cohorts(real, made, made))
    with pytest.raises(DataError, match="expected synthetic volumes, found one of the real"):
        refuse_overlap(Cohorts(real, open_pairs(link), None))
    # nor copies of the files, under other names
    copied = shutil.copytree(folder, tmp_path / "copied")
    content = read_json(copied / "dataset.json")
    first = copied / content["training"][0]["image"]
    named = first.rename(first.with_name("other_0000.nii.gz"))
    content["training"] = [{**content["training"][0], "image": f"imagesTr/{named.name}"}]
    write_json(copied / "dataset.json", {**content, "numTraining": 1})
    with pytest.raises(DataError, match=r"other_0000.*expected held-out cases, found a copy of .*"):
        refuse_overlap(Cohorts(real, made, open_pairs(copied)))
