"""Classes of what has no label: thresholds, the division, and what the cohort remembers of it."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.conftest import tiny_dataset

from medpair.data.cohort import Cohort, cohort_of, read_card, read_cohort
from medpair.data.dataset import entry, load_dataset, write_dataset_json
from medpair.data.deform import Deformation, deformed_copies
from medpair.data.files import DataError, Volume, read_json, read_volume, write_json, write_volume
from medpair.data.slice_pairs import FramedPairs
from medpair.data.traits import contrast_traits, size_scores, size_traits
from medpair.data.unlabelled import divided, find_thresholds, joined

SIZE = (24, 20, 16)


def slabs(noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return an image of air, muscle and fat side by side with an organ within, and its label."""
    image = np.full(SIZE, -1.0, np.float32)
    image[8:16], image[16:] = -0.1, 0.7
    label = np.zeros(SIZE, np.uint8)
    label[10:14, 8:12, 6:10] = 1
    image[label > 0] = 0.3
    rng = np.random.default_rng(seed)
    return np.clip(image + rng.normal(0, noise, SIZE).astype(np.float32), -1, 1), label


def test_thresholds_lie_between_tissues_of_noisy_images() -> None:
    cohort = [slabs(0.1, seed) for seed in range(3)]
    low, high = find_thresholds(cohort, 2)
    assert -0.9 < low < -0.2
    assert 0.0 < high < 0.6


def test_one_class_is_otsus_threshold() -> None:
    """Of two intensities in equal numbers any value between them is Otsu's."""
    image = np.full(SIZE, -0.8, np.float32)
    image[12:] = 0.4
    (threshold,) = find_thresholds([(image, np.zeros(SIZE, np.uint8))], 1)
    assert -0.8 < threshold < 0.4


def test_what_has_a_label_does_not_move_the_thresholds() -> None:
    image, label = slabs()
    other = image.copy()
    other[label > 0] = 1.0
    assert find_thresholds([(image, label)], 2) == find_thresholds([(other, label)], 2)


def test_tissues_get_classes_and_labels_stay() -> None:
    image, label = slabs(0.05)
    result = divided(image, label, (-0.5, 0.3), 2)
    np.testing.assert_array_equal(result[label > 0], label[label > 0])
    assert (result[:6] == 0).all()
    assert (result[18:] == 3).all()
    assert (result[10:14][label[10:14] == 0] == 2).all()  # the organ does not shine into muscle
    np.testing.assert_array_equal(joined(result, 1), label)
    assert divided(image, label, (), 2) is label


def test_an_organ_without_surroundings_gets_no_rim() -> None:
    image, label = slabs()
    alone = np.where(label > 0, image, -1.0)
    np.testing.assert_array_equal(divided(alone, label, (-0.9,), 2), label)


def test_many_classes_need_more_than_a_byte() -> None:
    image, label = slabs()
    assert divided(image, label, (0.0,), 255).dtype == np.uint8
    result = divided(image, label, (0.0, 0.5), 255)
    assert result.dtype == np.uint16
    assert result.max() == 256


def test_a_background_of_one_intensity_cannot_be_divided() -> None:
    with pytest.raises(ValueError, match=r"more than 2 intensities to be divided, found 1"):
        find_thresholds([(np.full(SIZE, -1.0), np.zeros(SIZE, np.uint8))], 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_dataset(tmp_path / "set", size=SIZE)


def test_brains_without_skulls_are_left_as_they_are_where_that_will_do(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Fine-tuning takes the number of classes from the weights, whatever the new cohort shows."""
    for case in load_dataset(folder).split("training"):
        assert case.image is not None
        assert case.label is not None
        image, label = read_volume(case.image), read_volume(case.label)
        stripped = np.where(label.array > 0, image.array, 0)
        write_volume(case.image, Volume(stripped, image.affine, image.orientation))
    with pytest.raises(ValueError, match="unlabelled_classes: expected a background of more"):
        read_cohort(folder, unlabelled_classes=2)
    with caplog.at_level(logging.WARNING):
        cohort, volumes = read_cohort(folder, unlabelled_classes=2, divide_if_possible=True)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith(f"{folder}: not divided, goes on without these classes: unlabelled_")
    plain, before = read_cohort(folder)
    assert cohort == plain
    for one, other in zip(before, volumes, strict=True):
        np.testing.assert_array_equal(one.label, other.label)


def test_a_cohort_remembers_how_it_was_divided(folder: Path) -> None:
    plain, before = read_cohort(folder)
    cohort, volumes = read_cohort(folder, unlabelled_classes=2)
    assert cohort.labels == (*plain.labels, "unlabelled_1", "unlabelled_2")
    assert cohort.labelled == plain
    assert Cohort.from_json(cohort.to_json()) == cohort
    assert "unlabelled" not in plain.to_json()  # older versions read such cards
    for one, other in zip(before, volumes, strict=True):
        np.testing.assert_array_equal(joined(other.label, plain.num_labels), one.label)
        np.testing.assert_array_equal(cohort.divide(one.image, one.label), other.label)
    assert max(volume.label.max() for volume in volumes) == cohort.num_labels


def test_another_split_is_divided_at_the_same_intensities(folder: Path) -> None:
    cohort, _ = read_cohort(folder, unlabelled_classes=2)
    again, _ = read_cohort(folder, split="validation", unlabelled=cohort.unlabelled)
    assert again.unlabelled == cohort.unlabelled
    assert again.labels == cohort.labels


@pytest.mark.parametrize("wrong", [[0.3, 0.1], [0.1, 0.1], [0.0, 0.1, 0.2], ["dark"], 3])
def test_a_card_that_cannot_be_is_refused(folder: Path, tmp_path: Path, wrong: object) -> None:
    cohort, _ = read_cohort(folder)
    path = tmp_path / "model.json"
    write_json(path, {"cohort": {**cohort.to_json(), "unlabelled": wrong}})
    torch.save({}, tmp_path / "model.pt")
    with pytest.raises(DataError, match=r"model.json: cohort: "):
        cohort_of(read_card(tmp_path / "model.pt"))


@pytest.mark.parametrize("count", [-1, 5, 1.5, True, "2"])
def test_what_is_no_number_of_classes_is_refused(folder: Path, count: object) -> None:
    with pytest.raises(ValueError, match="unlabelled_classes: expected a whole number from 0 to 4"):
        read_cohort(folder, unlabelled_classes=count)  # type: ignore[arg-type]


def test_a_label_of_that_name_is_refused(folder: Path) -> None:
    path = folder / "dataset.json"
    content = read_json(path)
    content["labels"] = {"background": 0, "unlabelled_1": 1, "class_2": 2}
    write_json(path, content)
    with pytest.raises(DataError, match=r"dataset.json: labels: .*found \['unlabelled_1'\]"):
        read_cohort(folder, unlabelled_classes=1)


def test_sizes_and_brightness_of_what_has_no_label_are_not_told(folder: Path) -> None:
    """A head's size, jaw and all, would name the patient."""
    plain, before = read_cohort(folder)
    cohort, volumes = read_cohort(folder, unlabelled_classes=2)
    assert size_traits(volumes, cohort) == size_traits(before, plain)
    assert contrast_traits(volumes, cohort) == contrast_traits(before, plain)
    traits = size_traits(volumes, cohort)
    scores, expected = size_scores(volumes, cohort, traits), size_scores(before, plain, traits)
    assert scores is not None
    np.testing.assert_array_equal(scores, expected)


def test_deformed_copies_are_divided_as_their_images_say(folder: Path) -> None:
    cohort, _ = read_cohort(folder, unlabelled_classes=2)
    copies = deformed_copies(folder, None, cohort, Deformation(copies=1))
    plain = deformed_copies(folder, None, cohort.labelled, Deformation(copies=1))
    for copy, bare in zip(copies, plain, strict=True):
        np.testing.assert_array_equal(copy.image, bare.image)
        np.testing.assert_array_equal(copy.label, cohort.divide(bare.image, bare.label))
        assert copy.label.max() == cohort.num_labels


def test_withheld_classes_are_background_in_that_share_of_draws(folder: Path) -> None:
    cohort, volumes = read_cohort(folder, unlabelled_classes=2)

    def shares(withheld: float, count: int) -> float:
        pairs = FramedPairs(volumes, SIZE, (), cohort, withheld)
        rng = np.random.default_rng(0)
        labels = [pairs.draw(rng, 0)[0][1] for _ in range(count)]
        return float(np.mean([label.max() <= cohort.labelled.num_labels for label in labels]))

    assert shares(0.0, 5) == 0.0
    assert shares(1.0, 5) == 1.0
    assert 0.15 < shares(0.3, 200) < 0.45
    with pytest.raises(ValueError, match="unlabelled_dropout: expected a share of 0 to 1"):
        FramedPairs(volumes, SIZE, (), cohort, 1.5)


def test_without_such_classes_nothing_is_drawn_otherwise(folder: Path) -> None:
    """Trainings of earlier versions go on with the same items."""
    cohort, volumes = read_cohort(folder)
    one, other = (FramedPairs(volumes, SIZE, (0,), c, w) for c, w in ((None, 0.0), (cohort, 0.9)))
    for seed in range(5):
        drawn = [p.draw(np.random.default_rng(seed), 1)[0] for p in (one, other)]
        for first, second in zip(*drawn, strict=True):
            np.testing.assert_array_equal(first, second)


def test_ct_is_divided_at_the_same_numbers_in_every_volume(tmp_path: Path) -> None:
    """A bright implant in one volume changes its own range, but no CT number of its tissues."""
    organ = slabs()[1]
    tissue = np.full(SIZE, -1000.0)
    tissue[8:16], tissue[16:] = -100.0, 50.0
    implant = tissue.copy()
    implant[18:, :4] = 3000.0
    for name, image in (("case_a", tissue), ("case_b", tissue), ("case_c", implant)):
        paths = entry(name)
        write_volume(tmp_path / paths["image"], Volume(image.astype(np.int16), np.eye(4)))
        write_volume(tmp_path / paths["label"], Volume(organ, np.eye(4)))
    cases = {"training": [entry(f"case_{letter}") for letter in "abc"]}
    labels = {"background": 0, "organ": 1}

    def classes(channel: str) -> list[np.ndarray]:
        write_dataset_json(tmp_path, "chest", labels, cases, {"0": channel})
        _, volumes = read_cohort(tmp_path, unlabelled_classes=2)
        return [volume.label[:16] for volume in volumes]  # away from the implant

    plain, _, bright = classes("CT")
    np.testing.assert_array_equal(plain, bright)
    assert (plain[:7] == 0).all()
    assert (plain[9:15][organ[9:15] == 0] == 2).all()
    plain, _, bright = classes("MRI")  # each volume on its own range
    assert (plain != bright).any()
