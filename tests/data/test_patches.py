"""The paper's patches, and the padding rule."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medpair.data.cohort import LabelledVolume
from medpair.data.patches import (
    PatchDataset,
    crop_box,
    extract,
    fitting_patch,
    grid_starts,
    random_starts,
    systematic_starts,
)


def volume(size: tuple[int, int, int], seed: int = 0) -> LabelledVolume:
    rng = np.random.default_rng(seed)
    image = rng.uniform(-1, 1, size).astype(np.float32)
    return LabelledVolume(image, (image > 0.9).astype(np.uint8))


def test_the_papers_grid() -> None:
    """3 x 3 x 2 patches of 128 x 128 x 64 in 312 x 384 x 127, at the offsets of its code."""
    starts = systematic_starts((312, 384, 127), (128, 128, 64))
    assert len(starts) == 18
    assert sorted({x for x, _, _ in starts}) == [0, 92, 184]
    assert sorted({y for _, y, _ in starts}) == [0, 128, 256]
    assert sorted({z for _, _, z in starts}) == [0, 63]


@pytest.mark.parametrize(("size", "patch"), [(128, 128), (129, 128), (300, 64), (64, 48)])
def test_the_grid_covers_the_axis(size: int, patch: int) -> None:
    starts = grid_starts(size, patch)
    covered = np.zeros(size, bool)
    for start in starts:
        assert 0 <= start <= size - patch
        covered[start : start + patch] = True
    assert covered.all()


@pytest.mark.fault(17)
@pytest.mark.parametrize("size", [(5, 6, 7), (16, 16, 16), (3, 16, 9)])
def test_cropping_undoes_padding(size: tuple[int, int, int]) -> None:
    array = np.arange(np.prod(size)).reshape(size)
    patch = (16, 16, 16)
    padded = extract(array, systematic_starts(size, patch)[0], patch, -1)
    np.testing.assert_array_equal(padded[crop_box(size, patch)], array)
    assert (padded == -1).sum() == np.prod(patch) - array.size


def test_random_patches_are_centred_on_foreground() -> None:
    label = volume((40, 30, 20)).label
    starts = random_starts(label, (16, 16, 8), 25, np.random.default_rng(0))
    centres = np.asarray(starts) + np.asarray((8, 8, 4))
    assert len({tuple(centre) for centre in centres}) == 25
    assert all(label[tuple(centre)] for centre in centres)


def test_fewer_foreground_voxels_than_patches() -> None:
    label = np.zeros((8, 8, 8), np.uint8)
    label[1, 2, 3] = 1
    assert random_starts(label, (4, 4, 4), 32, np.random.default_rng(0)) == [(-1, 0, 1)]
    assert random_starts(label * 0, (4, 4, 4), 32, np.random.default_rng(0)) == []


def test_patches_per_volume_as_in_the_paper() -> None:
    volumes = [volume((40, 40, 20), seed) for seed in range(2)]
    data = PatchDataset(volumes, (16, 16, 8), random_patches=32, seed=1)
    assert len(data) == 2 * (3 * 3 * 3 + 32)
    again = PatchDataset(volumes, (16, 16, 8), random_patches=32, seed=1)
    other = PatchDataset(volumes, (16, 16, 8), random_patches=32, seed=2)
    assert data.data == again.data != other.data


def test_an_item_is_the_volumes_content_and_says_where() -> None:
    source = volume((12, 20, 16))
    item = PatchDataset([source], (16, 16, 16), random_patches=0)[(3, 0)]
    (low, high) = item["box"].tolist()
    assert (low, high) == ([2, 0, 0], [14, 16, 16])
    inside = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    np.testing.assert_array_equal(item["image"][0][inside], source.image[:, :16, :])
    assert (item["image"][0][:2] == -1).all()
    assert item["label"].dtype == torch.uint8


def test_volumes_that_fit_get_no_random_patches() -> None:
    assert len(PatchDataset([volume((10, 10, 10))], (16, 16, 16), random_patches=32)) == 1


def test_patch_normalization_spans_the_range() -> None:
    source = LabelledVolume(
        np.linspace(-0.5, 0.1, 32**3, dtype=np.float32).reshape(32, 32, 32),
        np.zeros((32, 32, 32), np.uint8),
    )
    item = PatchDataset([source], (16, 16, 16), normalize="patch")[0]
    assert item["image"].min() == -1
    assert item["image"].max() == 1
    with pytest.raises(ValueError, match="normalize: expected volume or patch, found 'x'"):
        PatchDataset([source], (16, 16, 16), normalize="x")


def test_fitting_patch() -> None:
    assert fitting_patch([(31, 54, 34), (42, 51, 28)]) == [48, 64, 48]
    assert fitting_patch([(312, 384, 127)]) == [128, 128, 64]


def test_a_cases_patches_do_not_depend_on_who_else_is_there() -> None:
    """Without a volume those of the others stay: what differential privacy takes for granted."""
    cohort = [replace(volume((30, 20, 10), seed), case=f"case_{seed}") for seed in range(3)]
    bent = replace(cohort[1], image=np.flip(cohort[1].image).copy())  # a copy has the case's name

    def starts(volumes: list[LabelledVolume]) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for number, start in PatchDataset(volumes, (16, 16, 8), random_patches=5, seed=9).data:
            found.setdefault(volumes[number].case, []).append(start)
        return found

    whole = starts([*cohort, bent])
    assert starts([*cohort[1:], bent]) == {name: whole[name] for name in ("case_1", "case_2")}
    half = len(whole["case_1"]) // 2
    assert whole["case_1"][:half] != whole["case_1"][half:]
    with pytest.raises(ValueError, match="random_patches: expected at least 0, found -1"):
        PatchDataset(cohort, (16, 16, 8), random_patches=-1)
