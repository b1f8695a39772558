import json

import numpy as np
import pytest
from scipy.stats import ks_2samp

from medpair.data.dataset import load_dataset
from medpair.data.files import DataError
from medpair.metrics.label_cohort import (
    compare_label_cohorts,
    format_label_table,
    kolmogorov_smirnov,
    label_statistics_of_folder,
)
from medpair.metrics.label_plausible import LabelReference, implausible, label_reference
from medpair.metrics.label_shape import LabelShape, label_shape

SPACING = (0.5, 2.0, 3.0)


def measured(*boxes, num_labels=2):
    """The shape of boxes (class, corner, size) in a volume of 20 x 24 x 16 voxels of 1 mm."""
    label = np.zeros((20, 24, 16), np.uint8)
    for index, corner, size in boxes:
        label[tuple(slice(c, c + s) for c, s in zip(corner, size, strict=True))] = index
    return label_shape(label, num_labels, (1, 1, 1))


def two_organs(scale=0, first=1):
    return measured((first, (1, 1, 1), (8 + scale, 8, 8)), (2, (11, 12, 2), (6, 5 + scale, 4)))


TRAINING = [two_organs(scale) for scale in range(5)]
NAMES = ["liver", "spleen"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_training_volumes_are_plausible(count):
    rng = np.random.default_rng(count)
    ragged = [
        label_shape(rng.integers(0, 4, (9, 9, 9), dtype=np.uint8) * keep, 3, SPACING)
        for keep in rng.random((count, 9, 9, 9)) < 0.3
    ]
    for shapes in (TRAINING[:count], ragged):
        stored = json.loads(json.dumps(label_reference(shapes).to_json()))
        reference = LabelReference.from_json(stored)
        assert reference == label_reference(shapes)
        margins = {"volume_margin": 0, "components_margin": 0, "share_margin": 0}
        assert [implausible(shape, reference, **margins) for shape in shapes] == [[]] * count


def test_missing_organ_is_named():
    reference = label_reference(TRAINING)
    assert reference.presence == (1, 1)
    (reason,) = implausible(measured((1, (1, 1, 1), (8, 8, 8))), reference, names=NAMES)
    assert reason.startswith("spleen: ")
    assert "nowhere" in reason
    # an organ that training lacks once may be absent
    sometimes = label_reference([*TRAINING, measured((1, (1, 1, 1), (8, 8, 8)))])
    assert sometimes.presence == (1, pytest.approx(5 / 6))
    assert implausible(measured((1, (1, 1, 1), (8, 8, 8))), sometimes) == []


def test_organ_that_training_lacks_is_named():
    never = label_reference([measured((1, (1, 1, 1), (8, 8, 8)))])
    assert (never.volume[1], never.largest_share[1], never.components[1]) == (None, None, None)
    (reason,) = implausible(two_organs(), never)
    assert reason.startswith("class 2: ")


def test_three_times_the_volume_is_named():
    large = measured((1, (0, 0, 0), (20, 24, 5)), (2, (11, 12, 6), (6, 5, 4)))
    (reason,) = implausible(large, label_reference(TRAINING), names=NAMES)
    assert reason.startswith("liver: ")
    assert "0.256 to 1.15 ml (training 0.512 to 0.768), found 2.4 ml" in reason


def test_split_organ_is_named():
    halves = measured(
        (1, (1, 1, 1), (4, 8, 8)), (1, (6, 1, 1), (4, 8, 8)), (2, (11, 12, 2), (6, 5, 4))
    )
    (reason,) = implausible(halves, label_reference(TRAINING), names=NAMES)
    assert reason == "liver: expected at least 90% in one piece (training from 100%), found 50%."
    crumbs = [(2, (2 * index, 20, 12), (1, 4, 2)) for index in range(2)]
    body = [(1, (1, 1, 1), (8, 8, 8)), (2, (11, 12, 2), (6, 6, 6))]
    (reason,) = implausible(measured(*body, *crumbs), label_reference(TRAINING), share_margin=0.5)
    assert reason == "class 2: expected at most 2 pieces (training up to 1), found 3."
    assert implausible(measured(*body, *crumbs[:1]), label_reference(TRAINING)) == []


@pytest.mark.parametrize(("count", "times"), [(1, 3), (2, 1.5), (3, 1), (9, 1)])
def test_range_is_wider_after_few_training_volumes(count, times):
    one = LabelShape((1000.0,), (1.0,), (2,), (0.8,), (None,), (None,))
    reference = label_reference([one] * count)

    def refused(volume=1000.0, components=2, share=0.8):
        shape = LabelShape((volume,), (1.0,), (components,), (share,), (None,), (None,))
        return bool(implausible(shape, reference))

    for bound in (0.5**times, 1.5**times):
        inner, outer = sorted([bound * 0.999, bound * 1.001], key=lambda part: abs(part - 1))
        assert (refused(1000 * inner), refused(1000 * outer)) == (False, True)
    share = 0.8 - 0.1 * times
    assert (refused(share=share + 1e-6), refused(share=share - 1e-6)) == (False, True)
    most = int(2 * (1 + times))
    assert (refused(components=most), refused(components=most + 1)) == (False, True)


def test_implausible_refuses_other_classes():
    reference = label_reference(TRAINING)
    with pytest.raises(ValueError, match="names"):
        implausible(TRAINING[0], reference, names=["background", *NAMES])
    with pytest.raises(ValueError, match="expected 2 classes, found 3"):
        implausible(measured(num_labels=3), reference)
    with pytest.raises(ValueError, match="margins"):
        implausible(TRAINING[0], reference, volume_margin=1)
    with pytest.raises(ValueError, match="at least one"):
        label_reference([])


# --- cohorts


def test_cohorts_are_compared_class_by_class():
    rows = compare_label_cohorts(
        TRAINING, [two_organs(), measured((1, (1, 1, 1), (4, 5, 6)))], NAMES
    )
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    liver, spleen = rows
    assert (liver["class"], liver["name"], spleen["name"]) == (1, "liver", "spleen")
    volumes = 0.064 * np.arange(8, 13)
    assert liver["real"]["volume_ml"] == {
        "mean": pytest.approx(volumes.mean()),
        "sd": pytest.approx(volumes.std(ddof=1)),
    }
    surfaces = [2 * (8 * 8 + 2 * 8 * 8) / 100, 2 * (20 + 24 + 30) / 100]
    assert liver["synthetic"]["surface_cm2"]["mean"] == pytest.approx(np.mean(surfaces))
    assert (spleen["synthetic"]["presence"], spleen["synthetic"]["volumes"]) == (0.5, 2)
    assert spleen["synthetic"]["volume_ml"] == {"mean": pytest.approx(0.12), "sd": 0}
    # 120 is the smallest real spleen: beyond 0, half of the synthetic and none of the real
    assert spleen["volume_ks"] == pytest.approx(0.8)


def test_absent_class_has_no_statistics_but_a_distance():
    (_, spleen) = compare_label_cohorts(TRAINING, [measured((1, (1, 1, 1), (4, 5, 6)))])
    assert spleen["synthetic"]["volume_ml"] == {"mean": None, "sd": None}
    assert spleen["volume_ks"] == 1
    with pytest.raises(ValueError, match="synthetic: expected 2 classes, found 3"):
        compare_label_cohorts(TRAINING, [measured(num_labels=3)])


def test_kolmogorov_smirnov_is_the_usual_one():
    rng = np.random.default_rng(0)
    for sizes in ((1, 1), (5, 8), (30, 20)):
        first, second = (rng.integers(0, 9, size) for size in sizes)
        expected = ks_2samp(first, second).statistic
        assert kolmogorov_smirnov(first, second) == pytest.approx(expected)


def test_table_has_two_lines_per_class():
    synthetic = [measured((1, (1, 1, 1), (10, 10, 10)))]
    lines = format_label_table(compare_label_cohorts(TRAINING, synthetic, NAMES)).splitlines()
    assert len(lines) == 1 + 2 * len(NAMES)
    assert lines[0].split()[:3] == ["class", "cohort", "present"]
    assert lines[2].split()[:7] == ["synthetic", "100%", "of", "1", "1.00", "±", "0.00"]
    assert lines[4].split() == ["synthetic", "0%", "of", "1", *"-----"]
    assert lines[1].startswith("liver   real")


def test_folder_is_measured(tiny_dataset, tmp_path):
    folder = tiny_dataset(tmp_path / "d", 3, spacing=SPACING, orientation="PSR", validation=1)
    names, shapes = label_statistics_of_folder(folder)
    assert names == ("class_1", "class_2")
    assert len(shapes) == 3
    assert all(shape.components == (1, 1) for shape in shapes)
    # the balls lie in a row along the first axis of the RAS grid
    assert all(0.15 < shape.centroid[0][0] < 0.35 for shape in shapes)
    again = label_statistics_of_folder(folder, limit=1)[1]
    assert again == shapes[:1]
    assert len(label_statistics_of_folder(folder, split="validation")[1]) == 1


def test_folder_with_a_group_or_without_labels(tiny_dataset, tmp_path):
    folder = tiny_dataset(tmp_path / "d", 2)
    content = load_dataset(folder).content
    content["label_groups"] = {"one": {"1": {"name": "any", "values": [1, 2]}}}
    (folder / "dataset.json").write_text(json.dumps(content))
    names, (merged, _) = label_statistics_of_folder(folder, "one")
    _, (apart, _) = label_statistics_of_folder(folder)
    assert names == ("any",)
    assert merged.volume == (pytest.approx(sum(apart.volume)),)
    del content["training"][1]["label"]
    (folder / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="case_001"):
        label_statistics_of_folder(folder)
