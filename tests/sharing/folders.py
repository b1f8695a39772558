"""What the tests of conversions share: a folder with everything in it, and equality of folders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tests.conftest import tiny_dataset

from medpair.data.dataset import SPLITS, DatasetFolder, load_dataset, write_dataset_json
from medpair.data.files import Volume, read_json, read_volume, write_json, write_volume
from medpair.sharing.convert_volumes import read_image


def rich_dataset(folder: Path, count: int = 3) -> Path:
    """Write oblique volumes in PSR with gaps between label values, in all three lists."""
    tiny_dataset(folder, count, orientation="PSR", tilt=20, spacing=(1, 1.5, 2), roi=True)
    content = read_json(folder / "dataset.json")
    splits = {split: content[split] for split in SPLITS}
    splits["test"] = [splits["training"].pop()]
    for cases in splits.values():
        for case in cases:
            label = read_volume(folder / case["label"], np.uint16)
            spread = np.array([0, 7, 300], np.uint16)[label.array]
            write_volume(folder / case["label"], Volume(spread, label.affine, label.orientation))
    labels = {"background": 0, "left": 7, "right": 300}
    groups = {"both": {"1": {"name": "organ", "values": [7, 300]}}}
    more = {"label_groups": groups, "licence": "CC BY 4.0", "origin": {"seed": 3}}
    write_dataset_json(folder, "rich set", labels, splits, {"0": "T1"}, **more)
    write_json(folder / "provenance" / "case_000.json", {"index": 0, "seed": 3})
    return folder


def assert_same(one: Path, other: Path, roi: bool = True, group: str | None = None) -> None:
    """Compare splits, names, arrays, affines, storage order, and labels by their names."""
    a, b = load_dataset(one), load_dataset(other)
    for split in SPLITS:
        ours = {case.name: case for case in a.cases[split]}
        theirs = {case.name: case for case in b.cases[split]}
        assert ours.keys() == theirs.keys()
        for name, case in ours.items():
            assert case.image is not None
            before, after = read_image(case.image), read_image(theirs[name].image)
            assert_volume(before, after)
            assert_volume(classes(a, case.label, group), classes(b, theirs[name].label, group))
            if roi:
                assert_volume(read_image(case.roi), read_image(theirs[name].roi))
    assert a.labels(group).names == b.labels(group).names


def assert_volume(one: Volume, other: Volume) -> None:
    """Compare voxels, their type, the affine and the storage order."""
    assert one.array.dtype == other.array.dtype
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.affine, other.affine, atol=1e-4)
    assert one.orientation == other.orientation


def classes(folder: DatasetFolder, path: Path | None, group: str | None = None) -> Volume:
    """Read a label map as class indices: equal for label sets with equal names."""
    assert path is not None
    volume = read_volume(path)
    index = folder.labels(group).encode(volume.array)
    return Volume(index, volume.affine, volume.orientation)
