"""What has no label in all three stages: divided in training, generated, drawn, left out again."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, Volume, read_json, read_volume, write_volume
from medpair.data.labels import LabelMap
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import SMALL_MCDPM, SMALL_REFINER, SMALL_VID2VID, run, volumes
from tests.conftest import tiny_dataset

LABELS, IMAGES, REFINER = "medgen3d_mcdpm", "medgen3d_vid2vid", "medgen3d_semantic_refiner"
STAGES = {
    LABELS: {**SMALL_MCDPM, "size_conditioning": True},
    IMAGES: {**SMALL_VID2VID, "contrast_conditioning": True, "unlabelled_dropout": 0.5},
    REFINER: SMALL_REFINER,
}
PLAIN = ["background", "class_1", "class_2"]
DIVIDED = [*PLAIN, "unlabelled_1", "unlabelled_2"]


@pytest.fixture(scope="session")
def models(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of all stages, trained with the background divided."""
    root = tmp_path_factory.mktemp("unlabelled")
    for bundle, small in STAGES.items():
        knobs = {**small, "max_epochs": 1, "unlabelled_classes": 2}
        run(bundle, ["train"], dataset_dir=dataset, output_dir=str(root / bundle), **knobs)
    return root


@pytest.fixture(scope="session")
def chain(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``labels``, ``images`` and ``pairs`` of two samples."""
    root = tmp_path_factory.mktemp("chain")
    infer(models, LABELS, root / "labels", num_samples=2, steps=2)
    infer(models, IMAGES, root / "images", dataset_dir=str(root / "labels"))
    infer(models, REFINER, root / "pairs", dataset_dir=str(root / "images"), refine_steps=1)
    return root


def infer(models: Path, bundle: str, output: Path, **knobs: Any) -> Path:
    weights = str(models / bundle / "model.pt")
    run(bundle, ["inference"], "infer", ckpt_path=weights, output_dir=str(output), **knobs)
    return output


def classes(folder: Path) -> list[str]:
    return list(LabelMap.from_dataset_json(read_json(folder / "dataset.json")).names)


def alone(dataset: str, folder: Path) -> Path:
    """Copy the label maps of a dataset, without images."""
    content = read_json(Path(dataset) / "dataset.json")
    for split in ("training", "validation"):
        content[split] = [{"label": case["label"]} for case in content[split]]
    folder.mkdir()
    for path in Path(dataset).glob("labels*"):
        shutil.copytree(path, folder / path.name)
    (folder / "dataset.json").write_text(json.dumps({**content, "channel_names": {}}))
    return folder


def test_cards_and_checkpoints_know_the_classes(models: Path) -> None:
    cohorts = [read_json(models / bundle / "model.json")["cohort"] for bundle in STAGES]
    assert all(cohort["labels"] == DIVIDED for cohort in cohorts)
    # every stage finds the same thresholds by itself
    assert len(cohorts[0]["unlabelled"]) == 2
    assert cohorts[1]["unlabelled"] == cohorts[2]["unlabelled"] == cohorts[0]["unlabelled"]
    assert read_json(models / LABELS / "model.json")["size_traits"]["names"] == PLAIN[1:]
    assert read_json(models / IMAGES / "model.json")["contrast_traits"]["names"] == PLAIN[1:]


def test_pairs_have_the_labels_of_the_cohort_alone(chain: Path) -> None:
    assert classes(chain / "labels") == classes(chain / "images") == DIVIDED
    assert classes(chain / "pairs") == PLAIN
    assert errors_of(check_dataset(chain / "pairs")) == []
    drawn, kept = volumes(chain / "pairs" / "labelsTr"), volumes(chain / "images" / "labelsTr")
    assert max(label.max() for label in kept.values()) > 2
    for name, label in drawn.items():
        np.testing.assert_array_equal(label, np.where(kept[name] > 2, 0, kept[name]))


def test_the_second_stage_can_be_the_last(models: Path, chain: Path, tmp_path: Path) -> None:
    source = str(chain / "labels")
    out = infer(models, IMAGES, tmp_path / "out", dataset_dir=source, keep_unlabelled=False)
    assert classes(out) == PLAIN
    # the same images, of which only the labels say less
    one, other = (volumes(folder / "imagesTr") for folder in (out, chain / "images"))
    for name, image in one.items():
        np.testing.assert_array_equal(image, other[name])
    with pytest.raises(RuntimeError) as caught:
        infer(models, IMAGES, tmp_path / "out", dataset_dir=source)
    assert "keep_unlabelled: False there, True now" in str(first_data_error(caught.value))


def test_real_label_maps_are_divided_as_their_images_say(
    models: Path, dataset: str, tmp_path: Path
) -> None:
    out = infer(models, IMAGES, tmp_path / "out", dataset_dir=dataset)
    assert classes(out) == DIVIDED
    found, cases = load_dataset(out).split("training"), load_dataset(dataset).split("training")
    for made, case in zip(found, cases, strict=True):
        label, before = (
            read_volume(path or "", np.int64).array for path in (made.label, case.label)
        )
        np.testing.assert_array_equal(np.where(label > 2, 0, label), before)
        assert {3, 4} & {*np.unique(label)}
        hashes = read_json(out / "provenance" / f"{made.name}.json")["input_sha256"]
        assert set(hashes) == {"label", "image"}  # another image would be other tissue


def test_label_maps_alone_will_do(
    models: Path, dataset: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maps = alone(dataset, tmp_path / "maps")
    with caplog.at_level(logging.WARNING):
        out = infer(models, IMAGES, tmp_path / "out", dataset_dir=str(maps))
    said = [r.getMessage() for r in caplog.records if "without unlabelled_1" in r.getMessage()]
    assert said == [
        f"{maps}: no images, and labels without unlabelled_1 and unlabelled_2: "
        "what has no label is drawn without shape"
    ]
    assert max(label.max() for label in volumes(out / "labelsTr").values()) == 2


def test_generated_label_maps_are_compared_class_by_class(
    models: Path, dataset: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    knobs = {"ckpt_path": str(models / LABELS / "model.pt"), "num_samples": 2, "steps": 2}
    given = {**knobs, "dataset_dir": dataset, "output_dir": str(out)}
    run(LABELS, ["inference", "evaluate"], "infer", **given)
    rows = read_json(out / "label_statistics.json")["classes"]
    assert {row["name"] for row in rows} == {*DIVIDED[1:]}


def test_fine_tuning_divides_as_the_weights_were(
    models: Path, dataset: str, tmp_path: Path
) -> None:
    for bundle in STAGES:
        run(
            bundle,
            ["train", "finetune"],
            ckpt_path=str(models / bundle / "model.pt"),
            dataset_dir=dataset,
            output_dir=str(tmp_path / bundle),
            max_epochs=1,
            iterations_per_epoch=1,
            batch_size=2,
        )
        assert read_json(tmp_path / bundle / "model.json")["cohort"]["labels"] == DIVIDED


def chain_of(error: BaseException | None) -> str:
    """Return what an error and its causes say; MONAI wraps what a component raises."""
    said = []
    while error is not None:
        said.append(str(error))
        error = error.__cause__ or error.__context__
    return "\n".join(said)


def stripped(folder: Path) -> Path:
    """Return a cohort of which nothing is seen but what has a label."""
    tiny_dataset(folder, count=3)
    for case in load_dataset(folder).split("training"):
        assert case.image is not None
        assert case.label is not None
        image, label = read_volume(case.image), read_volume(case.label)
        inside = np.where(label.array > 0, image.array, 0)
        write_volume(case.image, Volume(inside, image.affine, image.orientation))
    return folder


@pytest.mark.parametrize("bundle", STAGES)
def test_fine_tuning_goes_on_undivided_unless_it_was_told_to_divide(
    bundle: str, models: Path, tmp_path: Path
) -> None:
    knobs = {
        "ckpt_path": str(models / bundle / "model.pt"),
        "dataset_dir": str(stripped(tmp_path / "cohort")),
        "max_epochs": 1,
        "iterations_per_epoch": 1,
        "batch_size": 2,
    }
    run(bundle, ["train", "finetune"], output_dir=str(tmp_path / "tuned"), **knobs)
    assert read_json(tmp_path / "tuned" / "model.json")["cohort"]["labels"] == PLAIN
    told = {**knobs, "unlabelled_classes": 1, "output_dir": str(tmp_path / "told")}
    with pytest.raises((ValueError, RuntimeError)) as caught:
        run(bundle, ["train", "finetune"], **told)
    expected = "unlabelled_classes: expected a background of more than 1 intens"
    assert expected in chain_of(caught.value)


def test_a_run_goes_on_only_as_it_was_divided(models: Path, dataset: str) -> None:
    for bundle, small in STAGES.items():
        knobs = {**small, "max_epochs": 2, "unlabelled_classes": 1}
        with pytest.raises((DataError, RuntimeError)) as caught:
            run(bundle, ["train"], dataset_dir=dataset, output_dir=str(models / bundle), **knobs)
        assert "unlabelled: [" in str(first_data_error(caught.value))
