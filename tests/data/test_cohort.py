"""What is read of a cohort: scale, grid, classes."""

from __future__ import annotations

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd
from scipy.spatial.transform import Rotation
from tests.conftest import tiny_dataset

from medpair.data.cohort import Cohort, read_card, read_cohort
from medpair.data.dataset import load_dataset
from medpair.data.files import DataError, read_grid, read_json, read_volume, write_volume
from medpair.data.intensity import from_unit, robust_range, to_unit
from medpair.data.resampling import resample, resampled_size
from medpair.data.segmentation import load_items, read_task

SEGMENTER = Path(__file__).parents[2] / "bundles" / "unet_segmentation" / "configs"


def test_orientation_on_disk_does_not_matter(tmp_path: Path) -> None:
    first, volumes = read_cohort(tiny_dataset(tmp_path / "a", orientation="RAS"))
    second, others = read_cohort(tiny_dataset(tmp_path / "b", orientation="PSL"))
    assert first.sizes == second.sizes == ((16, 14, 12),) * 4
    for one, two in zip(volumes, others, strict=True):
        np.testing.assert_allclose(one.image, two.image, atol=1e-6)
        np.testing.assert_array_equal(one.label, two.label)


def test_intensity_scale_survives_the_round_trip(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set")
    cohort, volumes = read_cohort(folder)
    ranges = [
        robust_range(nib.load(case.image).get_fdata())
        for case in load_dataset(folder).split("training")
    ]
    assert cohort.intensity == pytest.approx(tuple(np.median(ranges, axis=0)))
    assert all(np.abs(volume.image).max() <= 1 for volume in volumes)


def test_unit_range_is_inverted() -> None:
    image = np.linspace(10, 50, 100)
    np.testing.assert_allclose(from_unit(to_unit(image, 10, 50), 10, 50), image, atol=1e-4)
    assert to_unit(np.array([0.0, 99.0]), 10, 50).tolist() == [-1, 1]


@pytest.mark.fault(13)
def test_a_constant_image_maps_to_the_dark_end() -> None:
    image = np.full((4, 4, 4), 3.0)
    assert robust_range(image) == (3.0, 4.0)
    assert (to_unit(image, *robust_range(image)) == -1).all()


def test_other_spacings_are_resampled_to_the_cohorts(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", spacing=(1.0, 1.0, 2.0))
    cohort, volumes = read_cohort(folder, spacing=(1.0, 1.0, 1.0))
    assert cohort.spacing == (1.0, 1.0, 1.0)
    assert volumes[0].image.shape == volumes[0].label.shape == (16, 14, 23)
    native = read_cohort(folder)[1][0]
    np.testing.assert_array_equal(volumes[0].label[..., ::2], native.label)


def turned(folder: Path, degrees: tuple[float, float, float]) -> None:
    """Turn the grids of a folder's files about x, y and z, as scanners tilt them."""
    rotation = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    for path in folder.glob("*Tr/*.nii.gz"):
        file = nib.load(path)
        affine = file.affine.copy()
        affine[:3, :3] = rotation @ affine[:3, :3]
        nib.save(nib.Nifti1Image(np.asanyarray(file.dataobj), affine), path)


def bundle_transforms(config: str, folder: Path, spacing: tuple[float, ...], ends: str) -> Compose:
    """Return the segmentation bundle's own transforms of a config, up to the one named."""
    parser = ConfigParser(read_json(SEGMENTER / f"{config}.json"))
    if config == "train":
        parser.config.update(dataset_dir=str(folder), spacing=list(spacing))
        transforms = parser.get_parsed_content("train#preprocessing_transforms")
    else:
        parser.config["card"] = {"task": {"spacing": list(spacing)}}
        transforms = list(parser.get_parsed_content("preprocessing").transforms)
    names = [type(transform).__name__ for transform in transforms]
    return Compose(transforms[: names.index(ends) + 1])


OBLIQUE = [(0.0, 0.0, 0.0), (17.0, 0.0, 0.0), (5.0, 0.0, 3.0), (-7.0, 11.0, 4.0)]


@pytest.mark.parametrize("degrees", OBLIQUE)
@pytest.mark.parametrize("orientation", ["RAS", "LAS"])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 1.5, 3.0), (0.7, 1.0, 0.7)])
def test_pairs_are_resampled_as_segmenters_see_them(
    tmp_path: Path,
    spacing: tuple[float, float, float],
    orientation: str,
    degrees: tuple[float, float, float],
) -> None:
    """Another grid of ours cost a brain's segmenter 0.024 DSC: images smoother, labels shifted."""
    folder = tiny_dataset(tmp_path / "set", size=(12, 11, 13), orientation=orientation)
    turned(folder, degrees)
    as_segmenters_do = bundle_transforms("train", folder, spacing, "RobustScaled")
    cohort, volumes = read_cohort(folder, spacing=spacing)
    items = load_items(folder)
    for item, volume in zip(items, volumes, strict=True):
        seen = as_segmenters_do(item)
        np.testing.assert_array_equal(seen["label"][0].numpy(), volume.label)
        np.testing.assert_allclose(seen["image"][0].numpy(), volume.image, atol=1e-4)
    size, own = read_grid(items[0]["image"])
    assert cohort.sizes == (tuple(resampled_size(size, list(own), spacing)),) * 4


@pytest.mark.parametrize("degrees", OBLIQUE)
def test_predictions_return_to_the_files_own_grid(
    tmp_path: Path, degrees: tuple[float, float, float]
) -> None:
    folder = tiny_dataset(tmp_path / "set", 1, (12, 11, 13), orientation="LAS", validation=0)
    turned(folder, degrees)
    # a sheared grid (a tilted gantry) is written as it was read, too
    for path in folder.glob("*Tr/*.nii.gz"):
        volume = read_volume(path, None)
        volume.affine[:3, 2] += 0.2 * volume.affine[:3, 1]
        write_volume(path, volume)
    preprocessing = bundle_transforms("inference", folder, (0.5, 0.5, 0.5), "Spacingd")
    (item,) = load_items(folder)
    data = preprocessing({"image": item["label"]})
    data["pred"] = MetaTensor(data["image"].as_tensor().round())
    pred = Invertd("pred", preprocessing, orig_keys="image", nearest_interp=True)(data)["pred"]
    file = nib.load(item["label"])
    np.testing.assert_allclose(pred.affine, file.affine, atol=1e-6)
    # twice as fine and back: the grids share each of the coarse one's voxels
    np.testing.assert_array_equal(pred[0].numpy(), file.get_fdata())


def test_full_resolution_is_held_of_one_case_at_a_time(tmp_path: Path) -> None:
    size, spacing = (48, 48, 48), (6.0, 6.0, 6.0)
    peaks = []
    for count in (2, 2, 8):  # what is made once does not count
        folder = tmp_path / f"set_{len(peaks)}"
        tiny_dataset(folder, count, size, orientation="PSL", validation=0)
        tracemalloc.start()
        try:
            cohort, volumes = read_cohort(folder, spacing=spacing)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert cohort.sizes == ((9, 9, 9),) * count
        assert len(volumes) == count
    # less than one label map for six cases more
    assert peaks[2] - peaks[1] < math.prod(size)


def test_the_median_spacing_is_that_of_the_volumes(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 3, (12, 11, 13), orientation="PSL", validation=0)
    turned(folder, (5.0, -8.0, 3.0))
    spacings = []
    for case, voxel in zip(load_dataset(folder).split("training"), (0.9, 1.3, 2.1), strict=True):
        for path in (case.image, case.label):
            assert path is not None
            volume = read_volume(path, None)
            volume.affine[:3, :3] *= voxel
            write_volume(path, volume)
        spacings.append(read_volume(str(case.image)).spacing)
    cohort, volumes = read_cohort(folder)
    assert cohort.spacing == tuple(np.median(spacings, axis=0))
    assert len({volume.image.shape for volume in volumes}) == 3


def test_nearly_equal_spacing_is_left_alone() -> None:
    array = np.random.default_rng(0).normal(size=(5, 5, 5))
    assert resample(array, (1, 1, 1), (1.01, 1, 1), order=1) is array


def test_json_round_trip(tmp_path: Path) -> None:
    cohort, _ = read_cohort(tiny_dataset(tmp_path / "set"))
    assert Cohort.from_json(json.loads(json.dumps(cohort.to_json()))) == cohort


def test_missing_card_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"weights")
    with pytest.raises(DataError, match=r"model\.json: expected a JSON file"):
        read_card(tmp_path / "model.pt")


@pytest.mark.fault(12)
def test_nan_is_refused_with_the_file(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set")
    path = folder / "imagesTr" / "case_002_0000.nii.gz"
    image = nib.load(path)
    data = image.get_fdata().astype(np.float32)
    data[0, 0, 0] = np.nan
    nib.save(nib.Nifti1Image(data, image.affine), path)
    with pytest.raises(DataError, match="case_002_0000"):
        read_cohort(folder)


def test_ct_numbers_have_one_range_without_padding(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set")
    content = json.loads((folder / "dataset.json").read_text())
    highest = []
    for number, case in enumerate(load_dataset(folder).split("training")):
        image = nib.load(case.image)
        data = np.asarray(image.dataobj).astype(np.int16) + 100 * np.int16(number)
        data[:4] = -2048
        highest.append(np.percentile(data, 99.5))
        nib.save(nib.Nifti1Image(data, image.affine), case.image)

    def read(channel: str) -> tuple[Cohort, list[np.ndarray]]:
        changed = {**content, "channel_names": {"0": channel}}
        (folder / "dataset.json").write_text(json.dumps(changed))
        cohort, volumes = read_cohort(folder)
        return cohort, [volume.image for volume in volumes]

    for name in ("CT", "ct"):
        cohort, images = read(name)
        low, high = cohort.intensity
        assert low == -1024
        assert high == pytest.approx(np.median(highest))
        for case, image in zip(load_dataset(folder).split("training"), images, strict=True):
            # a CT number means the same in every volume
            expected = np.clip((nib.load(case.image).get_fdata() + 1024) / (high + 1024), 0, 1)
            np.testing.assert_allclose(image, 2 * expected - 1, atol=1e-5)
            assert (image[:4] == -1).all()
    cohort, images = read("T1")
    assert cohort.intensity[0] == -2048
    # each volume has a range of its own
    assert np.ptp([image[4:].mean() for image in images]) < 0.05


def test_ct_numbers_above_air_keep_their_own_range(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set")
    plain, _ = read_cohort(folder)
    content = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps({**content, "channel_names": {"0": "CT"}}))
    assert read_cohort(folder)[0].intensity == plain.intensity


def test_the_modality_of_decathlon_is_a_channel(tmp_path: Path) -> None:
    folder = tiny_dataset(tmp_path / "set", 1)
    content = json.loads((folder / "dataset.json").read_text())
    del content["channel_names"]
    for modality, channel in (({"0": "CT"}, "CT"), ("CT, probably", "image")):
        (folder / "dataset.json").write_text(json.dumps({**content, "modality": modality}))
        assert read_cohort(folder)[0].channel == channel


@pytest.mark.parametrize(
    "spacing", [1.0, [1.0], [1, 1], [1, -1, 1], [1, 0, 1], [1, 1, 1, 9], "1,1,1", [1, 1, 1e-5]]
)
def test_a_spacing_that_is_none_is_refused_before_a_training(tmp_path: Path, spacing: Any) -> None:
    folder = tiny_dataset(tmp_path / "set", 2, validation=0)
    for read in (read_cohort, read_task):
        with pytest.raises(ValueError, match=r"spacing: expected three numbers from 0\.001 to"):
            read(folder, None, spacing)
