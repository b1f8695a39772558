"""Copies of every kind raise the alarm, an honest cohort does not."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates, shift

from medpair.data.dataset import entry, write_dataset_json
from medpair.data.files import Volume, write_volume
from medpair.report.pairs import Pair, PairFolder, open_pairs
from medpair.report.privacy import privacy_part
from medpair.report.privacy_figures import only_label
from medpair.report.privacy_section import privacy_section
from medpair.report.privacy_sentences import copy_sentence
from medpair.report.privacy_whole import NEAR, near_limits, whole_copies
from medpair.report.verdict import verdicts

SIZE = (22, 26, 20)
PER_COHORT = 12


def person(seed: int) -> Pair:
    """Someone: an organ of two classes of their own shape in tissue of their own texture."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij"))
    rough = gaussian_filter(rng.normal(size=SIZE), 3)
    texture = gaussian_filter(rng.normal(size=SIZE), 1.5)
    radius = np.linalg.norm(places / rng.uniform(0.55, 0.7, 3)[:, None, None, None], axis=0)
    organ = radius + 0.12 * rough / rough.std() < 1
    label = organ * np.where(places[1] > 0, 2, 1)
    image = 100 + 60 * (label > 0) + 25 * (label > 1) + 15 * texture / texture.std()
    image = image + rng.normal(0, 3, SIZE)
    return Pair(f"p{seed:03d}", image.astype(np.float32), label.astype(np.uint8), (1.0, 1.0, 1.0))


def noisy(pair: Pair, rng: np.random.Generator) -> Pair:
    spread = 0.15 * np.ptp(np.percentile(pair.image, [1, 99]))
    image = pair.image + rng.normal(0, spread, pair.image.shape)
    return replace(pair, image=image.astype(np.float32))


def flipped(pair: Pair, rng: np.random.Generator) -> Pair:
    axis = int(rng.integers(3))
    image, label = (np.flip(part, axis).copy() for part in (pair.image, pair.label))
    return replace(pair, image=image, label=label)


def shifted(pair: Pair, rng: np.random.Generator) -> Pair:
    image = shift(pair.image, (2, -2, 1), order=0, mode="nearest")
    return replace(pair, image=image, label=shift(pair.label, (2, -2, 1), order=0))


def warped(pair: Pair, rng: np.random.Generator) -> Pair:
    """Bend by 0.75 voxels (root mean square, in the label), and check that it did."""
    field = np.stack([gaussian_filter(rng.normal(size=pair.image.shape), 5) for _ in range(3)])
    inside = pair.label > 0
    # a shift alone would be no warp
    field -= field[:, inside].mean(1)[:, None, None, None]
    field *= 0.75 / np.sqrt((field[:, inside] ** 2).sum(0).mean())
    places = np.indices(pair.image.shape) + field
    label = map_coordinates(pair.label, places, order=0, mode="nearest")
    assert (label != pair.label).sum() > 0.05 * inside.sum()
    image = map_coordinates(pair.image, places, order=1, mode="nearest")
    return replace(pair, image=image, label=label)


COPIES: dict[str, Callable[[Pair, np.random.Generator], Pair]] = {
    "exact": lambda pair, rng: pair,
    "noisy": noisy,
    "flipped": flipped,
    "flipped and shifted": lambda pair, rng: shifted(flipped(pair, rng), rng),
    "warped": warped,
}


def written(folder: Path, pairs: Sequence[Pair]) -> PairFolder:
    entries = []
    for number, pair in enumerate(pairs):
        paths = entry(f"case_{number:03d}")
        affine = np.diag([*pair.spacing, 1.0])
        write_volume(folder / paths["image"], Volume(np.rint(pair.image).astype(np.int16), affine))
        write_volume(folder / paths["label"], Volume(pair.label, affine))
        entries.append(paths)
    labels = {"background": 0, "front": 1, "back": 2}
    write_dataset_json(folder, folder.name, labels, {"training": entries})
    return open_pairs(folder)


@pytest.fixture(scope="module")
def people() -> list[Pair]:
    return [person(seed) for seed in range(3 * PER_COHORT)]


@pytest.fixture(scope="module")
def real(people: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> PairFolder:
    return written(tmp_path_factory.mktemp("real"), people[:PER_COHORT])


@pytest.fixture(scope="module")
def holdout(people: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> PairFolder:
    return written(tmp_path_factory.mktemp("holdout"), people[PER_COHORT : 2 * PER_COHORT])


def test_an_honest_cohort_is_quiet(people, real, holdout, tmp_path):
    part = privacy_part(real, written(tmp_path, people[2 * PER_COHORT :]), holdout)
    assert part.numbers["alarm"] is False
    assert part.numbers["reasons"] == []
    assert json.loads(json.dumps(part.numbers, allow_nan=False)) == part.numbers
    for space in ("image", "label"):
        attack = part.numbers["attack"][space]["distance"]
        assert attack["low"] < 0.5 < attack["high"]
    assert all(png.startswith(b"\x89PNG") for png in part.figures.values())
    assert set(part.figures) == {"privacy_distances", "privacy_closest"}


def flags(numbers) -> set[tuple[str, str]]:
    return {
        (row["synthetic"], row["real"])
        for space in ("image", "label")
        for row in numbers["copies"][space]["volumes"]
        if row["flag"]
    }


def test_each_kind_of_copy_is_caught_and_nothing_else(people, real, holdout, tmp_path):
    rng = np.random.default_rng(1)
    honest = people[2 * PER_COHORT : 2 * PER_COHORT + 3]
    copies = [copy(people[1 + index], rng) for index, copy in enumerate(COPIES.values())]
    numbers = privacy_part(real, written(tmp_path, [*honest, *copies]), holdout).numbers
    assert numbers["alarm"] is True
    # the copy of kind k is case 3 + k, and its original case 1 + k
    expected = {(f"case_{3 + k:03d}", f"case_{1 + k:03d}"): kind for k, kind in enumerate(COPIES)}
    assert [kind for pair, kind in expected.items() if pair not in flags(numbers)] == []
    assert flags(numbers) == set(expected)
    closest = {(row["synthetic"], row["real"]) for row in numbers["closest"]}
    assert closest == set(expected)


def test_memorised_cohort_gives_its_members_away(people, real, holdout, tmp_path):
    rng = np.random.default_rng(2)
    copies = [noisy(pair, rng) for pair in people[:PER_COHORT]]
    scores = {"members": np.arange(5.0) + 9, "others": np.arange(6.0)}
    part = privacy_part(real, written(tmp_path, copies), holdout, critic_scores=scores)
    for space in ("image", "label"):
        for entry_of in part.numbers["attack"][space].values():
            assert entry_of["auc"] > 0.95
    assert part.numbers["critic"]["auc"] == 1
    assert any("checkpoint" in note for note in part.notes)
    assert part.numbers["copies"]["image"]["flagged"] == PER_COHORT


def test_repeated_samples_are_duplicates_and_no_alarm(people, real, holdout, tmp_path):
    honest = people[2 * PER_COHORT : 2 * PER_COHORT + 4]
    rng = np.random.default_rng(3)
    numbers = privacy_part(
        real, written(tmp_path, [*honest, noisy(honest[1], rng)]), holdout
    ).numbers
    assert numbers["duplicates"]["image"]["groups"] == [["case_001", "case_004"]]
    assert numbers["alarm"] is False


def test_what_cannot_be_said_is_said(people, real, holdout, tmp_path):
    few = written(tmp_path / "few", people[:4])
    part = privacy_part(few, holdout, None)
    assert part.numbers["alarm"] is None
    assert "fewer than 5" in part.notes[0]
    part = privacy_part(real, written(tmp_path / "one", people[-5:-1]), None)
    assert part.numbers["attack"] == {}
    assert "below_first_percentile" not in part.numbers["distances"]["image"]
    assert any("held-out" in note for note in part.notes)


def test_volumes_that_were_not_compared_are_said(people, real, holdout, tmp_path):
    """A copy of a case that was not drawn goes unseen, so quiet is no green light."""
    drawn = open_pairs(real.folder.root, limit=6)
    absent = next(pair for pair in real if pair.name not in {one.name for one in drawn})
    synthetic = written(tmp_path, [*people[2 * PER_COHORT :], absent])
    whole = privacy_part(real, synthetic, holdout).numbers
    assert whole["alarm"] is True
    assert not any("were compared" in sentence for sentence in whole["weak"])
    numbers = privacy_part(drawn, synthetic, holdout).numbers
    assert numbers["alarm"] is False
    assert numbers["weak"][0].startswith(
        f"Only 6 of {len(real)} training volumes were compared; a copy"
    )
    verdict = verdicts({"privacy": numbers})[3]
    assert (verdict.mark, verdict.answer) == ("warn", "no alarm, little seen")


def test_embedding_and_its_distances(people, real, holdout, tmp_path):
    def embed(pairs: PairFolder) -> np.ndarray:
        return np.array([[pair.image.mean(), pair.image.std(), 1.0] for pair in pairs])

    part = privacy_part(real, written(tmp_path, [people[7]]), holdout, embed=embed)
    assert part.numbers["embedding"]["nearest"] == [7]
    assert part.numbers["embedding"]["synthetic"]["min"] == pytest.approx(0, abs=1e-6)


def test_pictures_hide_what_is_far_from_the_label():
    """Further than 6 mm, whatever the voxels' sizes."""
    pair = replace(person(1), spacing=(2.0, 1.5, 4.0))
    image, label = only_label(pair)
    far = np.ones(label.shape, bool)
    spacing = np.reshape(pair.spacing, (3, 1, 1, 1))
    for place in np.argwhere(label > 0):
        away = (np.indices(label.shape) - place[:, None, None, None]) * spacing
        far &= np.sqrt((away**2).sum(0)) > 6.0
    assert far.any()
    assert len(np.unique(image[far])) == 1
    assert np.array_equal(image[label > 0], pair.image[pair.label > 0])


@pytest.mark.skipif(
    "MEDPAIR_DATA" not in os.environ, reason="MEDPAIR_DATA names no folder of real volumes"
)
def test_honest_hippocampi_are_quiet_and_copies_are_not(tmp_path):
    root = Path(os.environ["MEDPAIR_DATA"]) / "hippocampus_mr"
    everyone = open_pairs(root)
    order = np.random.default_rng(0).permutation(len(everyone)).tolist()
    real, holdout, honest = (
        replace(everyone, cases=tuple(everyone.cases[index] for index in part))
        for part in (order[:40], order[40:60], order[60:70])
    )
    assert privacy_part(real, honest, holdout).numbers["alarm"] is False
    rng = np.random.default_rng(1)
    kinds = ("exact", "noisy", "flipped", "warped")
    copies = [COPIES[kind](real[index], rng) for index, kind in enumerate(kinds)]
    # every volume on its own scale, as the files are
    copies = [replace(c, image=(500 * (c.unit() + 1)).astype(np.float32)) for c in copies]
    numbers = privacy_part(real, written(tmp_path, copies), holdout).numbers
    caught = flags(numbers)
    missed = [
        kind
        for index, kind in enumerate(kinds)
        if (f"case_{index:03d}", real[index].name) not in caught
    ]
    assert missed == []


@pytest.mark.parametrize("count", [5, 8])
def test_copied_images_of_few_volumes_are_caught_whatever_their_labels(people, tmp_path, count):
    """Too few real volumes for a limit of isolation: the image as a whole still tells."""
    real = written(tmp_path / "real", people[:count])
    held = written(tmp_path / "held", people[2 * count : 2 * count + 3])
    labels = people[count : 2 * count]
    mixed = [
        replace(noisy(copied, np.random.default_rng(k)), label=other.label)
        for k, (copied, other) in enumerate(zip(people[:count], labels, strict=True))
    ]
    copies = privacy_part(real, written(tmp_path / "copies", mixed), held).numbers
    assert copies["alarm"] is True
    assert copies["whole"]["flagged"] == count
    assert any("training images as a whole" in reason for reason in copies["reasons"])
    honest = privacy_part(real, written(tmp_path / "honest", labels), held).numbers
    assert honest["alarm"] is False
    assert honest["whole"]["flagged"] == 0
    # and what a quiet report of so few volumes does not say is said
    assert any("3 unseen cases" in sentence for sentence in honest["weak"])
    section = privacy_section(honest)
    assert not any("always" in note for note in section.notes) or (
        honest["copies"]["image"]["limit"]["ratio"] >= 0.15
    )
    assert set(honest["weak"]) <= set(section.lead)


def test_exact_copies_of_few_volumes_are_caught_by_their_images(people, tmp_path):
    real = written(tmp_path / "real", people[:6])
    numbers = privacy_part(real, written(tmp_path / "copies", people[:6]), None).numbers
    assert numbers["alarm"] is True
    for space in ("image", "label"):
        assert numbers["copies"][space]["flagged"] == 6


def without_label(pair: Pair) -> Pair:
    return replace(pair, label=np.zeros_like(pair.label))


def test_label_maps_of_nothing_are_no_copies_of_each_other(people, holdout, tmp_path):
    healthy = [without_label(pair) for pair in people[:3]]
    real = written(tmp_path / "real", [*healthy, *people[3:10]])
    drawn = [without_label(pair) for pair in people[-6:-4]]
    part = privacy_part(real, written(tmp_path / "drawn", [*drawn, *people[-4:]]), holdout)
    assert part.numbers["reasons"] == []
    assert part.numbers["copies"]["label"]["flagged"] == 0
    assert any("3 training, 2 synthetic of that kind" in note for note in part.notes)
    # nor do they hide a copy
    copied = written(tmp_path / "copied", [*drawn, people[5], *people[-3:]])
    assert ("case_002", "case_005") in flags(privacy_part(real, copied, holdout).numbers)


def test_many_label_maps_of_nothing_make_no_copies_of_the_others(people, holdout, tmp_path):
    healthy = [without_label(pair) for pair in (*people[:6], *people[24:26])]
    real = written(tmp_path / "real", [*healthy, *people[6:12]])
    part = privacy_part(real, written(tmp_path / "drawn", people[-6:]), holdout)
    assert part.numbers["reasons"] == []
    assert part.numbers["copies"]["label"]["limit"]["reference"] == 6 + len(holdout)
    copied = written(tmp_path / "copied", [healthy[2], *people[-5:], people[9]])
    numbers = privacy_part(real, copied, holdout).numbers
    assert {("case_000", "case_002"), ("case_006", "case_011")} <= flags(numbers)
    assert [row["synthetic"] for row in numbers["copies"]["label"]["volumes"]] == [
        f"case_{number:03d}" for number in range(1, 7)
    ]
    # with hardly any, labels are not judged, and that is said
    few = written(tmp_path / "few", [*map(without_label, people[:9]), *people[24:28]])
    part = privacy_part(few, written(tmp_path / "more", people[-6:]), holdout)
    assert list(part.numbers["copies"]) == list(part.numbers["attack"]) == ["image"]
    assert any("Label maps were not compared" in sentence for sentence in part.numbers["weak"])
    privacy_section(part.numbers)


def test_how_near_is_too_near_is_learned_where_a_volume_lies():
    among = np.array([[0.5, 0.6, 0.7, 0.8, 0.9, 2.0], [0.01, 0.02, 0.1, 0.2, 0.3, 0.4]])
    assert near_limits(0.4, among) == pytest.approx([NEAR * 0.4, NEAR * 0.1])


def test_relatives_among_strangers_are_no_copies(people, tmp_path):
    """Half of the images are of one kind: nearer to each other than strangers usually are."""

    def relative(seed: int) -> Pair:
        texture = gaussian_filter(np.random.default_rng(seed).normal(size=SIZE), 1.5)
        image = people[0].image + 6 * texture / texture.std()
        return replace(people[0], image=image.astype(np.float32))

    real = written(tmp_path / "real", [*people[1:10], *map(relative, range(8))])
    drawn = written(tmp_path / "drawn", [*people[10:13], *map(relative, range(50, 58))])
    found = whole_copies(real, drawn, None)
    distances = [row["distance"] for row in whole_copies(real, real, None)["volumes"]]
    assert max(distances) < 1e-6
    assert found["flagged"] == 0
    # and their copies are
    copies = written(tmp_path / "copies", [relative(k) for k in range(8)])
    assert whole_copies(real, copies, None)["flagged"] == 8


def test_an_alarm_says_by_which_rule(people):
    row = {"synthetic": "s", "real": "r", "flag": True, "isolation": 0.3, "share_of_usual": 0.125}
    copies = {"volumes": [row], "limit": {"ratio": 0.08}}
    assert copy_sentence("image", copies, 9).endswith(
        "s is 0.12 times as far from r as real volumes usually are from their nearest (limit 0.25)."
    )
    copies["limit"]["ratio"] = 0.35
    assert copy_sentence("image", copies, 9).endswith(
        "s is 0.30 times as far from r as from its next neighbours (limit 0.35)."
    )


def test_training_volumes_that_are_listed_twice_hide_no_copy(people, tmp_path):
    rng = np.random.default_rng(4)
    real = written(tmp_path / "real", [*people[:6], *people[:6]])
    copies = [noisy(pair, rng) for pair in people[:6]]
    part = privacy_part(real, written(tmp_path / "copies", copies), None)
    assert part.numbers["copies"]["image"]["flagged"] == 6
    assert any(note.startswith("6 of 12 training volumes are there twice") for note in part.notes)
    alone = privacy_part(
        written(tmp_path / "once", people[:6]), written(tmp_path / "same", copies), None
    )
    assert part.numbers["copies"] == alone.numbers["copies"]
    twins = written(tmp_path / "twins", [people[0]] * 4 + [people[1]] * 4)
    few = privacy_part(twins, written(tmp_path / "other", copies), None)
    assert few.numbers["alarm"] is None
    assert "leaves 2 real volumes" in few.notes[-1]


def test_distances_of_equal_volumes_are_not_negative(people, tmp_path):
    real = written(tmp_path / "real", people[:6])
    numbers = privacy_part(real, real, None).numbers
    for space in ("image", "label"):
        assert min(row["distance"] for row in numbers["copies"][space]["volumes"]) >= 0
    assert min(row["distance"] for row in numbers["whole"]["volumes"]) >= 0


def test_attacks_that_were_not_made_are_not_said_to_have_failed(people, real, tmp_path):
    one = written(tmp_path / "one", people[PER_COHORT : PER_COHORT + 1])
    scores = {"members": np.arange(12.0), "others": np.arange(1.0)}
    honest = written(tmp_path / "honest", people[-4:])
    part = privacy_part(real, honest, one, critic_scores=scores)
    assert "critic" not in part.numbers
    assert any("critic's score needs two" in note for note in part.notes)
    assert "With 1 unseen cases" in part.numbers["weak"][-1]
    assert "attack told" not in privacy_section(part.numbers).lead[0]
    many = written(tmp_path / "many", [*people[PER_COHORT:]])
    numbers = privacy_part(real, honest, many).numbers
    assert "no attack told" in privacy_section(numbers).lead[0]
    assert "With 12 training volumes a membership attack" in numbers["weak"][-1]
