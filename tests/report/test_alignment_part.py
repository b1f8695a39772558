"""Agreement of a known predictor with given labels."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ttest_ind
from tests.report.cohorts import PNG, MemoryPairs, boxes, cohort

from medpair.report.alignment_part import agreement, alignment_part
from medpair.report.pairs import Pair
from medpair.report.sections import alignment_section

SEGMENTER = {"weights": "model.pt"}
# Dice of each case, where a test chooses them
KEPT = {"a": 1.0, "b": 1.0, "c": 0.8, "d": 1.0, "e": 0.9, "f": 0.8, "g": 0.5}


def threshold(pair: Pair) -> np.ndarray:
    """Label by intensity: the classes of `boxes` are at 100, 200 and 300."""
    found = np.rint(pair.image / 100).clip(0, 3).astype(int)
    found[0, 0] = found[-1, -1] = 0
    return found


def moved(pairs: MemoryPairs, voxels: int) -> MemoryPairs:
    labels = [np.roll(pair.label, voxels, axis=0) for pair in pairs]
    return MemoryPairs(
        [Pair(p.name, p.image, label, p.spacing) for p, label in zip(pairs, labels, strict=True)]
    )


def test_perfect_predictor():
    part = alignment_part(cohort(6, 0), cohort(5, 1), threshold, SEGMENTER)
    numbers = part.numbers
    assert [row["name"] for row in numbers["classes"]] == ["one", "two", "three"]
    for row in (*numbers["classes"], numbers["mean"]):
        assert (row["synthetic"]["mean"], row["holdout"]["mean"]) == (1, 1)
        assert (row["synthetic"]["n"], row["holdout"]["n"]) == (6, 5)
    assert numbers["difference"] == {"value": 0, "low": 0, "high": 0}
    assert numbers["segmenter"] == SEGMENTER
    assert part.notes == []
    assert part.figures["agreement"].startswith(PNG)
    json.dumps(numbers, allow_nan=False)
    assert "0.000 [0.000, 0.000]" in alignment_section(numbers).lead[-1]


def test_moved_labels_do_not_fit():
    synthetic, holdout = cohort(10, 0), cohort(10, 1)
    part = alignment_part(moved(synthetic, 2), holdout, threshold, SEGMENTER)
    entry = part.numbers["difference"]
    assert entry["low"] < entry["value"] < entry["high"] < -0.2
    # a box of width w that is moved by two voxels keeps w - 2 of its w slices
    expected = [
        1 - 2 / np.count_nonzero((pair.label == k).any(axis=(1, 2)))
        for pair in synthetic
        for k in (1, 2, 3)
    ]
    assert part.numbers["mean"]["synthetic"]["mean"] == pytest.approx(np.mean(expected))
    again = alignment_part(moved(synthetic, 2), holdout, threshold, SEGMENTER)
    assert again.numbers == part.numbers


def test_interval_of_few_cases_is_welchs():
    """Shares of a line that are kept: Dice of 1, 1 and 0.8 beside 1, 0.9, 0.8 and 0.5."""

    def line(name, count):
        label = np.zeros((1, 1, 100), int)
        label[..., :count] = 1
        return Pair(name, np.zeros((1, 1, 100)), label, (1, 1, 1))

    def cut(pair):
        found = pair.label.copy()
        found[..., round(100 * KEPT[pair.name] / (2 - KEPT[pair.name])) :] = 0
        return found

    synthetic, holdout = (
        MemoryPairs([line(name, 100) for name in names], ("a",)) for names in ("abc", "defg")
    )
    entry = alignment_part(synthetic, holdout, cut, {}).numbers["difference"]
    one, two = (np.array([KEPT[name] for name in names]) for names in ("abc", "defg"))
    expected = ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    assert entry["low"] == pytest.approx(expected.low, abs=0.01)
    assert entry["high"] == pytest.approx(expected.high, abs=0.01)


def test_interval_covers_a_known_difference():
    """Predictors that lose a random share of every box, more of the synthetic ones."""
    rng = np.random.default_rng(0)

    def cases(count, mean):
        losses = rng.uniform(mean - 0.1, mean + 0.1, count)
        return {f"case_{i}": loss for i, loss in enumerate(losses)}

    inside = 0
    for _ in range(20):
        losses = {"s": cases(8, 0.3), "h": cases(8, 0.2)}
        pairs = {
            kind: MemoryPairs([Pair(f"{kind}{name}", *one, (1, 1, 1)) for name in table], ("a",))
            for kind, table in losses.items()
            for one in [(np.zeros((1, 1, 100)), np.ones((1, 1, 100), int))]
        }

        def predict(pair, losses=losses):
            found = pair.label.copy()
            found[..., : round(100 * losses[pair.name[0]][pair.name[1:]])] = 0
            return found

        entry = alignment_part(pairs["s"], pairs["h"], predict, {}).numbers["difference"]
        true = 2 * 0.7 / 1.7 - 2 * 0.8 / 1.8
        inside += entry["low"] - 0.005 < true < entry["high"] + 0.005
    assert inside >= 16


def test_without_holdout_or_with_few_there_is_no_difference():
    part = alignment_part(cohort(4, 0), None, threshold, SEGMENTER)
    assert "difference" not in part.numbers
    assert "Without held-out real cases" in part.notes[0]
    assert "holdout" not in part.numbers["mean"]
    assert all(row[2] == "–" for row in alignment_section(part.numbers).tables[0].rows)
    part = alignment_part(cohort(4, 0), cohort(2, 1), threshold, SEGMENTER)
    assert "difference" not in part.numbers
    assert "Fewer than 3 volumes" in part.notes[0]
    part = alignment_part(cohort(1, 0), cohort(1, 1), threshold, SEGMENTER)
    json.dumps(part.numbers, allow_nan=False)


def test_a_cohort_without_the_difficult_class_is_not_the_better_one():
    """Class one is found worse in the synthetic cohort, class three is found badly in the other."""
    held, drawn = cohort(8, 0), cohort(8, 1)
    without = []
    for pair in drawn:
        image, label = pair.image.copy(), pair.label.copy()
        image[label == 3] = label[label == 3] = 0
        without.append(Pair(f"drawn {pair.name}", image, label, pair.spacing))

    def predict(pair):
        found = threshold(pair)
        hide, count = (1, 1) if pair.name.startswith("drawn") else (3, 3)
        slices = np.flatnonzero((pair.label == hide).any(axis=(1, 2)))
        found[slices[: min(count, len(slices) - 1)]] = 0
        return found

    part = alignment_part(MemoryPairs(without), held, predict, SEGMENTER)
    values = [agreement(pairs, predict) for pairs in (MemoryPairs(without), held)]
    one, two = (rows[:, :2].mean(axis=1) for rows in values)
    entry = part.numbers["difference"]
    assert entry["value"] == pytest.approx(one.mean() - two.mean())
    expected = ttest_ind(one, two, equal_var=False).confidence_interval(0.95)
    assert (entry["low"], entry["high"]) == pytest.approx((expected.low, expected.high))
    assert entry["high"] < 0 < np.nanmean(values[0]) - np.nanmean(values[1])
    assert part.numbers["compared"] == {"classes": 2, "left_out": ["three"]}
    assert "three (0 and 8)" in part.notes[0]


def test_absent_classes_are_left_out_and_counted():
    rng = np.random.default_rng(0)
    pairs = [Pair(f"c{i}", *boxes(rng), (1.0, 1.0, 1.0)) for i in range(4)]
    for pair in pairs[:3]:
        pair.image[pair.label == 2] = 0
        pair.label[pair.label == 2] = 0
    empty = Pair("empty", np.zeros_like(pairs[0].image), np.zeros_like(pairs[0].label), (1, 1, 1))
    given = MemoryPairs([*pairs, empty])
    values = agreement(given, threshold)
    assert np.isnan(values[:3, 1]).all()
    assert np.isnan(values[4]).all()
    part = alignment_part(given, given, threshold, SEGMENTER)
    assert [row["synthetic"]["n"] for row in part.numbers["classes"]] == [4, 1, 4]
    assert part.numbers["mean"]["synthetic"]["n"] == 4
    # a class that the segmenter alone sees, or misses, counts as 0
    values = agreement(given, lambda pair: np.where(pair.label == 0, 2, 0))
    assert (values[~np.isnan(values)] == 0).all()
    nothing = alignment_part(
        MemoryPairs([empty] * 3), None, lambda pair: pair.label, SEGMENTER
    ).numbers
    assert nothing["mean"]["synthetic"] == {
        "n": 0,
        **dict.fromkeys(("mean", "std", "low", "high", "median")),
    }
