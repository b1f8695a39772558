"""Pairs of a dataset folder: which are drawn, how they are read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.conftest import tiny_dataset

from medpair.data.files import DataError, Volume, read_json, read_volume, write_json, write_volume
from medpair.report.pairs import few, open_pairs


def names(pairs) -> list[str]:
    return [case.name for case in pairs.cases]


def change(folder: Path, **content) -> Path:
    path = folder / "dataset.json"
    write_json(path, read_json(path) | content)
    return path


def test_each_split_has_its_own_cases(tmp_path):
    folder = tiny_dataset(tmp_path / "set", 3, validation=2)
    training, validation = open_pairs(folder), open_pairs(folder, "validation")
    assert names(training) == ["case_000", "case_001", "case_002"]
    assert names(validation) == ["case_003", "case_004"]
    assert (len(training), training.total, training.names) == (3, 3, ("class_1", "class_2"))
    assert training.num_labels == 2
    assert [pair.name for pair in validation] == names(validation)
    pair = training[1]
    stored = read_volume(folder / "imagesTr" / "case_001_0000.nii.gz")
    assert np.array_equal(pair.image, stored.array)
    assert pair.image.dtype == np.float32
    assert pair.spacing == (1.0, 1.0, 1.0)
    assert pair.unit().min() == -1
    assert pair.unit().max() == 1


def test_limit_is_drawn_by_the_seed_in_the_order_of_the_split(tmp_path):
    folder = tiny_dataset(tmp_path / "set", 12, (6, 6, 6), 1)
    drawn = [names(open_pairs(folder, limit=4, seed=seed)) for seed in range(5)]
    assert all(one == sorted(one) for one in drawn)
    assert all(len(set(one)) == 4 for one in drawn)
    assert len({tuple(one) for one in drawn}) > 1
    assert names(open_pairs(folder, limit=4, seed=3)) == drawn[3]
    limited = open_pairs(folder, limit=4)
    assert (len(limited), limited.total) == (4, 12)
    assert len(open_pairs(folder, limit=50)) == 12
    fewer = few(limited, 2, seed=1)
    assert (len(fewer), fewer.total) == (2, 12)
    assert set(names(fewer)) < set(names(limited))
    assert few(limited, 9).cases == limited.cases


def test_label_group_merges_classes(tmp_path):
    folder = tiny_dataset(tmp_path / "set", 1, (18, 10, 10), 3)
    entry = {"name": "outer", "values": [1, 3]}
    change(folder, label_groups={"ends": {"1": entry}})
    stored = read_volume(folder / "labelsTr" / "case_000.nii.gz", np.int64).array
    pairs = open_pairs(folder, label_group="ends")
    assert pairs.names == ("outer",)
    assert np.array_equal(pairs[0].label, np.isin(stored, [1, 3]))
    with pytest.raises(DataError, match="label_group: expected one of"):
        open_pairs(folder, label_group="middle")


def test_what_has_no_label_has_none_in_a_report_either(tmp_path):
    """A stage's folder has classes for it: of a head they would be the face."""
    folder = tiny_dataset(tmp_path / "set", 1, (18, 10, 10), 3)
    plain = open_pairs(folder)
    stored = plain[0].label
    known = {"background": 0, plain.names[0]: 1, "unlabelled_1": 2, "unlabelled_2": 3}
    change(folder, labels=known)
    pairs = open_pairs(folder)
    assert pairs.names == plain.names[:1]
    assert np.array_equal(pairs[0].label, stored == 1)


def test_pairs_are_brought_to_a_spacing(tmp_path):
    folder = tiny_dataset(tmp_path / "set", 1, (16, 14, 12), spacing=(1.0, 1.0, 2.0))
    pair = open_pairs(folder, spacing=(2.0, 2.0, 2.0))[0]
    assert pair.image.shape == pair.label.shape == (8, 8, 12)
    assert pair.spacing == (2.0, 2.0, 2.0)
    assert set(np.unique(pair.label)) == {0, 1, 2}
    before = open_pairs(folder)[0]
    assert before.image.shape == (16, 14, 12)
    volume = [(p.label > 0).sum() * np.prod(p.spacing) for p in (before, pair)]
    assert volume[1] == pytest.approx(volume[0], rel=0.2)


def test_a_thin_volume_stays_a_volume(tmp_path):
    folder = tiny_dataset(tmp_path / "set", 1, (16, 14, 1), 1, spacing=(1.0, 1.0, 1.0))
    assert open_pairs(folder, spacing=(2.0, 2.0, 4.0))[0].image.shape == (8, 8, 1)


def test_refusals_name_the_file(tmp_path):
    folder = tiny_dataset(tmp_path / "set", 3)
    with pytest.raises(DataError, match=r"split: expected one of .* found 'train'"):
        open_pairs(folder, "train")
    with pytest.raises(DataError, match=r"dataset\.json: test: expected cases, found none"):
        open_pairs(folder, "test")
    affine = read_volume(folder / "labelsTr/case_000.nii.gz").affine
    write_volume(folder / "labelsTr/case_000.nii.gz", Volume(np.zeros((4, 5, 6), np.uint8), affine))
    image = np.full((16, 14, 12), np.nan, np.float32)
    write_volume(folder / "imagesTr/case_001_0000.nii.gz", Volume(image, affine))
    label = np.full((16, 14, 12), 9, np.uint8)
    write_volume(folder / "labelsTr/case_002.nii.gz", Volume(label, affine))
    pairs = open_pairs(folder)
    for index, message in enumerate(
        (
            r"case_000\.nii\.gz: expected the image's shape \(16, 14, 12\), found \(4, 5, 6\)",
            r"case_001_0000\.nii\.gz: expected finite intensities, found NaN",
            r"case_002\.nii\.gz: expected label values in \[0, 1, 2\], found \[9\]",
        )
    ):
        with pytest.raises(DataError, match=message):
            pairs[index]
    cases = read_json(folder / "dataset.json")["training"]
    change(folder, training=[cases[0], {"image": cases[1]["image"]}])
    with pytest.raises(
        DataError, match=r"dataset\.json: training: expected a label for case_001, found none"
    ):
        open_pairs(folder)


def test_what_is_not_resampled_keeps_its_spacing(tmp_path):
    """Within 5 % a volume stays as it is: of another spacing its millilitres would be others."""
    folder = tiny_dataset(tmp_path / "set", 1, (16, 14, 12), spacing=(0.96, 0.96, 0.96))
    plain, asked = open_pairs(folder)[0], open_pairs(folder, spacing=(1.0, 1.0, 1.0))[0]
    assert np.array_equal(plain.image, asked.image)
    assert asked.spacing == plain.spacing == pytest.approx((0.96, 0.96, 0.96))
