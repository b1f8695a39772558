"""Few cases of a folder, several folders in one training."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from tests.conftest import tiny_dataset

from medpair.data.files import DataError
from medpair.data.folders import FolderSampler, draw_cases, limits
from medpair.data.sampling import EpochSampler
from medpair.data.segmentation import load_items, read_task


def items(*counts: int) -> list[dict[str, str]]:
    return [{"dataset_dir": f"folder_{k}"} for k, count in enumerate(counts) for _ in range(count)]


def test_draws_are_nested_and_keep_the_order() -> None:
    names = [f"case_{k}" for k in range(20)]
    for seed in range(3):
        draws = [draw_cases(names, count, seed, "here") for count in range(1, 21)]
        for fewer, more in pairwise(draws):
            assert set(fewer) < set(more)
        assert all(draw == sorted(draw, key=names.index) for draw in draws)
        assert draws[-1] == draw_cases(names, None, seed, "here") == names
    assert draw_cases(names, 5, 0, "here") != draw_cases(names, 5, 1, "here")


def test_every_case_has_its_chance() -> None:
    counts = Counter(k for seed in range(600) for k in draw_cases(range(6), 2, seed, ""))
    # 200 expected of each, with a standard deviation of 11.5
    assert all(150 < counts[k] < 250 for k in range(6))


def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(DataError, match=r"set: training: expected 4 cases .* found 3"):
        draw_cases([1, 2, 3], 4, 0, "set: training")


def test_limits_for_all_folders_or_each() -> None:
    assert limits(None, 2) == [None, None]
    assert limits(5, 2) == [5, 5]
    assert limits([5, None], 2) == limits((5, None), 2) == [5, None]
    for wrong in ([5], [5, 0], "5", 2.0, True):
        with pytest.raises(ValueError, match="max_cases: expected"):
            limits(wrong, 2)  # type: ignore[arg-type]


def test_a_folder_gives_the_same_cases_whatever_the_others(tmp_path: Path) -> None:
    one = tiny_dataset(tmp_path / "one", count=6, size=(8, 8, 8))
    two = tiny_dataset(tmp_path / "two", count=3, size=(8, 8, 12))
    alone = load_items(one, max_cases=2, seed=4)
    both = load_items([one, two], max_cases=[2, None], seed=4)
    assert both[:2] == alone
    assert [item["dataset_dir"] for item in both[2:]] == [str(two)] * 3
    assert read_task([one, two], max_cases=[2, None]).longest == (8, 8, 12)
    assert len(load_items([one, two], max_cases=1)) == 2
    assert load_items(one) == load_items(one, max_cases=6)
    with pytest.raises(DataError, match=r"one/dataset.json: training: expected 7 cases"):
        load_items(one, max_cases=7)


def test_unbalanced_is_the_order_it_always_was() -> None:
    ours = FolderSampler(items(3, 5), seed=2, iterations=4, batch_size=3)
    plain = EpochSampler(8, seed=2, iterations=4, batch_size=3)
    assert [list(ours) for _ in range(2)] == [list(plain) for _ in range(2)]


def test_balanced_folders_count_alike() -> None:
    sampler = FolderSampler(items(2, 30), seed=1, iterations=30, batch_size=2, balance=True)
    first, second = list(sampler), list(sampler)
    assert [epoch for epoch, _ in first + second] == [0] * 60 + [1] * 60
    counts = Counter(index for _, index in first)
    assert counts[0] == counts[1] == 15
    assert [counts[index] for index in range(2, 32)] == [1] * 30
    assert [index for _, index in first] != [index for _, index in second]


def test_balanced_epochs_of_odd_length_are_fair_in_the_long_run() -> None:
    sampler = FolderSampler(items(4, 4), seed=1, iterations=1, batch_size=3, balance=True)
    drawn = [index // 4 for _ in range(10) for _, index in sampler]
    assert Counter(drawn) == {0: 15, 1: 15}


def test_balanced_draws_go_on_where_they_stopped() -> None:
    whole = FolderSampler(items(2, 5), seed=3, iterations=5, batch_size=2, balance=True)
    epochs = [list(whole), list(whole)]
    resumed = FolderSampler(items(2, 5), seed=3, iterations=5, batch_size=2, balance=True)
    resumed.resume_at(1, 4)
    assert list(resumed) == epochs[1][4:]
