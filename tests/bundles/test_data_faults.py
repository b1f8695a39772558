"""Faults of the data, provoked in every bundle that trains: refused in one line, or mended."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from medpair.engines.refusals import first_data_error
from tests.bundles.conftest import (
    SMALL_MCDPM,
    SMALL_REFINER,
    SMALL_UNET,
    SMALL_VID2VID,
    SMALL_WGAN,
    run,
    workflow,
)
from tests.conftest import tiny_dataset
from tests.damage import PIXDIM, edit_bytes, edit_json, edit_voxels, flip_bit

SMALL: dict[str, dict[str, Any]] = {
    "wgan_sn_mp": SMALL_WGAN,
    "medgen3d_mcdpm": SMALL_MCDPM,
    "medgen3d_vid2vid": SMALL_VID2VID,
    "medgen3d_semantic_refiner": SMALL_REFINER,
    "unet_segmentation": SMALL_UNET,
}
BUNDLES = pytest.mark.parametrize("bundle", SMALL)
IMAGE, LABEL = "imagesTr/case_001_0000.nii.gz", "labelsTr/case_001.nii.gz"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_dataset(tmp_path_factory.mktemp("clean") / "set", count=3, orientation="PSR")


@pytest.fixture
def folder(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "set"))


def started(bundle: str, folder: Path, output: Path, **knobs: Any) -> Any:
    """Return a bundle's training, ready for its first step: all data are read."""
    configs = ["train", "compact"] if bundle == "wgan_sn_mp" else ["train"]
    small = {**SMALL[bundle], "num_workers": 0, **knobs}
    result = workflow(bundle, configs, dataset_dir=str(folder), output_dir=str(output), **small)
    loader = result.parser.get_parsed_content("train#dataloader")
    result.parser.get_parsed_content("train#trainer")
    next(iter(loader))
    return result


def refused(bundle: str, folder: Path, output: Path) -> str:
    """Assert that a bundle ends with a refusal before it writes anything; return its words."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        started(bundle, folder, output)
    refusal = first_data_error(caught.value)
    assert refusal is not None, caught.value
    assert not output.exists() or not any(output.iterdir())
    return str(refusal)


def truncate(folder: Path) -> None:
    path = folder / IMAGE
    path.write_bytes(path.read_bytes()[:-40])


def truncate_inside(folder: Path) -> None:
    # whole as a gzip stream, its trailer fitting the header: only the voxels are missing
    path = folder / LABEL
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-100]))


def shift_affine(folder: Path) -> None:
    old = nib.load(folder / LABEL)
    affine = old.affine.copy()
    affine[1, 3] += 1.0
    nib.save(nib.Nifti1Image(np.asarray(old.dataobj), affine), folder / LABEL)


def series(folder: Path) -> None:
    (folder / IMAGE).unlink()
    (folder / IMAGE).mkdir()
    (folder / IMAGE / "slice.dcm").write_bytes(b"DICM")


def one_nan(array: np.ndarray) -> None:
    array[3, 2, 1] = np.nan


def one_fraction(array: np.ndarray) -> None:
    array[3, 2, 1] = 0.5


def one_255(array: np.ndarray) -> None:
    array[3, 2, 1] = 255


def second_channel(array: np.ndarray) -> np.ndarray:
    return np.stack([array, array], axis=-1)


def same_name(content: dict[str, Any]) -> None:
    content["validation"][0] |= {"label": content["training"][0]["label"]}


DAMAGES: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "truncated": (truncate, IMAGE, "a truncated one"),
    "truncated inside": (truncate_inside, LABEL, "truncated"),
    "empty": (lambda f: (f / IMAGE).write_bytes(b""), IMAGE, "an empty file"),
    "flipped image": (lambda f: flip_bit(f / IMAGE), IMAGE, "damage"),
    "flipped label": (lambda f: flip_bit(f / LABEL, 0.98), LABEL, "damage"),
    "missing": (lambda f: (f / LABEL).unlink(), LABEL, "nothing there"),
    "affine": (shift_affine, LABEL, "which differs by up to 1"),
    "shape": (lambda f: edit_voxels(f / LABEL, lambda a: a[:-1]), LABEL, "found (13, 12, 16)"),
    "255": (lambda f: edit_voxels(f / LABEL, one_255), LABEL, "found [255]"),
    "fraction": (lambda f: edit_voxels(f / LABEL, one_fraction, np.float32), LABEL, "[0.5]"),
    "nan": (lambda f: edit_voxels(f / IMAGE, one_nan, np.float32), IMAGE, "found NaN or infinity"),
    "four axes": (lambda f: edit_voxels(f / IMAGE, second_channel), IMAGE, "4 axes"),
    "pixdim": (lambda f: edit_bytes(f / IMAGE, PIXDIM + 8, "f", -1.0), IMAGE, "[1, -1, 1]"),
    "empty list": (lambda f: edit_json(f, lambda c: c.update(training=[])), "", "found none"),
    "overlap": (lambda f: edit_json(f, same_name), "labelsTr/case_000", "a file in one split"),
    "name": (
        lambda f: edit_json(f, lambda c: c["training"].append(c["training"][1])),
        IMAGE,
        "a file listed once",
    ),
    "unpaired": (lambda f: edit_json(f, lambda c: c["training"][1].pop("label")), "", "found none"),
    "series": (series, IMAGE, "DICOM slices? convert them"),
}


@pytest.mark.fault(1, 2, 3, 4, 5, 7, 8, 9, 12, 14, 15, 19, 20, 21, 22)
@pytest.mark.parametrize("damage", DAMAGES)
@BUNDLES
def test_damaged_data_are_refused_in_one_line(
    bundle: str, damage: str, folder: Path, tmp_path: Path
) -> None:
    edit, file, words = DAMAGES[damage]
    edit(folder)
    message = refused(bundle, folder, tmp_path / "out")
    line = next(line for line in message.splitlines() if words in line)
    assert file in line
    assert str(folder) in line


GENERATORS = ("medgen3d_vid2vid", "medgen3d_semantic_refiner", "unet_segmentation")


@pytest.fixture(scope="module")
def weights(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights after a step, of the bundles that read volumes to be used."""
    found = {}
    for bundle in GENERATORS:
        folder = tmp_path_factory.mktemp("weights") / bundle
        small = {**SMALL[bundle], "max_epochs": 1, "iterations_per_epoch": 1}
        run(bundle, ["train"], dataset_dir=str(clean), output_dir=str(folder), **small)
        found[bundle] = folder / "model.pt"
    return found


@pytest.mark.fault(1, 2, 3, 4, 5, 7, 8, 9, 12, 14, 15, 22)
@pytest.mark.parametrize("damage", [d for d in DAMAGES if DAMAGES[d][1] in (IMAGE, LABEL)])
@pytest.mark.parametrize("bundle", GENERATORS)
def test_damaged_data_are_refused_where_weights_are_used(
    bundle: str, damage: str, folder: Path, weights: dict[str, Path], tmp_path: Path
) -> None:
    edit, file, words = DAMAGES[damage]
    edit(folder)
    score = bundle == "unet_segmentation"
    knobs: dict[str, Any] = {} if score else {"batch_size": 1}
    if bundle == "medgen3d_semantic_refiner":
        knobs["refine_steps"] = 1

    def use() -> None:
        run(
            bundle,
            ["inference", "evaluate"] if score else ["inference"],
            "infer",
            ckpt_path=str(weights[bundle]),
            dataset_dir=str(folder),
            output_dir=str(tmp_path / "out"),
            split="training",
            **knobs,
        )

    unread = bundle == "medgen3d_vid2vid" and damage in ("flipped image", "nan")
    if unread:  # images are made here, not read
        use()
        return
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        use()
    refusal = first_data_error(caught.value)
    assert refusal is not None, caught.value
    line = next(line for line in str(refusal).splitlines() if words in line)
    assert str(folder / file) in line
    # nothing is left of the case that was refused, nor a list of cases
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert not (tmp_path / "out" / "scores.json").exists()
    assert not (tmp_path / "out" / "provenance" / "case_001.json").exists()


@pytest.mark.fault(6)
@BUNDLES
def test_shifted_labels_are_refused_before_they_are_resampled(
    bundle: str, folder: Path, tmp_path: Path
) -> None:
    shift_affine(folder)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        started(bundle, folder, tmp_path / "out", spacing=[2.0, 2.0, 2.0])
    assert "which differs by up to 1" in str(first_data_error(caught.value))


@pytest.mark.fault(9, 10, 11, 13)
@BUNDLES
def test_what_can_be_used_is_used(bundle: str, folder: Path, tmp_path: Path) -> None:
    edit_voxels(folder / IMAGE, lambda a: a.fill(7))
    edit_voxels(folder / LABEL, lambda a: a.fill(0))
    nearly = folder / "labelsTr/case_002.nii.gz"
    edit_voxels(nearly, lambda a: np.where(a == 1, 0.9995, a), np.float32)
    edit_json(folder, lambda c: c["labels"].update(class_3=3))
    result = started(bundle, folder, tmp_path / "out")
    for batch in result.parser.get_parsed_content("train#dataloader"):
        for value in batch.values():
            if hasattr(value, "isfinite"):
                assert value.isfinite().all()


@pytest.mark.fault(16)
@BUNDLES
def test_oblique_and_anisotropic_volumes_are_trained_on(bundle: str, tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 2, spacing=(0.5, 0.5, 4.0), tilt=20.0)
    assert started(bundle, folder, tmp_path / "out") is not None


@pytest.mark.fault(17)
@BUNDLES
def test_volumes_smaller_than_the_patch_are_padded(bundle: str, tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 2, size=(7, 6, 9))
    result = started(bundle, folder, tmp_path / "out")
    batch = next(iter(result.parser.get_parsed_content("train#dataloader")))
    sizes = {tuple(v.shape[2:]) for k, v in batch.items() if k in ("image", "label")}
    assert all(n >= 8 or len(size) < 3 for size in sizes for n in size)


WRONG_PATCH: dict[str, tuple[dict[str, Any], str]] = {
    "wgan_sn_mp": ({"patch_size": [32, 18, 16]}, "16"),
    "medgen3d_mcdpm": ({"volume_size": [17, 16, 16]}, "2"),
    "medgen3d_vid2vid": ({"volume_size": [17, 16, 16]}, "2"),
    "medgen3d_semantic_refiner": ({"volume_size": [17, 16, 16]}, "2"),
    "unet_segmentation": ({"patch_size": [16, 12, 16]}, "multiples of 8"),
}


@pytest.mark.fault(18)
@BUNDLES
def test_a_patch_that_cannot_be_halved_is_refused_with_the_multiple(
    bundle: str, clean: Path, tmp_path: Path
) -> None:
    from medpair.engines.config_errors import argument_refusal

    knobs, multiple = WRONG_PATCH[bundle]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps ours
        started(bundle, clean, tmp_path / "out", **knobs).run()
    line = argument_refusal(caught.value)
    assert line is not None, caught.value
    assert next(iter(knobs)) in line
    assert multiple in line
