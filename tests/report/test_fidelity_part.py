"""Distances in features of a made-up network, whose distributions are known."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image
from tests.report.cohorts import PNG, MemoryPairs

from medpair.report.features import FeatureSet
from medpair.report.fidelity_part import compare_features, fidelity_part
from medpair.report.sections import differs, fidelity_section

DIMENSION = 4


class Fake:
    """Gives the features that the cohort carries."""

    name, dimension = "fake", DIMENSION

    def describe(self):
        return {"weights": "none"}

    def features(self, pairs):
        return pairs.features


def gaussian(count, seed, shift=0.0, views=("volume",)):
    rng = np.random.default_rng(seed)
    features = {
        view: FeatureSet(
            (rng.normal(size=(count, DIMENSION)) + shift).astype(np.float32), np.arange(count)
        )
        for view in views
    }
    return MemoryPairs([None] * count, features=features)


def found(part):
    json.dumps(part.numbers, allow_nan=False)
    return part.numbers["features"]["fake"]


def test_same_distribution_stands_on_its_floor():
    ratios = []
    for seed in range(2):
        entry = found(fidelity_part(gaussian(80, seed), gaussian(60, 100 + seed), [Fake()], {}))
        mean = entry["mean"]["frechet"]
        ratios.append(mean["value_at_equal_n"] / mean["floor"])
        assert mean["n_equal"] == 40
        assert entry["mean"]["kernel"]["low"] < 0 < entry["mean"]["kernel"]["high"]
        assert entry["prd"]["10"]["f8"] > 0.8 * entry["prd"]["10"]["floor_f8"]
        assert entry["views"] == {}
    assert np.mean(ratios) == pytest.approx(1, abs=0.25)


def test_shifted_cohort_is_far_above_the_floor():
    part = fidelity_part(gaussian(60, 0), gaussian(60, 1, shift=3.0), [Fake()], {})
    entry = found(part)
    # squared distance of the means: 4 axes by 3
    assert entry["mean"]["frechet"]["value"] == pytest.approx(36, rel=0.15)
    assert entry["mean"]["frechet"]["low"] < 36 < entry["mean"]["frechet"]["high"]
    assert all(differs(mean) for mean in entry["mean"].values())
    assert entry["mean"]["frechet"]["value_at_equal_n"] > 10 * entry["mean"]["frechet"]["floor"]
    for clusters in ("10", "20"):
        prd = entry["prd"][clusters]
        assert max(prd["f8"], prd["f1_8"]) < 0.3 < min(prd["floor_f8"], prd["floor_f1_8"])
    assert part.notes == []
    picture = Image.open(io.BytesIO(part.figures["prd"]))
    assert part.figures["prd"].startswith(PNG)
    assert min(picture.size) > 200
    rows = fidelity_section(part.numbers).tables[0].rows
    assert [row[0] for row in rows] == ["fake", "Fréchet distance", "kernel distance"]
    assert rows[1][4] == "yes"


def copied(pairs, times):
    """Every vector so many times within its volume."""
    features = {
        view: FeatureSet(np.repeat(one.values, times, axis=0), np.repeat(one.volume, times))
        for view, one in pairs.features.items()
    }
    return MemoryPairs(pairs.pairs, features=features)


def test_several_vectors_of_a_volume_are_no_more_volumes():
    real, synthetic = gaussian(40, 0), gaussian(30, 1, shift=0.5)
    once = found(fidelity_part(real, synthetic, [Fake()], {}))["mean"]
    often = found(fidelity_part(copied(real, 5), copied(synthetic, 5), [Fake()], {}))["mean"]
    for key in ("frechet", "kernel"):
        widths = [entry[key]["high"] - entry[key]["low"] for entry in (once, often)]
        assert widths[1] == pytest.approx(widths[0], rel=0.25)
        assert often[key]["n_equal"] == once[key]["n_equal"] == 20
        assert (often[key]["n_first"], often[key]["n_second"]) == (40, 30)
    # nearly the same covariances, so nearly the same distances and floors
    assert often["frechet"]["floor"] == pytest.approx(once["frechet"]["floor"], rel=0.1)


def test_views_are_averaged():
    views = ("axial", "coronal")
    real, synthetic = gaussian(30, 0, views=views), gaussian(30, 1, 1.0, views)
    entry = found(fidelity_part(real, synthetic, [Fake()], {}))
    for key in ("frechet", "kernel"):
        single = [entry["views"][view][key] for view in views]
        assert entry["mean"][key]["value"] == pytest.approx(np.mean(single))
        alone = MemoryPairs(real.pairs, features={"v": real.features["coronal"]})
        other = MemoryPairs(synthetic.pairs, features={"v": synthetic.features["coronal"]})
        again = found(fidelity_part(alone, other, [Fake()], {}))["mean"][key]["value"]
        assert again == pytest.approx(entry["views"]["coronal"][key])
    assert entry["prd"]["10"]["samples"] == 30  # 15 volumes of each half in both views


@pytest.mark.parametrize(("real", "synthetic", "size"), [(60, 12, 12), (60, 200, 30), (24, 24, 12)])
def test_precision_and_recall_and_their_floor_have_one_size(real, synthetic, size):
    one, two = gaussian(real, 0).features, gaussian(synthetic, 1).features
    numbers, curves = compare_features(one, two, real, synthetic)
    for clusters, pair in curves.items():
        assert [curve.size for curve in pair] == [size, size]
        assert numbers["prd"][str(clusters)]["samples"] == size


def test_few_volumes_are_said_to_be_few():
    for real, synthetic in ((7, 20), (20, 3)):
        part = fidelity_part(gaussian(real, 0), gaussian(synthetic, 1), [Fake()], {})
        assert part.numbers["features"] == {}
        assert part.figures == {}
        assert f"{real} real and {synthetic} synthetic volumes are too few" in part.notes[0]
    # enough for distances, not for clusters
    part = fidelity_part(gaussian(9, 0), gaussian(5, 1), [Fake()], {})
    assert found(part)["prd"] == {}
    assert part.figures == {}
    assert "too few volumes for precision and recall" in " ".join(part.notes)
    assert "with 4 volumes a side for 4 features" in part.notes[0]
    assert [len(table.rows) for table in fidelity_section(part.numbers).tables] == [3]
    part = fidelity_part(gaussian(24, 0), gaussian(24, 1), [Fake()], {})
    assert list(found(part)["prd"]) == ["10"]
    assert list(part.figures) == ["prd"]


def test_volumes_that_show_nothing_are_left_out():
    real, synthetic = gaussian(30, 0), gaussian(30, 1)
    whole = synthetic.features["volume"]
    kept = FeatureSet(whole.values[5:], whole.volume[5:])
    real = MemoryPairs(real.pairs, features={"v": real.features["volume"]})
    part = fidelity_part(real, MemoryPairs(synthetic.pairs, features={"v": kept}), [Fake()], {})
    assert found(part)["mean"]["frechet"]["n_second"] == 25
    empty = FeatureSet(np.zeros((0, DIMENSION), np.float32), np.zeros(0, int))
    part = fidelity_part(real, MemoryPairs(synthetic.pairs, features={"v": empty}), [Fake()], {})
    assert part.numbers["features"] == {}
    assert "30 real and 0 synthetic volumes show anything" in part.notes[0]


def test_what_is_left_out_is_said():
    part = fidelity_part(gaussian(3, 0), gaussian(3, 1), [], {"Other": "no weights"})
    assert part.numbers["left_out"] == {"Other": "no weights"}
    assert part.notes[0] == "Other is left out: no weights."


def test_equal_features_have_no_ratio():
    flat = FeatureSet(np.ones((20, DIMENSION), np.float32), np.arange(20))
    pairs = MemoryPairs([None] * 20, features={"volume": flat})
    part = fidelity_part(pairs, pairs, [Fake()], {})
    assert found(part)["mean"]["frechet"]["floor"] == 0
    assert fidelity_section(part.numbers).tables[0].rows[1][3] == "–"
