"""From one dataset folder to the next: what is read, what is refused, what is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from tests.conftest import tiny_dataset

from medpair.data.cohort import Cohort
from medpair.data.dataset import write_dataset_json
from medpair.data.files import DataError, Volume, read_grid, read_json, read_volume, write_volume
from medpair.data.slices import framed
from medpair.inferers.case_writer import CaseWriter, FrameBatches
from medpair.inferers.cases import CaseVolumes

FRAME = (16, 16, 16)
SIZES = ((16, 14, 12), (16, 18, 12), (10, 9, 8), (17, 16, 20), (12, 12, 12))


def card(
    labels: tuple[str, ...] = ("background", "class_1", "class_2"),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> dict[str, Any]:
    cohort = Cohort(
        name="trained",
        labels=labels,
        spacing=spacing,
        sizes=((16, 14, 12),),
        intensity=(100.0, 1100.0),
        channel="MR",
    )
    return {"cohort": json.loads(json.dumps(cohort.to_json()))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pairs, tilted and stored in another orientation."""
    return tiny_dataset(tmp_path / "in", count=3, orientation="PSR", tilt=10)


@pytest.fixture
def label_maps(tmp_path: Path) -> Path:
    """Label maps alone, of several sizes."""
    root = tmp_path / "maps"
    for number, size in enumerate(SIZES):
        label = np.zeros(size, np.uint8)
        label[2:5, 2:6, 2:7], label[5:7, 2:6, 2:7] = 1, 2
        write_volume(root / f"labelsTr/map_{number}.nii.gz", Volume(label, np.eye(4)))
    entries = [{"label": f"labelsTr/map_{number}.nii.gz"} for number in range(len(SIZES))]
    labels = {"background": 0, "class_1": 1, "class_2": 2}
    write_dataset_json(root, "maps", labels, {"training": entries}, {})
    return root


class Method:
    def __init__(self, **options: Any) -> None:
        self.options = options

    def origin(self) -> dict[str, Any]:
        return self.options


def cases_of(folder: Path, of: dict[str, Any] | None = None, **options: Any) -> CaseVolumes:
    return CaseVolumes(folder, of or card(), **{"frame": FRAME, "multiple": 8, **options})


def writer_of(cases: CaseVolumes, output: Path, **options: Any) -> CaseWriter:
    weights = output.resolve().parent / "model.pt"
    weights.write_bytes(b"weights")
    method = Method(**options.pop("origin", {"seed": 1}))
    return CaseWriter(output, cases, card(), weights, method, "generator", **options)


def write_all(writer: CaseWriter, value: float = 0.5) -> None:
    for index in writer.missing():
        pred = torch.full((1, *writer.cases.frames[index]), value)
        pred[0, 0, 0, 0] = 1 - 0.1 * index
        writer({"pred": pred, "index": index})
    writer.complete()


def relabel(folder: Path, labels: dict[str, int], **values: int) -> None:
    """Change the label set, and the values in the files of class_1 and class_2."""
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "labels": labels}))
    for file in folder.glob("labels*/*.nii.gz"):
        image = nib.load(file)
        old = np.asarray(image.dataobj)
        new = np.zeros_like(old)
        for name, value in values.items():
            new[old == int(name[-1])] = value
        nib.save(nib.Nifti1Image(new, image.affine, image.header), file)


def test_items_are_framed_and_in_ras(folder: Path) -> None:
    cases = cases_of(folder, images=True)
    assert len(cases) == 3
    item = cases[1]
    case = cases.cases[1]
    assert case.image is not None
    assert case.label is not None
    label, image = read_volume(case.label).array, read_volume(case.image).array
    unit = np.clip((image - 100) / 500 - 1, -1, 1)
    np.testing.assert_array_equal(item["label"][0], framed(label, FRAME, 0))
    np.testing.assert_allclose(item["image"][0], framed(unit, FRAME, -1), atol=1e-6)
    np.testing.assert_array_equal(item["inside"][0], framed(np.ones_like(label), FRAME, 0))
    assert item["index"] == 1


def test_label_maps_alone_are_their_own_input(label_maps: Path) -> None:
    cases = cases_of(label_maps)
    assert [case.name for case in cases.cases] == [f"map_{n}" for n in range(len(SIZES))]
    item = cases[2]
    assert torch.equal(item["image"], item["label"])
    assert item["label"].max() == 2
    with pytest.raises(DataError, match="image"):
        cases_of(label_maps, images=True)


def test_larger_volumes_get_larger_frames(label_maps: Path) -> None:
    assert cases_of(label_maps).frames == [
        (16, 16, 16),
        (16, 24, 16),
        (16, 16, 16),
        (24, 16, 24),
        (16, 16, 16),
    ]
    for index, size in enumerate(SIZES):
        item = cases_of(label_maps)[index]
        assert tuple(item["label"].shape[1:]) == cases_of(label_maps).frames[index]
        # nothing is cropped
        assert item["inside"].sum() == np.prod(size)


@pytest.mark.parametrize("codes", ["RAS", "PSR", "LIA"])
def test_sizes_come_from_headers_in_ras_order(codes: str, tmp_path: Path) -> None:
    path = tmp_path / "x.nii.gz"
    affine = np.diag([2.0, 3.0, 4.0, 1.0])
    write_volume(path, Volume(np.zeros((4, 5, 6), np.uint8), affine, codes))
    size, spacing = read_grid(path)
    assert size == (4, 5, 6)
    np.testing.assert_allclose(spacing, [2, 3, 4])
    path.write_bytes(b"no volume")
    with pytest.raises(DataError, match=r"x\.nii\.gz: gzip: expected a valid gzip stream"):
        read_grid(path)


def test_label_maps_on_another_scale_are_refused(folder: Path) -> None:
    cases_of(folder, card(spacing=(1.03, 1.0, 1.0)))
    with pytest.raises(DataError, match=r"case_000.*expected the spacing .*\(4.0, 4.0, 4.0\) mm"):
        cases_of(folder, card(spacing=(4.0, 4.0, 4.0)))


def test_classes_are_matched_by_name(folder: Path) -> None:
    before = [cases_of(folder)[index]["label"] for index in range(3)]
    relabel(folder, {"background": 0, "class_2": 3, "class_1": 7, "never": 9}, class_1=7, class_2=3)
    cases = cases_of(folder)
    assert cases.labels.names == ("background", "class_2", "class_1", "never")
    for index in range(3):
        assert torch.equal(cases[index]["label"], before[index])


def test_a_label_that_training_never_saw_is_refused(folder: Path) -> None:
    relabel(folder, {"background": 0, "class_1": 1, "tumour": 5}, class_1=1, class_2=5)
    with pytest.raises(DataError) as caught:
        cases_of(folder)[0]
    message = str(caught.value)
    assert "case_000.nii.gz" in message
    assert "'tumour' (value [5])" in message
    assert "class_1" in message
    assert "'class_1' (value" not in message


def test_an_unlabelled_case_is_refused(folder: Path) -> None:
    path = folder / "dataset.json"
    content = json.loads(path.read_text())
    del content["training"][1]["label"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"case_001_0000\.nii\.gz: expected a label map"):
        cases_of(folder)


def test_an_image_of_another_shape_is_refused(folder: Path) -> None:
    path = folder / "imagesTr" / "case_002_0000.nii.gz"
    write_volume(path, Volume(np.zeros((5, 6, 7), np.int16), np.eye(4)))
    with pytest.raises(DataError, match=r"case_002\.nii\.gz: expected the image's shape"):
        cases_of(folder, images=True)[2]


def test_the_output_is_a_dataset_on_the_inputs_grid(folder: Path, tmp_path: Path) -> None:
    cases = cases_of(folder)
    writer = writer_of(cases, tmp_path / "out")
    assert writer.missing() == [0, 1, 2]
    write_all(writer)
    assert writer.missing() == []
    out = tmp_path / "out"
    content = read_json(out / "dataset.json")
    assert content["labels"] == {"background": 0, "class_1": 1, "class_2": 2}
    assert content["channel_names"] == {"0": "MR"}
    for case in cases.cases:
        source = nib.load(case.label or "")
        label = nib.load(out / "labelsTr" / f"{case.name}.nii.gz")
        image = nib.load(out / "imagesTr" / f"{case.name}_0000.nii.gz")
        np.testing.assert_array_equal(np.asarray(label.dataobj), np.asarray(source.dataobj))
        for made in (label, image):
            np.testing.assert_allclose(made.affine, source.affine, atol=1e-5)
            assert nib.aff2axcodes(made.affine) == ("P", "S", "R")
        assert image.get_data_dtype() == np.int16
        # 0.5 in -1..1 on the scale of the training cohort
        assert (np.asarray(image.dataobj) == 850).mean() > 0.99
        record = read_json(out / "provenance" / f"{case.name}.json")
        assert record["seed"] == 1
        assert record["generator"] == "generator"
        assert record["made_from"] is None


def test_the_stage_before_is_remembered(folder: Path, tmp_path: Path) -> None:
    write_all(writer_of(cases_of(folder), tmp_path / "one"))
    write_all(writer_of(cases_of(tmp_path / "one", images=True), tmp_path / "two"))
    record = read_json(tmp_path / "two" / "provenance" / "case_001.json")
    assert record["made_from"] == read_json(tmp_path / "one" / "provenance" / "case_001.json")


@pytest.mark.parametrize("options", [{}, {"num_samples": 1}, {"num_samples": 9, "start_index": 1}])
def test_some_of_the_cases(options: dict[str, int], folder: Path, tmp_path: Path) -> None:
    writer = writer_of(cases_of(folder), tmp_path / "out", **options)
    wanted = {0: [0, 1, 2], 1: [0], 2: [1, 2]}[len(options)]
    assert writer.missing() == wanted
    # batch mates that were not asked for are not written
    for index in range(3):
        writer({"pred": torch.zeros(1, *FRAME), "index": index})
    writer.complete()
    names = sorted(path.stem for path in (tmp_path / "out" / "provenance").iterdir())
    assert names == [f"case_{index:03d}" for index in wanted]


def test_what_fails_beside_the_computation_is_not_passed_over(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = writer_of(cases_of(folder), tmp_path / "out")
    writer({"pred": torch.zeros(1, *FRAME), "index": 0})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("medpair.inferers.case_writer.write_volume", full)
    writer({"pred": torch.zeros(1, *FRAME), "index": 1})
    with pytest.raises(OSError, match="No space left"):
        writer.complete()
    assert not (tmp_path / "out" / "dataset.json").exists()
    monkeypatch.undo()
    writer = writer_of(cases_of(folder), tmp_path / "out")
    assert writer.missing() == [1, 2]
    write_all(writer)


def test_a_start_beyond_the_cases_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"start_index: expected less than 3, .*in, found 7"):
        writer_of(cases_of(folder), tmp_path / "out", start_index=7)


def test_pairs_are_drawn_again_when_cases_come_before_them(folder: Path, tmp_path: Path) -> None:
    """A case's random stream is its number: the folder ends as if all had been there at once."""
    path = folder / "dataset.json"
    content = read_json(path)
    first, added, last = content["training"]
    path.write_text(json.dumps({**content, "training": [first, last]}))
    write_all(writer_of(cases_of(folder), tmp_path / "grown"))
    path.write_text(json.dumps({**content, "training": [first, added, last]}))
    grown = writer_of(cases_of(folder), tmp_path / "grown")
    assert grown.missing() == [1, 2]
    write_all(grown)
    assert grown.missing() == []
    write_all(writer_of(cases_of(folder), tmp_path / "fresh"))
    for file in (tmp_path / "fresh").rglob("*.*"):
        other = tmp_path / "grown" / file.relative_to(tmp_path / "fresh")
        assert file.is_dir() or file.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("images", "changed", "refused"),
    [
        (False, "labelsTr/case_001.nii.gz", True),
        (True, "imagesTr/case_001_0000.nii.gz", True),
        (True, "labelsTr/case_001.nii.gz", True),
        (False, "imagesTr/case_001_0000.nii.gz", False),
    ],
)
def test_pairs_made_of_other_files_are_refused(
    images: bool, changed: str, refused: bool, folder: Path, tmp_path: Path
) -> None:
    write_all(writer_of(cases_of(folder, images=images), tmp_path / "out"))
    volume = read_volume(folder / changed)
    volume.array[0, 0, 0] = 1
    write_volume(folder / changed, volume, np.int16 if "images" in changed else np.uint8)
    again = writer_of(cases_of(folder, images=images), tmp_path / "out")
    if not refused:
        assert again.missing() == []
        return
    with pytest.raises(DataError) as caught:
        again.missing()
    assert "case_001.json: expected a pair made of" in str(caught.value)
    assert Path(changed).name in str(caught.value)


def test_the_inputs_folder_is_refused_as_output(folder: Path, tmp_path: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(DataError, match="expected another folder than the input's"):
        writer_of(cases_of(folder), tmp_path / "x" / ".." / "in")
    assert sorted(folder.rglob("*")) == before


def test_a_folder_of_another_origin_is_refused(folder: Path, tmp_path: Path) -> None:
    write_all(writer_of(cases_of(folder), tmp_path / "out"))
    with pytest.raises(DataError, match="seed: 1 there, 2 now"):
        writer_of(cases_of(folder), tmp_path / "out", origin={"seed": 2})


def test_batches_are_the_same_whatever_is_missing(label_maps: Path, tmp_path: Path) -> None:
    cases = cases_of(label_maps)
    whole = list(FrameBatches(cases, writer_of(cases, tmp_path / "out"), 2))
    # cases 0, 2 and 4 share a frame
    assert sorted(whole) == [[0, 2], [1], [3], [4]]
    writer = writer_of(cases, tmp_path / "out")
    for index in (0, 1, 4):
        writer({"pred": torch.zeros(1, *cases.frames[index]), "index": index})
    writer.complete()
    sampler = FrameBatches(cases, writer, 2)
    assert list(sampler) == [batch for batch in whole if batch in ([0, 2], [3])]
    assert len(sampler) == 2
    part = FrameBatches(cases, writer_of(cases, tmp_path / "part", start_index=4), 2)
    assert list(part) == [[4]]
    with pytest.raises(ValueError, match="batch_size: expected at least 1, found 0"):
        FrameBatches(cases, writer, 0)
    # every batch can be stacked
    for batch in whole:
        assert torch.stack([cases[i]["label"] for i in batch]).shape[0] == len(batch)


def test_a_case_begun_but_not_finished_is_made_again(folder: Path, tmp_path: Path) -> None:
    write_all(writer_of(cases_of(folder), tmp_path / "whole"))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "provenance" / "case_001.json").unlink()
    writer = writer_of(cases_of(folder), tmp_path / "cut")
    assert writer.missing() == [1]
    write_all(writer)
    for path in (tmp_path / "whole").rglob("*.*"):
        other = tmp_path / "cut" / path.relative_to(tmp_path / "whole")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()


def test_the_range_of_training_volumes_is_filled_but_never_that_of_ct(folder: Path) -> None:
    written = {}
    for name, fill, channel in (("plain", False, "MR"), ("full", True, "MR"), ("ct", True, "CT")):
        output = folder.parent / name
        cases = cases_of(folder)
        writer = writer_of(cases, output, fill_range=fill)
        if channel == "CT":
            content = card()
            content["cohort"]["channel"] = channel
            weights = output.parent / "model.pt"
            writer = CaseWriter(output, cases, content, weights, Method(), "g", fill_range=fill)
        values = np.random.default_rng(0).normal(-0.2, 0.2, (1, *cases.frames[0]))
        writer({"pred": torch.from_numpy(values).float(), "index": 0})
        paths = writer.folder.paths(0)
        written[name] = read_volume(output / paths["image"]).array
        record = read_json(writer.folder.sidecar(0))
        assert record.get("fill_range", False) == (name == "full")
    np.testing.assert_array_equal(written["plain"], written["ct"])
    ends = {name: np.percentile(array, [0.5, 50, 99.5]) for name, array in written.items()}
    assert ends["full"][2] > ends["plain"][2] + 50
    assert ends["full"][0] < ends["plain"][0] - 50
    assert ends["full"][1] == ends["plain"][1]
    with pytest.raises(ValueError, match="fill_range: expected True or False, found 'false'"):
        writer_of(cases_of(folder), folder.parent / "text", fill_range="false")
