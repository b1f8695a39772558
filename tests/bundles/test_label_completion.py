"""What has no label, generated around label maps that are given."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medpair.chain_completion import lacks_unlabelled
from medpair.data.check import check_dataset
from medpair.data.dataset import load_dataset
from medpair.data.faults import errors_of
from medpair.data.files import DataError, read_json, read_volume, write_json
from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import SMALL_MCDPM, SMALL_VID2VID, assert_same_run, run, volumes
from tests.bundles.test_unlabelled_classes import DIVIDED, PLAIN, alone, chain_of, classes

LABELS, IMAGES = "medgen3d_mcdpm", "medgen3d_vid2vid"
SMALL = {**SMALL_MCDPM, "unlabelled_classes": 2}


def train(dataset: str, folder: Path, **knobs: Any) -> Path:
    given = {**SMALL, "dataset_dir": dataset, "output_dir": str(folder), **knobs}
    run(LABELS, ["train", "completion"], **given)
    return folder / "model.pt"


def complete(weights: Path, source: Path | str, output: Path, **knobs: Any) -> Path:
    given = {"ckpt_path": str(weights), "dataset_dir": str(source), "output_dir": str(output)}
    run(LABELS, ["inference", "complete"], "infer", **{"steps": 2, **given, **knobs})
    return output


@pytest.fixture(scope="session")
def weights(dataset: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(dataset, tmp_path_factory.mktemp("completion") / "run", max_epochs=1)


@pytest.fixture
def maps(dataset: str, tmp_path: Path) -> Path:
    return alone(dataset, tmp_path / "maps")


def test_every_labelled_voxel_stays_and_the_rest_gets_classes(
    weights: Path, maps: Path, tmp_path: Path
) -> None:
    out = complete(weights, maps, tmp_path / "out")
    assert classes(out) == DIVIDED
    assert errors_of(check_dataset(out)) == []
    made, given = (load_dataset(f, images=False).split("training") for f in (out, maps))
    # under their names, on their grids, in their orientation
    assert [case.name for case in made] == [case.name for case in given]
    seen = set()
    for one, other in zip(made, given, strict=True):
        label, before = (read_volume(case.label or "", np.int64) for case in (one, other))
        assert label.orientation == before.orientation
        np.testing.assert_allclose(label.affine, before.affine, atol=1e-5)
        labelled = before.array > 0
        np.testing.assert_array_equal(label.array[labelled], before.array[labelled])
        around = {*np.unique(label.array[~labelled])}
        assert around <= {0, 3, 4}
        seen |= around
    assert {3, 4} & seen
    record = read_json(out / "provenance" / f"{made[0].name}.json")
    assert record["generator"] == "medgen3d_mcdpm_completion"
    assert set(record["input_sha256"]) == {"label"}


def test_a_case_depends_on_itself_alone(weights: Path, maps: Path, tmp_path: Path) -> None:
    whole = volumes(complete(weights, maps, tmp_path / "whole", batch_size=3) / "labelsTr")
    parts = tmp_path / "parts"
    complete(weights, maps, parts, num_samples=1, start_index=2)
    complete(weights, maps, parts)  # goes on with the others
    found = volumes(parts / "labelsTr")
    assert found.keys() == whole.keys()
    for name, label in whole.items():
        np.testing.assert_array_equal(found[name], label)
    other = volumes(complete(weights, maps, tmp_path / "seed", seed=1) / "labelsTr")
    assert any((other[name] != label).any() for name, label in whole.items())


def test_images_beside_label_maps_are_not_looked_at(
    weights: Path, dataset: str, maps: Path, tmp_path: Path
) -> None:
    """Around a patient's own label map lies another patient's neck."""
    ours = volumes(complete(weights, dataset, tmp_path / "pairs", num_samples=1) / "labelsTr")
    assert len(ours) == 1
    alone_ = volumes(complete(weights, maps, tmp_path / "alone", num_samples=1) / "labelsTr")
    for name, label in ours.items():
        np.testing.assert_array_equal(alone_[name], label)


def test_larger_label_maps_get_a_larger_frame(weights: Path, maps: Path, tmp_path: Path) -> None:
    import nibabel as nib

    case = load_dataset(maps, images=False).split("training")[0]
    assert case.label is not None
    image = nib.load(case.label)
    array = np.pad(np.asanyarray(image.dataobj), ((9, 9), (9, 0), (0, 11)))
    nib.save(nib.Nifti1Image(array, image.affine), case.label)
    out = complete(weights, maps, tmp_path / "out", num_samples=1)
    made = load_dataset(out, images=False).split("training")[0]
    label = np.asanyarray(nib.load(made.label or "").dataobj)
    np.testing.assert_array_equal(label[array > 0], array[array > 0])


def test_the_second_stage_draws_to_them_without_a_word(
    weights: Path, dataset: str, maps: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = complete(weights, maps, tmp_path / "out", num_samples=1)
    images = tmp_path / "images"
    knobs = {**SMALL_VID2VID, "max_epochs": 1, "unlabelled_classes": 2}
    run(IMAGES, ["train"], dataset_dir=dataset, output_dir=str(images), **knobs)
    drawn = {"ckpt_path": str(images / "model.pt"), "keep_unlabelled": False}
    with caplog.at_level(logging.WARNING):
        pairs = tmp_path / "pairs"
        run(IMAGES, ["inference"], "infer", dataset_dir=str(out), output_dir=str(pairs), **drawn)
    assert not [r for r in caplog.records if "drawn without shape" in r.getMessage()]
    assert classes(pairs) == PLAIN

    # what the chain asks before it draws images
    card = images / "model.pt"
    assert lacks_unlabelled(maps, card)
    assert not lacks_unlabelled(out, card)  # they have them
    assert not lacks_unlabelled(Path(dataset), card)  # real images say where they are
    assert not lacks_unlabelled(tmp_path / "nowhere", card)
    content = read_json(images / "model.json")
    del content["cohort"]["unlabelled"]
    plain = tmp_path / "plain.json"
    write_json(plain, content)
    assert not lacks_unlabelled(maps, plain.with_suffix(".pt"))


def test_a_training_goes_on_where_it_was(dataset: str, tmp_path: Path) -> None:
    train(dataset, tmp_path / "whole", max_epochs=2)
    train(dataset, tmp_path / "parts", max_epochs=1)
    train(dataset, tmp_path / "parts", max_epochs=2)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    card = read_json(tmp_path / "whole" / "model.json")
    assert card["sequence"]["completes"] is True
    assert "corner" not in card["sequence"]  # heads fill the frame


def test_fine_tuning_completes_as_the_weights_did(
    weights: Path, dataset: str, tmp_path: Path
) -> None:
    out = tmp_path / "tuned"
    knobs = {"max_epochs": 1, "iterations_per_epoch": 1, "batch_size": 2}
    given = {"ckpt_path": str(weights), "dataset_dir": dataset, "output_dir": str(out)}
    run(LABELS, ["train", "finetune"], **given, **knobs)
    card = read_json(out / "model.json")
    assert card["sequence"]["completes"] is True
    assert card["cohort"]["labels"] == DIVIDED


def test_weights_of_one_kind_are_refused_for_the_other(
    weights: Path, dataset: str, maps: Path, tmp_path: Path
) -> None:
    with pytest.raises((DataError, RuntimeError)) as caught:
        run(
            LABELS,
            ["inference"],
            "infer",
            ckpt_path=str(weights),
            output_dir=str(tmp_path / "out"),
        )
    assert "expected weights that generate label maps, found some that complete" in str(
        first_data_error(caught.value)
    )
    whole = tmp_path / "labels"
    run(LABELS, ["train"], dataset_dir=dataset, output_dir=str(whole), **{**SMALL, "max_epochs": 1})
    with pytest.raises((DataError, RuntimeError)) as caught:
        complete(whole / "model.pt", maps, tmp_path / "out")
    assert "expected weights that complete label maps, found some that generate" in str(
        first_data_error(caught.value)
    )
    # nor has a given label map sizes to be told
    for knob, value in (("sizes", {"liver": 1.0}), ("reject", True), ("guidance", 2.0)):
        with pytest.raises((ValueError, RuntimeError)) as refused:
            complete(weights, maps, tmp_path / "out", **{knob: value})
        assert f"{knob}: expected" in chain_of(refused.value)
    # nor does a training of one kind go on as the other
    with pytest.raises((DataError, RuntimeError)) as caught:
        run(
            LABELS,
            ["train", "completion"],
            dataset_dir=dataset,
            output_dir=str(whole),
            **{**SMALL, "max_epochs": 2},
        )
    assert "completes: None then, True now" in str(first_data_error(caught.value))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"unlabelled_classes": 0}, "completes: expected a background divided into unlabelled_cl"),
        ({"completes": "yes"}, "completes: expected True or False, found the text 'yes'"),
        ({"size_conditioning": True}, "size_conditioning: expected False with completes"),
        ({"crop_to_labels": True}, "crop_to_labels: expected False with completes"),
        ({"objective": "epsilon", "schedule": "linear"}, "completes: expected the objective"),
        ({"self_conditioning": False}, "found classes and False"),
    ],
)
def test_knobs_that_make_no_sense_are_refused(
    dataset: str, tmp_path: Path, knobs: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, RuntimeError)) as caught:
        train(dataset, tmp_path / "run", **knobs)
    assert message in chain_of(caught.value)


def test_a_label_that_training_never_saw_is_named(
    weights: Path, maps: Path, tmp_path: Path
) -> None:
    content = read_json(maps / "dataset.json")
    names = {value: name for name, value in content["labels"].items()}
    content["labels"] = {
        **{name: value for name, value in content["labels"].items() if name != names[2]},
        "tumour": 2,
    }
    (maps / "dataset.json").write_text(json.dumps(content))
    with pytest.raises((DataError, RuntimeError)) as caught:
        complete(weights, maps, tmp_path / "out")
    assert "found 'tumour' (value [2])" in str(first_data_error(caught.value))
