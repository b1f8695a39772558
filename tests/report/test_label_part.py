"""Label statistics of two cohorts: what differs is said to differ, and nothing else."""

from __future__ import annotations

import io
import json
import warnings

import numpy as np
import pytest
from PIL import Image
from tests.report.cohorts import PNG, SIZE, MemoryPairs, cohort

from medpair.report import label_part as module
from medpair.report.label_part import label_part, measure
from medpair.report.pairs import Pair
from medpair.report.sections import differs, label_section

COUNT = 24


@pytest.fixture(scope="module")
def real():
    return cohort(COUNT, 1)


@pytest.fixture
def unplotted(monkeypatch):
    for name in ("plot_measures", "plot_histograms", "plot_adjacency"):
        monkeypatch.setattr(module, name, lambda *_: b"")


def differing(numbers):
    """Return the names of the figures above their floors."""
    found = {
        (row["name"], entry["measure"])
        for row in numbers["classes"]
        for entry in row["measures"]
        if differs(entry["distance"])
    }
    found |= {
        (row["name"], "intensity") for row in numbers["intensity"] if differs(row["distance"])
    }
    return found | ({"neighbours"} if differs(numbers["adjacency"]["distance"]) else set())


def test_cohorts_of_one_distribution(real):
    part = label_part(real, cohort(COUNT, 2))
    # 14 figures, of which chance lets one in twenty differ
    assert len(differing(part.numbers)) <= 2
    assert part.notes == []
    assert json.loads(json.dumps(part.numbers, allow_nan=False)) == part.numbers
    for k, row in enumerate(part.numbers["classes"], start=1):
        assert row["presence_real"] == row["presence_synthetic"] == 1
        sides = {entry["measure"]: entry for entry in row["measures"]}
        assert sides["components"]["real"] == {"n": COUNT, "mean": 1.0, "sd": 0.0}
        volumes = [np.count_nonzero(pair.label == k) / 1000 for pair in real]
        assert sides["volume_ml"]["real"]["mean"] == pytest.approx(np.mean(volumes))
    assert set(part.figures) == {"measures", "intensity", "adjacency"}
    for png in part.figures.values():
        assert png.startswith(PNG)
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("L"))
        assert picture.std() > 10
    again = label_part(real, cohort(COUNT, 2))
    assert again.numbers == part.numbers
    assert again.figures == part.figures


@pytest.mark.usefixtures("unplotted")
def test_exactly_what_was_changed_differs(real):
    # one figure in twenty differs by chance; of this cohort, drawn for it, none does
    def changed(**how):
        return differing(label_part(real, cohort(COUNT, 7, **how)).numbers)

    assert changed() == set()

    brighter = changed(brighter=(0, 40, 0))
    assert brighter == {("two", "intensity")}
    longer = changed(stretch=(1, 2, 1))
    shapes = {("two", "volume_ml"), ("two", "surface_cm2")}
    # more of a longer box's surface looks at the background
    assert shapes <= longer <= shapes | {"neighbours"}
    split = changed(speck=True)
    # the second component has 8 voxels and 24 faces of its own
    pieces = {("one", "components"), ("one", "largest_share")}
    of_speck = {("one", "surface_cm2"), ("one", "slice_overlap"), "neighbours"}
    assert pieces <= split <= pieces | of_speck
    assert changed(order=(2, 1, 3)) == {"neighbours"}


@pytest.mark.usefixtures("unplotted")
def test_slices_of_the_asked_axis_are_compared(real):
    # boxes longer along the first axis overlap more from slice to slice along it alone
    other = cohort(COUNT, 2, stretch=(2, 2, 2))
    for axis, expected in ((0, True), (2, False)):
        part = label_part(real, other, axis)
        rows = {
            r["name"]: {m["measure"]: m for m in r["measures"]} for r in part.numbers["classes"]
        }
        assert differs(rows["one"]["slice_overlap"]["distance"]) is expected
        said = " ".join(row[0] for row in label_section(part.numbers).tables[0].rows)
        assert ("sagittal", "coronal", "axial")[axis] in said


@pytest.mark.usefixtures("unplotted")
def test_too_few_volumes_give_means_and_a_note(real):
    for one, two in ((cohort(3, 1), real), (real, cohort(2, 1)), (cohort(1, 1), cohort(1, 2))):
        part = label_part(one, two)
        assert all(
            entry["distance"] is None
            for row in part.numbers["classes"]
            for entry in row["measures"]
        )
        assert part.numbers["adjacency"]["distance"] is None
        assert f"{len(one)} real and {len(two)} synthetic volumes are too few" in part.notes[0]
        json.dumps(part.numbers, allow_nan=False)
        table = label_section(part.numbers).tables[0]
        assert {row[-1] for row in table.rows if len(row) > 1} == {"too few"}


def test_absent_classes_constant_images_and_long_names():
    names = ("a" * 120, r"cost: 5$ x_1 \frac{$", "neither has <it> & ж")
    rng = np.random.default_rng(0)

    def pairs(count, flat):
        label = np.zeros(SIZE, np.uint8)
        label[4:8, 4:8, 4:8] = 1
        label[8:10, 4:8, 4:8] = 2
        noise = [np.zeros(SIZE) if flat else rng.normal(size=SIZE) for _ in range(count)]
        parts = [Pair("x", image.astype(np.float32), label, (1, 1, 1)) for image in noise]
        return MemoryPairs(parts, names)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part = label_part(pairs(5, False), pairs(5, True))
    assert part.numbers["classes"][2]["presence_real"] == 0
    assert part.numbers["classes"][2]["measures"][0]["real"] == {"n": 0, "mean": None, "sd": None}
    assert part.numbers["classes"][2]["measures"][0]["distance"] is None
    assert part.numbers["intensity"][3]["distance"] is None
    assert part.notes == []
    json.dumps(part.numbers, allow_nan=False)
    label_section(part.numbers)


@pytest.mark.usefixtures("unplotted")
def test_a_class_that_is_never_drawn_differs(real, unplotted):
    """With one kind of box gone there is no shape to compare, and that is the difference."""
    drawn = []
    for index, pair in enumerate(cohort(COUNT, 2)):
        without = np.where(pair.label == 2, 0, pair.label)
        label = np.where(without == 3, 0, without) if index % 2 else without
        drawn.append(Pair(pair.name, pair.image, label, pair.spacing))
    numbers = label_part(real, MemoryPairs(drawn)).numbers
    one, two, three = numbers["classes"]
    assert one["presence_distance"] is None
    assert (two["presence_distance"]["value"], three["presence_distance"]["value"]) == (1.0, 0.5)
    section = label_section(numbers)
    assert "two is in 100 % of the real and 0 % of the synthetic volumes." in section.lead
    assert "three is in 100 % of the real and 50 % of the synthetic volumes." in section.lead
    rows = [row for row in section.tables[0].rows if row[0] == "volumes that have it"]
    assert [(row[1], row[2], row[-1]) for row in rows] == [
        ("100 %", "0 %", "yes"),
        ("100 %", "50 %", "yes"),
    ]


def test_cohorts_of_mixed_spacing_are_noted(real, unplotted):
    mixed = [
        Pair(pair.name, pair.image, pair.label, (1.0, 1.0, 3.0 if index % 4 == 0 else 1.0))
        for index, pair in enumerate(cohort(COUNT, 2))
    ]
    (note,) = label_part(real, MemoryPairs(mixed)).notes
    assert note.startswith("Voxels within the synthetic cohort differ in size")


def test_cohorts_of_other_spacing_are_noted(real):
    coarse = [Pair(p.name, p.image, p.label, (1.0, 1.0, 3.0)) for p in cohort(COUNT, 2)]
    notes = label_part(cohort(4, 1), MemoryPairs(coarse[:4])).notes
    assert len(notes) == 1
    assert "1 x 1 x 1 mm" in notes[0]
    assert "1 x 1 x 3 mm" in notes[0]


def test_a_single_class_has_no_neighbours():
    pairs = cohort(4, 0)
    for pair in pairs:
        np.minimum(pair.label, 1, out=pair.label)
    part = label_part(MemoryPairs(pairs.pairs, ("one",)), MemoryPairs(pairs.pairs, ("one",)))
    assert set(part.figures) == {"measures", "intensity"}
    assert len(label_section(part.numbers).tables) == 2


def test_many_classes_are_drawn_in_part_and_listed_in_full():
    count, size = 20, (20, 6, 6)
    label = np.zeros(size, np.uint8)
    for k in range(count):
        label[k, 2:5, 2:5] = k + 1
    image = np.random.default_rng(0).normal(size=size).astype(np.float32)
    pairs = MemoryPairs(
        [Pair("x", image, label, (1.0, 1.0, 1.0))] * 2, tuple(f"class {k}" for k in range(count))
    )
    part = label_part(pairs, pairs)
    assert len(part.numbers["classes"]) == count
    for png in part.figures.values():
        assert max(Image.open(io.BytesIO(png)).size) < 4000


def test_contacts_are_compared_over_all_pairs_of_classes(real, unplotted):
    other = cohort(COUNT, 2)
    found = label_part(real, other).numbers["adjacency"]["distance"]
    means = [measure(pairs, 2).contacts.mean(axis=0) for pairs in (real, other)]
    plain = 0.5 * np.abs(means[0] - means[1]).sum(axis=1).mean()
    assert found["value"] == pytest.approx(plain, rel=1e-12)
    assert plain > 0


def test_contacts_are_those_of_volumes_that_have_the_class(unplotted):
    """A tumour that lies within the liver, in half of the real and in all synthetic volumes."""

    def pair(name: str, sick: bool, shift: int) -> Pair:
        label = np.zeros((12, 12, 12), np.uint8)
        label[2:10, 2:10, 2 : 9 + shift % 2] = 1
        if sick:
            label[4:6, 4:6, 4 : 6 + shift % 3] = 2
        image = np.random.default_rng(shift).normal(size=label.shape).astype(np.float32)
        return Pair(name, image, label, (1.0, 1.0, 1.0))

    names = ("liver", "tumour")
    real = MemoryPairs([pair(f"r{k}", k < 6, k % 6) for k in range(12)], names)
    synthetic = MemoryPairs([pair(f"s{k}", True, k % 6) for k in range(12)], names)
    found = label_part(real, synthetic).numbers["adjacency"]
    assert found["real"][2] == found["synthetic"][2] == [0.0, 1.0, 0.0]
    assert found["distance"]["value"] < 0.05
    row = measure(real, 2).contacts[:, 2]
    assert row.mean(axis=0).tolist() == [0.0, 0.5, 0.0]
